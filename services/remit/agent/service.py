"""AgentService: proto in, proto out. The rules are elsewhere; here is who may see what."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from remit import names
from remit.agent import admin_log
from remit.agent.admin_log import AdminLog
from remit.agent.cancellation import Canceller
from remit.agent.creation import Creator
from remit.agent.definitions import did_you_mean
from remit.agent.explaining import Explainer, page_of
from remit.agent.feed import Feed
from remit.agent.forking import Forker
from remit.agent.forks import check_overrides
from remit.agent.journal import TERMINAL
from remit.agent.pausing import Pauser
from remit.agent.reading import RunFilter, RunReader, StoredRun, not_found, run_erased
from remit.agent.replaying import Replayer, check_replay
from remit.agent.run_calls import list_run_calls
from remit.agent.validation import check_name, check_request_id
from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.calls import current_call, current_remit
from remit.rpc.errors import RemitError, Violation, check_all, invalid_request
from remit.rpc.remits import Remit

ADMIN: Final = "admin"
"""Role whose holders see every run of their org; others see their own."""
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200
_MAX_PAGE_BYTES: Final = 3_145_728
"""Bytes of the runs of one page: tasks and contexts may be large, a message may not."""
_READ_AT_ONCE: Final = 51
"""Runs read in one statement: a default page, and whether there is another."""


@dataclass(frozen=True)
class AgentService(agent_service_pb2_grpc.AgentServiceServicer):
    """Runs, for the clients who own them."""

    creator: Creator
    canceller: Canceller
    pauser: Pauser
    forker: Forker
    replayer: Replayer
    explainer: Explainer
    reader: RunReader
    feed: Feed
    admin_log: AdminLog

    async def CreateRun(
        self,
        request: agent_service_pb2.CreateRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.CreateRunResponse:
        """Accepts a run."""
        created = await self.creator.create(request, current_remit(), current_call().remit_token)
        run = created.run or (await self.reader.run(created.name)).run
        return agent_service_pb2.CreateRunResponse(run=run)

    async def StreamRun(
        self,
        request: agent_service_pb2.StreamRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[agent_service_pb2.StreamRunResponse]:
        """Accepts a run and follows it."""
        if request.after_sequence < 0:  # refused, with all that else is wrong
            check_all(
                partial(_check_after, request.after_sequence),
                partial(
                    self.creator.check, request.request, self.creator.rules.of(current_remit())
                ),
            )
        created = await self.creator.create(
            request.request, current_remit(), current_call().remit_token
        )
        after = request.after_sequence
        if created.run is None and self._nothing_follows(
            await self.reader.run(created.name), after
        ):
            return
        async for event in self.feed.follow(created.name, after, created.events):
            after = event.sequence if event is not None else after
            yield agent_service_pb2.StreamRunResponse(event=event, sequence=after)

    async def WatchRun(
        self,
        request: agent_service_pb2.WatchRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[agent_service_pb2.WatchRunResponse]:
        """Follows a run."""
        check_all(_run_name(request.name), partial(_check_after, request.after_sequence))
        stored = await self._readable(request.name, "name")
        after = request.after_sequence
        if self._nothing_follows(stored, after):
            return
        async for event in self.feed.follow(request.name, after):
            after = event.sequence if event is not None else after
            yield agent_service_pb2.WatchRunResponse(event=event, sequence=after)

    async def GetRun(
        self,
        request: agent_service_pb2.GetRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.GetRunResponse:
        """Returns a run."""
        stored = await self._visible(request.name, "name")
        return agent_service_pb2.GetRunResponse(run=stored.run)

    async def ListRuns(
        self,
        request: agent_service_pb2.ListRunsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.ListRunsResponse:
        """Lists runs, newest first."""
        check_all(
            *_filter_checks(request),
            partial(page_size, request.page_size),
            partial(name_of_token, "run", request.page_token),
        )
        remit = current_remit()
        only = RunFilter(
            org=remit.org,
            subject="" if ADMIN in remit.roles else remit.subject,
            agent=request.agent,
            state=request.state,
            parent=request.parent,
            conversation=request.conversation,
        )
        runs, more = await self._page(only, page_size(request.page_size), request.page_token)
        return agent_service_pb2.ListRunsResponse(
            runs=runs, next_page_token=page_token(runs[-1].name) if more else ""
        )

    async def CancelRun(
        self,
        request: agent_service_pb2.CancelRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.CancelRunResponse:
        """Asks a run to stop."""
        check_all(partial(check_request_id, request.request_id), _run_name(request.name))
        stored = await self._visible(request.name, "name")
        if stored.run.state not in TERMINAL:
            await self._asked(admin_log.CANCEL, stored, request.request_id)
        run = await self.canceller.cancel(stored, current_remit().subject, request.request_id)
        return agent_service_pb2.CancelRunResponse(run=run)

    async def PauseRun(
        self,
        request: agent_service_pb2.PauseRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.PauseRunResponse:
        """Halts a run."""
        check_all(partial(check_request_id, request.request_id), _run_name(request.name))
        stored = await self._readable(request.name, "name")
        if stored.run.state not in TERMINAL | {run_pb2.RUN_STATE_PAUSED}:
            await self._asked(admin_log.PAUSE, stored, request.request_id)
        run = await self.pauser.pause(stored, current_remit().subject, request.request_id)
        return agent_service_pb2.PauseRunResponse(run=run)

    async def ResumeRun(
        self,
        request: agent_service_pb2.ResumeRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.ResumeRunResponse:
        """Lets a paused run go on."""
        check_all(partial(check_request_id, request.request_id), _run_name(request.name))
        stored = await self._readable(request.name, "name")
        if stored.run.state == run_pb2.RUN_STATE_PAUSED:
            await self._asked(admin_log.RESUME, stored, request.request_id)
        run = await self.pauser.resume(stored, current_remit().subject, request.request_id)
        return agent_service_pb2.ResumeRunResponse(run=run)

    async def ForkRun(
        self,
        request: agent_service_pb2.ForkRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.ForkRunResponse:
        """Starts a run that goes on from where another one stood."""
        check_all(
            partial(check_request_id, request.request_id),
            _run_name(request.name),
            partial(check_overrides, request.overrides),
        )
        stored = await self._readable(request.name, "name")
        await self._asked(admin_log.FORK, stored, request.request_id)
        created = await self.forker.fork(
            request, stored, current_remit(), current_call().remit_token
        )
        run = created.run or (await self.reader.run(created.name)).run
        return agent_service_pb2.ForkRunResponse(run=run)

    async def ReplayRun(
        self,
        request: agent_service_pb2.ReplayRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.ReplayRunResponse:
        """Compares a run with what it would be now."""
        check_all(_run_name(request.name), partial(check_replay, request.overrides))
        await self._readable(request.name, "name")
        return await self.replayer.replay(request)

    async def ExplainRun(
        self,
        request: agent_service_pb2.ExplainRunRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.ExplainRunResponse:
        """Joins what journal, claims, ledger and log say of a run."""
        check_all(_run_name(request.name), partial(page_of, request))
        stored = await self._visible(request.name, "name")
        return await self.explainer.explain(request, stored, current_call().remit_token)

    async def ListRunCalls(
        self,
        request: agent_service_pb2.ListRunCallsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.ListRunCallsResponse:
        """Lists what journals record as called, for audit."""
        return await list_run_calls(self.reader.database, request)

    async def GetArtifact(
        self,
        request: agent_service_pb2.GetArtifactRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_service_pb2.GetArtifactResponse:
        """Returns a file that a run made."""
        stored = await self._readable(request.run, "run")
        by_name = {artifact.name: artifact for artifact in stored.run.artifacts}
        artifact = by_name.get(request.artifact)
        if artifact is None:
            raise RemitError(
                reasons.ERROR_REASON_RESOURCE_NOT_FOUND,
                f"{request.run} has no artifact of that name"
                f"{did_you_mean(request.artifact, by_name)}",
            )
        return agent_service_pb2.GetArtifactResponse(
            media_type=artifact.media_type,
            digest=artifact.digest,
            content=await self.reader.artifact(stored, artifact.digest),
        )

    async def _page(self, only: RunFilter, size: int, token: str) -> tuple[list[run_pb2.Run], bool]:
        """Up to `size` runs that fit one message, and whether there are more."""
        runs: list[run_pb2.Run] = []
        before, total_bytes = name_of_token("run", token), 0
        while True:
            found = await self.reader.runs(only, limit=_READ_AT_ONCE, before=before)
            for run in found:
                total_bytes += run.ByteSize()
                if len(runs) == size or (runs and total_bytes > _MAX_PAGE_BYTES):
                    return runs, True
                runs.append(run)
            if len(found) < _READ_AT_ONCE:
                return runs, False
            before = found[-1].name

    async def _visible(self, name: str, field: str) -> StoredRun:
        """The run, if the caller may see it. Raises RUN_NOT_FOUND: existence is not told either."""
        check_name("run", field, name)
        stored = await self.reader.run(name)
        if stored.is_deleted or not may_see(current_remit(), stored.org, stored.run.subject):
            raise not_found(name)
        return stored

    async def _readable(self, name: str, field: str) -> StoredRun:
        """As `_visible`. Raises SUBJECT_ERASED where nothing can be read of what it was about."""
        stored = await self._visible(name, field)
        if stored.run.erased:
            raise run_erased(stored.run)
        return stored

    async def _asked(self, action: str, stored: StoredRun, request_id: str) -> None:
        """Records who asks for what, before it is done. Raises what keeps it from being so."""
        # Not whose it is: the entry is under the caller's key, and outlives another user's erasure.
        is_own = stored.run.subject == current_remit().subject
        detail = {"agent": stored.run.agent, "own": is_own}
        await self.admin_log.asked(action, stored.run.name, request_id, detail)

    def _nothing_follows(self, stored: StoredRun, after: int) -> bool:
        """Whether a run ended at a sequence. Raises INVALID_REQUEST for one from the future."""
        if after > stored.run.last_sequence:
            raise invalid_request(
                [Violation("after_sequence", f"the newest event is {stored.run.last_sequence}")]
            )
        return stored.run.state in TERMINAL and after == stored.run.last_sequence


def page_size(asked: int) -> int:
    """Entries of a page: 50 for 0, at most 200. Raises INVALID_REQUEST below 0."""
    if asked < 0:
        raise invalid_request([Violation("page_size", "must not be negative")])
    return min(asked or _DEFAULT_PAGE, _MAX_PAGE)


def page_token(name: str) -> str:
    """The token of the page after the entry of that name."""
    return base64.urlsafe_b64encode(name.encode()).decode()


def name_of_token(kind: str, token: str) -> str:
    """The name inside a page token, or an empty string for none. Raises INVALID_REQUEST."""
    if not token:
        return ""
    try:
        name = base64.urlsafe_b64decode(token.encode()).decode()
        names.parse(kind, name)
    except (binascii.Error, ValueError) as error:
        fault = Violation("page_token", "is not a token that this list gave out")
        raise invalid_request([fault]) from error
    return name


def _filter_checks(request: agent_service_pb2.ListRunsRequest) -> Iterator[Callable[[], None]]:
    for kind, field in (("agent", "agent"), ("run", "parent"), ("conversation", "conversation")):
        if name := getattr(request, field):
            yield partial(check_name, kind, field, name)
    yield partial(_check_state, request.state)


def _check_state(state: run_pb2.RunState.ValueType) -> None:
    if state not in run_pb2.RunState.values():
        raise invalid_request([Violation("state", "is not a state of runs")])


def _run_name(name: str) -> Callable[[], None]:
    return partial(check_name, "run", "name", name)


def may_see(remit: Remit, org: str, subject: str) -> bool:
    """Whether a caller is shown what belongs to a subject of an org."""
    return org == remit.org and (subject == remit.subject or ADMIN in remit.roles)


def _check_after(after: int) -> None:
    if after < 0:
        raise invalid_request([Violation("after_sequence", "must not be negative")])
