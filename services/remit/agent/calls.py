"""The tool calls of one model turn: made side by side, each recorded when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from google.protobuf import duration_pb2

from remit import webhooks
from remit.agent.approvals import ApprovalAwaited
from remit.agent.attempts import EffectFailed
from remit.agent.conversation import tool_key
from remit.agent.decisions import Rest, next_action
from remit.agent.doubts import Again, again, known_by_now, what_is_left
from remit.agent.failures import Verdict, judge_tool_failure
from remit.agent.household import Household
from remit.agent.journal import Progress, ToolCall
from remit.agent.logbook import USING_TOOLS
from remit.agent.sealing import Content
from remit.agent.work import Work
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_pb2, tool_service_pb2
from remit.rpc.errors import RemitError
from remit.rpc.mesh import remit_metadata
from remit.telemetry import work_failed


class RunOver(Exception):  # noqa: N818 - what happened, not a fault
    """A call ended the run; its siblings stop."""

    def __init__(self, reason_name: str) -> None:
        super().__init__(reason_name)
        self.reason_name = reason_name
        """Why it is over; spans bear it."""


class ToolCalls:
    """Makes the tool calls of one run."""

    def __init__(self, work: Work, household: Household) -> None:
        self._work = work
        self._household = household
        self._logbook = work.logbook
        self._awaited: list[RemitError] = []
        self._places = asyncio.Semaphore(work.settings.max_parallel_tools)

    async def make(self, step: int, calls: Sequence[ToolCall]) -> None:
        """Makes the calls and records each. Raises FENCED, or RunOver if one ended the run.

        Raises ApprovalAwaited once all others have ended, if people must approve some first.
        """
        await self._say_so()
        self._awaited.clear()
        await self._make_all(step, calls)
        if self._awaited:
            raise ApprovalAwaited(*self._awaited)

    async def _make_all(self, step: int, calls: Sequence[ToolCall]) -> None:
        if len(calls) == 1:
            await self._make_one(step, calls[0])
            return
        tasks = [asyncio.create_task(self._make_one(step, call)) for call in calls]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _say_so(self) -> None:
        """Journals the stage where it is not: a fork may begin with calls that its source asked."""
        async with self._logbook.lock:
            draft = self._logbook.draft()
            draft.enter(USING_TOOLS)
            await self._logbook.commit(draft)

    async def _make_one(self, step: int, call: ToolCall) -> None:
        async with self._places:
            again: ToolCall | None = call
            while again is not None:
                again = await self._attempt(step, again)

    async def _attempt(self, step: int, call: ToolCall) -> ToolCall | None:
        """Makes a call; returns it under its next attempt where a doubt allows another.

        A call of an agent is only named here: its run needs no worker of ours to go on.
        """
        if call.is_delegation:
            await self._household.name(self._work, step, call)
            return None

        if call.tool == webhooks.TOOL:  # the run's remit names it, and its model must not call it
            await self._record(_failed(step, call, _not_offered(call.tool)))
            return None

        async def once(remit: str) -> tool_service_pb2.CallToolResponse:
            return await self._asked(step, call, remit)

        try:
            response = await self._work.attempts.until_final(once, judge_tool_failure)
        except ApprovalAwaited as awaited:
            self._awaited += awaited.errors
        except EffectFailed as failure:
            if failure.verdict is Verdict.IN_DOUBT:
                repeated = await self._again(step, call, failure.error)
                if repeated is not None:
                    return repeated
            error = what_is_left(call, failure.verdict, failure.error)
            work_failed(error.reason_name)
            await self._record(_failed(step, call, error))
        else:
            artifacts = [Content.of(made.content) for made in response.artifacts]
            await self._record(_succeeded(step, call, response), artifacts)
        return None

    async def _asked(
        self, step: int, call: ToolCall, remit: str
    ) -> tool_service_pb2.CallToolResponse:
        try:
            return await self._work.outside.tools.CallTool(
                self._request(step, call), metadata=remit_metadata(remit)
            )
        except RemitError as error:
            before = known_by_now(call, error)
            if before is None:
                raise
        return await self._asked(step, before, remit)

    def _request(self, step: int, call: ToolCall) -> tool_service_pb2.CallToolRequest:
        request = tool_service_pb2.CallToolRequest(
            tool=call.tool,
            arguments=call.arguments,
            request_id=tool_key(self._work.run, step, call),
            repeats_claim=call.repeats_claim,
        )
        if self._work.definition.tool_timeout_s is not None:
            request.timeout.CopyFrom(
                duration_pb2.Duration(seconds=self._work.definition.tool_timeout_s)
            )
        return request

    async def _again(self, step: int, call: ToolCall, doubt: RemitError) -> ToolCall | None:
        """The call in doubt under its next attempt; None where it is not made again."""
        # The turn that asked for the call was made under the pinned offer.
        offer, _ = await self._work.pinned_offer("")
        verdict = again(
            self._work.definition.on_doubt,
            call,
            is_idempotent=offer.is_idempotent(call.tool),
            max_attempts=self._work.settings.max_doubt_attempts,
        )
        claim = doubt.metadata.get("claim", "")
        if verdict is Again.FREELY:
            return await self._begin_again(step, call, "")
        if verdict is Again.IF_APPROVED and claim:
            return await self._begin_again(step, call, claim)
        return None

    async def _begin_again(self, step: int, call: ToolCall, repeats_claim: str) -> ToolCall | None:
        started = run_pb2.ToolCallStarted(
            step=step,
            call_id=call.call_id,
            tool=call.tool,
            arguments=call.arguments,
            repeats_claim=repeats_claim,
        )
        async with self._logbook.lock:
            draft = self._logbook.draft()
            draft.add(started)
            await self._logbook.commit(draft)
            turn = draft.progress.turn
        pending = turn.pending if turn is not None else ()
        return next((c for c in pending if c.call_id == call.call_id), None)

    async def _record(
        self, ended: run_pb2.ToolCallEnded, artifacts: Sequence[Content] = ()
    ) -> None:
        async with self._logbook.lock:
            draft = self._logbook.draft()
            draft.add(ended)
            draft.announce_next(self._work.model)
            await self._logbook.commit(draft, artifacts=artifacts)
        if isinstance(next_action(draft.progress), Rest):
            raise RunOver(_why_over(draft.progress))


def _why_over(progress: Progress) -> str:
    if progress.ended is None:  # paused
        return RemitError(reasons.ERROR_REASON_CANCELLED, "").reason_name
    return RemitError.from_status(progress.ended.error).reason_name


def _succeeded(
    step: int, call: ToolCall, response: tool_service_pb2.CallToolResponse
) -> run_pb2.ToolCallEnded:
    return run_pb2.ToolCallEnded(
        step=step,
        call_id=call.call_id,
        tool=call.tool,
        result=response.result,
        artifacts=[_stored(made) for made in response.artifacts],
        cost_nanos=response.cost_nanos,
        claim=response.claim,
        intent_leaf_index=response.intent_leaf_index,
        usage=response.usage,
    )


def _stored(made: tool_service_pb2.ArtifactContent) -> tool_pb2.Artifact:
    """The artifact as this service stores it: digest and size of the bytes that arrived."""
    content = Content.of(made.content)
    return tool_pb2.Artifact(
        name=made.artifact.name,
        media_type=made.artifact.media_type,
        digest=content.digest,
        size_bytes=len(content.data),
    )


def _not_offered(tool: str) -> RemitError:
    return RemitError(reasons.ERROR_REASON_TOOL_NOT_FOUND, f"{tool} is not offered")


def _failed(step: int, call: ToolCall, error: RemitError) -> run_pb2.ToolCallEnded:
    return run_pb2.ToolCallEnded(
        step=step, call_id=call.call_id, tool=call.tool, error=error.to_status()
    )
