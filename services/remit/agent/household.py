"""Starting the sub-runs of a run, waiting for them without a worker, and stopping them.

A sub-run is named in its parent's journal before it is created, and created only while the parent's
worker holds its token: a worker that dies starts no second one, and one that lost its run starts
none at all. A run whose calls are all sub-runs gives its lease back; the end of the last of them
wakes whoever takes it up again. A run ends after its sub-runs, so its bill is that of its tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remit import names
from remit.agent.attempts import EffectFailed
from remit.agent.cancellation import Canceller
from remit.agent.creation import FIRST_TOKEN, Creator, Order
from remit.agent.definitions import Grant
from remit.agent.erased_runs import ErasedRuns
from remit.agent.failures import judge_sub_run_failure
from remit.agent.journal import TERMINAL, ToolCall
from remit.agent.leases import Held, LeaseStore
from remit.agent.run_remit import IssuedRemit
from remit.agent.sub_runs import (
    check_line,
    ended_call,
    refused_call,
    request_of,
    sub_run,
)
from remit.agent.work import Work
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError


@dataclass(frozen=True)
class Household:
    """What the runs of a replica need to have sub-runs."""

    creator: Creator
    canceller: Canceller
    leases: LeaseStore
    erased: ErasedRuns

    async def name(self, work: Work, step: int, call: ToolCall) -> None:
        """Journals the run that a call of an agent becomes, or why it becomes none."""
        creator, progress = self.creator, work.logbook.progress
        event: run_pb2.SubRunStarted | run_pb2.ToolCallEnded
        try:
            request_of(
                progress.accepted,
                work.definition,
                step,
                call,
                creator.clock.now(),
                creator.rules.settings,
            )
            check_line(call.tool, await creator.reader.lineage(work.run))
        except RemitError as error:
            if error.retryable:
                raise
            event = refused_call(step, call, error)
        else:
            name = names.run_name(creator.ids.uuid7())
            event = run_pb2.SubRunStarted(step=step, call_id=call.call_id, run=name)
        await _journal(work, [event])

    async def tend(self, work: Work, step: int, calls: Sequence[ToolCall]) -> bool:
        """Creates the sub-runs that are not there and records those that ended.

        Returns whether all of them go on: then there is nothing to do but to wait.
        """
        ended = [found for call in calls if (found := await self._tended(work, step, call))]
        await _journal(work, ended)
        return not ended

    async def park(self, work: Work) -> None:
        """Gives the run back until its sub-runs have ended."""
        await self.leases.park(Held(work.run, work.fencing_token))

    async def park_for_approvals(self, work: Work, approvals: Sequence[str]) -> None:
        """Gives the run back until one of these approvals is decided."""
        await self.leases.park_for_approvals(Held(work.run, work.fencing_token), approvals)

    async def _tended(self, work: Work, step: int, call: ToolCall) -> run_pb2.ToolCallEnded | None:
        try:
            run = await work.attempts.until_final(
                lambda remit: self._found_or_created(work, step, call, remit),
                judge_sub_run_failure,
            )
        except EffectFailed as failure:
            return refused_call(step, call, failure.error)
        return ended_call(step, call, run) if run.state in TERMINAL else None

    async def _found_or_created(
        self, work: Work, step: int, call: ToolCall, remit: str
    ) -> run_pb2.Run:
        try:
            return (await self.creator.reader.run(call.run)).run
        except RemitError as error:
            if error.reason != reasons.ERROR_REASON_RUN_NOT_FOUND:
                raise
        order = self._order(work, step, call)

        async def register(grant: Grant) -> IssuedRemit:
            return await self.creator.desk.delegate(
                order.run, FIRST_TOKEN, grant, parent_remit=remit
            )

        created = await self.creator.begin(order, register)
        return created.run or (await self.creator.reader.run(call.run)).run

    def _order(self, work: Work, step: int, call: ToolCall) -> Order:
        creator, parent = self.creator, work.logbook.progress.accepted
        now = creator.clock.now()
        rules = creator.rules.settings  # what policy wants comes with the sub-run's remit
        request = request_of(parent, work.definition, step, call, now, rules)
        definition = creator.catalog.get(call.tool)
        left_s = work.deadline - creator.clock.monotonic()
        run = sub_run(parent, call.run, definition, request, left_s=left_s)
        run.create_time.FromDatetime(now)
        # Nobody else knows the name, so no client's request can have it for an id.
        return Order(
            run,
            definition,
            call.run,
            bytes.fromhex(request.request_id),
            rules,
            work.fencing_token,
            others=work.logbook.key.others,
        )


async def _journal(
    work: Work, events: Sequence[run_pb2.SubRunStarted | run_pb2.ToolCallEnded]
) -> None:
    if not events:
        return
    async with work.logbook.lock:
        draft = work.logbook.draft()
        draft.add(*events)
        draft.announce_next(work.model)
        await work.logbook.commit(draft)
