"""Runs: started, followed, awaited, read and controlled.

Every method raises RemitError. A call that broke is made again for a moment, since each of these is
safe to repeat: it reads, or its request id names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.client.breaks import cut_short
from remit.client.repetition import Metadata, repeated
from remit.client.requests import ListedRuns, NewRun, full_name, new_request_id
from remit.client.resumption import Resumption
from remit.client.run_stream import RunResponse, RunStream
from remit.rpc.errors import RemitError

Request = TypeVar("Request")
Response = TypeVar("Response")
RunRequest: TypeAlias = NewRun | agent_service_pb2.CreateRunRequest

_FINAL: Final = frozenset(
    {run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED}
)
_MOST_A_PAGE: Final = 200
_ALL: Final = ListedRuns()


@dataclass(frozen=True)
class RunList:
    """Runs, newest first, and whether there are more than were asked for."""

    runs: list[run_pb2.Run]
    more: bool


class Runs:
    """The runs that one API key may start and see. A run's name may lack its `runs/`."""

    def __init__(
        self,
        stub: agent_service_pb2_grpc.AgentServiceStub,
        metadata: Metadata,
        resumption: Resumption,
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._resumption = resumption

    async def create(self, new: RunRequest) -> run_pb2.Run:
        """Starts a run; it is durable when this returns. Sent again, it is the same run."""
        return (await self._call(self._stub.CreateRun, _request_of(new))).run

    def stream(
        self,
        new: RunRequest,
        *,
        after_sequence: int = 0,
        timeout_s: float | None = None,
        on_break: Callable[[RemitError], None] = lambda _: None,
    ) -> RunStream:
        """Starts a run and follows it: `create` and `watch` in one call.

        The run starts when the stream is first read. `on_break` hears of each break before the
        stream is opened again. `timeout_s` bounds the stream and not the run.
        """
        request = _request_of(new)

        def open_stream(after: int) -> AsyncIterator[RunResponse]:
            asked = agent_service_pb2.StreamRunRequest(request=request, after_sequence=after)
            return aiter(self._stub.StreamRun(asked, metadata=self._metadata))

        return RunStream(
            open_stream,
            self._resumption,
            after_sequence=after_sequence,
            timeout_s=timeout_s,
            on_break=on_break,
        )

    def watch(
        self,
        run: str,
        *,
        after_sequence: int = 0,
        timeout_s: float | None = None,
        on_break: Callable[[RemitError], None] = lambda _: None,
    ) -> RunStream:
        """Follows a run from an event on to its end; as `stream` does, without starting it.

        Behind the last event of a run that has ended there is none: the stream is empty.
        """
        name = full_name("runs", run)

        def open_stream(after: int) -> AsyncIterator[RunResponse]:
            asked = agent_service_pb2.WatchRunRequest(name=name, after_sequence=after)
            return aiter(self._stub.WatchRun(asked, metadata=self._metadata))

        return RunStream(
            open_stream,
            self._resumption,
            after_sequence=after_sequence,
            timeout_s=timeout_s,
            on_break=on_break,
        )

    async def wait(self, run: str, *, timeout_s: float | None = None) -> run_pb2.Run:
        """The run as it ends. Raises DEADLINE_EXCEEDED after `timeout_s`; the run goes on then."""
        began = self._resumption.clock.monotonic()
        found = await self.get(run)
        if found.state in _FINAL:
            return found
        if timeout_s is not None:
            timeout_s = max(timeout_s - (self._resumption.clock.monotonic() - began), 0.0)
        # What it did so far is not read again.
        after = found.last_sequence
        async with self.watch(found.name, after_sequence=after, timeout_s=timeout_s) as events:
            async for _ in events:
                pass
        ended = events.ended or await self.get(run)
        if ended.state not in _FINAL:
            raise cut_short(events.sequence)
        return ended

    async def result(self, run: str, *, timeout_s: float | None = None) -> str:
        """The answer of a run, when it has ended. Raises the run's own error if it has none."""
        ended = await self.wait(run, timeout_s=timeout_s)
        if ended.state != run_pb2.RUN_STATE_SUCCEEDED:
            raise RemitError.from_status(ended.error)
        return ended.result

    async def get(self, run: str) -> run_pb2.Run:
        """The run as it is now."""
        request = agent_service_pb2.GetRunRequest(name=full_name("runs", run))
        return (await self._call(self._stub.GetRun, request)).run

    async def list(self, only: ListedRuns = _ALL, *, limit: int = 50) -> RunList:
        """Up to `limit` runs that the key may see, newest first."""
        request = only.to_request()
        runs: list[run_pb2.Run] = []
        while True:
            request.page_size = min(limit - len(runs), _MOST_A_PAGE)
            page = await self._call(self._stub.ListRuns, request)
            runs += page.runs
            request.page_token = page.next_page_token
            if not request.page_token or len(runs) >= limit:
                return RunList(runs[:limit], bool(request.page_token) or len(runs) > limit)

    async def cancel(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """Asks a run to stop; nothing new starts after the answer."""
        request = agent_service_pb2.CancelRunRequest(**_control(run, request_id))
        return (await self._call(self._stub.CancelRun, request)).run

    async def pause(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """Halts a run until it is resumed; its time limit stands still."""
        request = agent_service_pb2.PauseRunRequest(**_control(run, request_id))
        return (await self._call(self._stub.PauseRun, request)).run

    async def resume(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """Lets a paused run go on where it stood."""
        request = agent_service_pb2.ResumeRunRequest(**_control(run, request_id))
        return (await self._call(self._stub.ResumeRun, request)).run

    async def fork(
        self, run: str, request: agent_service_pb2.ForkRunRequest | None = None
    ) -> run_pb2.Run:
        """Starts a run that goes on from where another one stood.

        `request` says from where and with what changed; without, the last step of a run that failed
        is tried again. Its name and a request id are filled in.
        """
        asked = agent_service_pb2.ForkRunRequest()
        asked.CopyFrom(request or asked)
        asked.name = full_name("runs", run)
        asked.request_id = asked.request_id or new_request_id()
        return (await self._call(self._stub.ForkRun, asked)).run

    async def replay(
        self, run: str, overrides: agent_service_pb2.RunOverrides | None = None
    ) -> agent_service_pb2.ReplayRunResponse:
        """Compares a run with what it would be now, at no cost; names the first difference."""
        request = agent_service_pb2.ReplayRunRequest(
            name=full_name("runs", run), overrides=overrides
        )
        return await self._call(self._stub.ReplayRun, request)

    async def artifact(self, run: str, artifact: str) -> agent_service_pb2.GetArtifactResponse:
        """A file that a run made. Raises DATA_CORRUPT if its content is not that of its digest."""
        request = agent_service_pb2.GetArtifactRequest(
            run=full_name("runs", run), artifact=artifact
        )
        found = await self._call(self._stub.GetArtifact, request)
        if hashlib.sha256(found.content).digest() != found.digest:
            raise RemitError(
                reasons.ERROR_REASON_DATA_CORRUPT,
                f"the content of {artifact} does not match its digest",
            )
        return found

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object) -> Response:
        return await repeated(method, request, self._metadata, self._resumption)


def _request_of(new: RunRequest) -> agent_service_pb2.CreateRunRequest:
    return new.to_request() if isinstance(new, NewRun) else new


def _control(run: str, request_id: str) -> Mapping[str, Any]:
    return {"name": full_name("runs", run), "request_id": request_id or new_request_id()}
