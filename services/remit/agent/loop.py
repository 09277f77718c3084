"""The model-tool loop: does what the journal says comes next, until the run ends.

The loop holds no state of its own. Whatever stops it, a crash, a lost lease, a drain, the next
worker reads the journal and goes on with the same keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from remit import telemetry
from remit.agent.approvals import ApprovalAwaited
from remit.agent.attempts import Attempts
from remit.agent.calls import RunOver, ToolCalls
from remit.agent.decisions import (
    AskModel,
    AwaitSubRuns,
    CallTools,
    End,
    FallBack,
    Rest,
    failed,
    limit_reached,
    next_action,
)
from remit.agent.definitions import AgentDefinition
from remit.agent.household import Household
from remit.agent.journal import Progress, header_of
from remit.agent.logbook import THINKING, USING_TOOLS, Books, Logbook, started
from remit.agent.reading import DefinitionStore
from remit.agent.run_remit import IssuedRemit, RemitDesk, RunRemit
from remit.agent.settings import AgentSettings
from remit.agent.spans import stage
from remit.agent.tenure import Tenure
from remit.agent.turns import ModelTurns
from remit.agent.work import Outside, Work
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.subject_keys import is_erased
from remit.telemetry.spans import Value
from remit.telemetry.table import FENCING_TOKEN, REPLICA, RUN, TOOL_CALLS

_KNOWN_DEFINITIONS: Final = 256
_UNREADABLE: Final = frozenset(
    {reasons.ERROR_REASON_DATA_CORRUPT, reasons.ERROR_REASON_CONFIGURATION_INVALID}
)

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class Workshop:
    """What every worker of a replica uses."""

    books: Books
    definitions: DefinitionStore
    desk: RemitDesk
    outside: Outside
    settings: AgentSettings
    ids: IdSource
    household: Household


class RunWorker:
    """Works on runs, one call of `work` each."""

    def __init__(self, workshop: Workshop) -> None:
        self._shop = workshop
        self._clock = workshop.books.clock
        self._known: OrderedDict[str, AgentDefinition] = OrderedDict()

    async def work(self, tenure: Tenure) -> None:
        """Works on a run until it ends, is another's, or is to be handed over.

        Returns without a word where another worker owns the run. Raises RemitError where the run
        cannot be worked on now; whoever claims it next tries again.
        """
        with contextlib.suppress(RunOver):
            try:
                await self._unless_erased(tenure)
            except RemitError as error:
                if error.reason != reasons.ERROR_REASON_FENCED:
                    raise
                log.info("run_lost", run=tenure.run, fencing_token=tenure.fencing_token)

    async def _unless_erased(self, tenure: Tenure) -> None:
        try:
            await self._work(tenure)
        except RemitError as error:
            if not is_erased(error):
                raise
            await self._shop.household.erased.end(tenure)

    async def _work(self, tenure: Tenure) -> None:
        try:
            work = await self._take_up(tenure)
        except RemitError as error:
            if error.reason not in _UNREADABLE:
                raise
            await self._quarantine(tenure, error)
            return
        try:
            self._log_started(work, tenure)
            if tenure.head is None:
                await self._say_started(work, tenure)
            await self._until_end(work, tenure)
        finally:
            work.logbook.close()

    async def _until_end(self, work: Work, tenure: Tenure) -> None:
        limit = asyncio.timeout(max(0.0, tenure.deadline - self._clock.monotonic()))
        try:
            async with limit:
                try:
                    await self._go_on(work, tenure)
                except ApprovalAwaited as awaited:
                    await self._await_people(work, tenure, awaited)
        except (RemitError, RunOver):
            raise
        except Exception as error:
            # A TimeoutError may also come of something else than the run's own deadline.
            if isinstance(error, TimeoutError) and limit.expired():
                end = _out_of_time(work)
            else:
                error_id = secrets.token_hex(8)
                log.exception("run_crashed", run=tenure.run, error_id=error_id)
                end = _crashed(error_id)
            await self._end(work, end)

    async def _go_on(self, work: Work, tenure: Tenure) -> None:
        turns, calls = ModelTurns(work), ToolCalls(work, self._shop.household)
        facts = self._facts(tenure)
        while True:
            action = next_action(work.logbook.progress)
            if isinstance(action, Rest) or tenure.handing_over:
                return
            if isinstance(action, AskModel):
                with stage(THINKING, action.step, facts):
                    await turns.ask(action.step)
            elif isinstance(action, FallBack):
                await turns.fall_back()
            elif isinstance(action, CallTools):
                with stage(USING_TOOLS, action.step, {**facts, TOOL_CALLS: len(action.calls)}):
                    await calls.make(action.step, action.calls)
            elif isinstance(action, AwaitSubRuns):
                if await self._shop.household.tend(work, action.step, action.calls):
                    await self._shop.household.park(work)
                    return
            else:
                await self._end(work, action)

    async def _await_people(self, work: Work, tenure: Tenure, awaited: ApprovalAwaited) -> None:
        """Says for what the run waits, and gives it back until that is decided."""
        left_s = max(0.0, tenure.deadline - self._clock.monotonic())
        async with work.logbook.lock:
            draft = work.logbook.draft()
            for error in awaited.errors:
                waiting = run_pb2.RunWaiting(reason=error.to_status())
                waiting.retry_time.FromDatetime(self._clock.now() + timedelta(seconds=left_s))
                draft.add(waiting)
            await work.logbook.commit(draft)
        log.info("run_awaits_approval", run=work.run, approvals=awaited.approvals)
        if not tenure.handing_over:
            await self._shop.household.park_for_approvals(work, awaited.approvals)

    def _facts(self, tenure: Tenure) -> dict[str, Value]:
        replica = self._shop.settings.replica
        return {RUN: tenure.run, REPLICA: replica, FENCING_TOKEN: tenure.fencing_token}

    def _log_started(self, work: Work, tenure: Tenure) -> None:
        accepted = work.logbook.progress.accepted
        is_first = tenure.head is not None or not work.logbook.progress.fencing_token
        log.info(
            "agent_execution_started" if is_first else "agent_execution_adopted",
            run=tenure.run,
            task_type=work.definition.name,
            user=accepted.subject,
            task_bytes=len(accepted.task.encode()),
            fencing_token=tenure.fencing_token,
        )

    async def _end(self, work: Work, end: End) -> None:
        await work.logbook.settle()
        if isinstance(next_action(work.logbook.progress), Rest):
            return
        await self._shop.household.canceller.stop_sub_runs(work.logbook)
        await self._shop.household.canceller.withdraw_approvals(work.logbook)
        async with work.logbook.lock:
            draft = work.logbook.draft()
            draft.end(end)
            await work.logbook.commit(draft)

    async def _take_up(self, tenure: Tenure) -> Work:
        if tenure.head is not None:
            head = tenure.head
            work = self._made(tenure, head.progress, head.definition, head.remit)
            work.offer, work.history = head.offer, head.history
            return work
        progress = await self._shop.books.standing.now(tenure.run)
        self._shop.books.receipts.adopted(progress)
        definition = await self._definition(progress.accepted.agent_version)
        work = self._made(tenure, progress, definition, None)
        work.history = await work.reader.history(progress.accepted)
        return work

    async def _say_started(self, work: Work, tenure: Tenure) -> None:
        if isinstance(next_action(work.logbook.progress), Rest | End):
            return
        async with work.logbook.lock:
            draft = work.logbook.draft()
            draft.add(started(tenure.fencing_token, self._shop.settings.replica))
            await work.logbook.commit(draft)

    def _made(
        self,
        tenure: Tenure,
        progress: Progress,
        definition: AgentDefinition,
        issued: IssuedRemit | None,
    ) -> Work:
        shop = self._shop
        ruled = replace(progress, rules=definition.rules)
        logbook = Logbook(
            shop.books, tenure.run, tenure.fencing_token, ruled, tenure.key, tenure.traceparent
        )
        remit = RunRemit(shop.desk, tenure.run, tenure.fencing_token, issued)
        return Work(
            run=tenure.run,
            definition=definition,
            logbook=logbook,
            attempts=Attempts(logbook, remit, shop.settings, self._clock, shop.ids),
            outside=shop.outside,
            reader=shop.books.reader,
            settings=shop.settings,
            fencing_token=tenure.fencing_token,
            deadline=tenure.deadline,
        )

    async def _definition(self, version: str) -> AgentDefinition:
        known = self._known.get(version)
        if known is None:
            known = self._known[version] = await self._shop.definitions.get(version)
            if len(self._known) > _KNOWN_DEFINITIONS:
                self._known.popitem(last=False)
        return known

    async def _quarantine(self, tenure: Tenure, error: RemitError) -> None:
        """Ends a run that cannot be read or trusted; nothing stored of it is changed."""
        log.error("run_unreadable", run=tenure.run, error=error.message)
        stored = await self._shop.books.reader.run(tenure.run)
        progress = Progress(
            sequence=stored.run.last_sequence,
            accepted=stored.run,
            header=header_of(stored.run),
        )
        logbook = Logbook(
            self._shop.books,
            tenure.run,
            tenure.fencing_token,
            progress,
            tenure.key,
            tenure.traceparent,
        )
        for name in await self._shop.books.reader.unfinished_sub_runs(tenure.run):
            await self._shop.household.canceller.stop_sub_run(name, by=tenure.run)
        draft = logbook.draft()
        draft.end(failed(error))
        await logbook.commit(draft)


def _out_of_time(work: Work) -> End:
    seconds = work.logbook.progress.accepted.limits.max_duration.ToNanoseconds() / 1e9
    return limit_reached(f"the run did not end within {seconds:g} s")


def _crashed(error_id: str) -> End:
    message = f"an unexpected error occurred; its id is {error_id}"
    return failed(RemitError(reasons.ERROR_REASON_INTERNAL, message))
