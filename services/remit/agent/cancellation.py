"""Cancelling a run: taken from its worker, refused everywhere, then ended.

The order makes it safe to die at any point. Seizing the run stops its journal; the request to
cancel is then journalled, so that whoever adopts the run can only end it; raising the token at
policy stops every effect that has not started; its sub-runs are cancelled in the same way; the end
is journalled last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from remit import telemetry
from remit.agent.approvals import REASON
from remit.agent.decisions import End, next_action
from remit.agent.erased_runs import ErasedRuns
from remit.agent.journal import TERMINAL
from remit.agent.leases import Grant, LeaseStore
from remit.agent.logbook import Books, Logbook
from remit.agent.reading import StoredRun
from remit.agent.run_remit import RemitDesk
from remit.agent.sub_runs import ended_call
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.subject_keys import is_erased

_TRIES: Final = 5
"""A run that changes hands this often during one request is left to the client's next try."""

_BY_PARENT: Final = "the run that started it ends"
"""Request id under which a sub-run is cancelled."""

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class Canceller:
    """Cancels runs."""

    books: Books
    leases: LeaseStore
    desk: RemitDesk
    erased: ErasedRuns

    async def cancel(self, stored: StoredRun, subject: str, request_id: str) -> run_pb2.Run:
        """The run as it ended. The same request gets the same answer.

        One whose subject was erased ends as such runs do. Raises INVALID_STATE if the run had
        ended, DEPENDENCY_UNAVAILABLE if policy or the database is away; a cancellation that was
        journalled by then is completed by whoever adopts the run.
        """
        name = stored.run.name
        for _ in range(_TRIES):
            if stored.run.state in TERMINAL:
                return _answer(stored, request_id)
            grant = await self.leases.seize(name)
            if grant is not None and await self._end(grant, subject, request_id):
                return (await self.books.reader.run(name)).run
            stored = await self.books.reader.run(name)
        raise RemitError(
            reasons.ERROR_REASON_OVERLOADED, f"{name} changes hands too fast to be cancelled"
        )

    async def _end(self, grant: Grant, subject: str, request_id: str) -> bool:
        """Ends a seized run; False if somebody else took it meanwhile."""
        try:
            return await self._cancelled(grant, subject, request_id)
        except RemitError as error:
            if not is_erased(error):
                raise
            await self.erased.end(grant)
            return True

    async def _cancelled(self, grant: Grant, subject: str, request_id: str) -> bool:
        progress = await self.books.standing.now(grant.run)
        logbook = Logbook(
            self.books, grant.run, grant.fencing_token, progress, grant.key, grant.traceparent
        )
        try:
            if not logbook.progress.cancelled_by:
                await self._request(logbook, subject, request_id)
            await self.desk.fence(grant.run, grant.fencing_token)
            await self.stop_sub_runs(logbook)
            await self.withdraw_approvals(logbook)
            await self._complete(logbook)
        except RemitError as error:
            if error.reason != reasons.ERROR_REASON_FENCED:
                raise
            return False
        finally:
            logbook.close()
        return True

    async def stop_sub_runs(self, logbook: Logbook) -> None:
        """Cancels the sub-runs of a run about to end and journals their bills.

        Call it under the run's newest token: nobody can start another one then.
        """
        for call in logbook.progress.sub_runs:
            run = await self.stop_sub_run(call.run, by=logbook.progress.accepted.name)
            if run is None:
                continue
            async with logbook.lock:
                draft = logbook.draft()
                draft.add(ended_call(len(draft.progress.turns), call, run))
                await logbook.commit(draft)

    async def withdraw_approvals(self, logbook: Logbook) -> None:
        """Withdraws what a run about to end still asks of people, if it asked for anything.

        Policy may be away: nothing asks for the effect any more, and the approval lapses by itself.
        """
        if logbook.progress.waits_for != REASON:
            return
        try:
            await self.desk.withdraw_approvals(logbook.progress.accepted.name)
        except RemitError as error:
            log.warning("approvals_not_withdrawn", reason=error.reason_name)

    async def stop_sub_run(self, name: str, *, by: str) -> run_pb2.Run | None:
        """The sub-run as it ended, by itself or because the run `by` ends; None if there is none.

        Raises what `cancel` raises where it cannot be ended now.
        """
        try:
            stored = await self.books.reader.run(name)
            if stored.run.state not in TERMINAL:
                await self.cancel(stored, by, _BY_PARENT)
        except RemitError as error:
            if error.reason == reasons.ERROR_REASON_RUN_NOT_FOUND:
                return None
            if error.reason != reasons.ERROR_REASON_INVALID_STATE:  # else it has just ended
                raise
        return (await self.books.reader.run(name)).run

    async def _request(self, logbook: Logbook, subject: str, request_id: str) -> None:
        draft = logbook.draft()
        draft.add(run_pb2.CancelRequested(subject=subject))
        await logbook.commit(draft, cancel_request_id=request_id)

    async def _complete(self, logbook: Logbook) -> None:
        action = next_action(logbook.progress)
        if isinstance(action, End):
            draft = logbook.draft()
            draft.end(action)
            await logbook.commit(draft)


def _answer(stored: StoredRun, request_id: str) -> run_pb2.Run:
    if stored.run.state == run_pb2.RUN_STATE_CANCELLED and stored.cancel_request_id == request_id:
        return stored.run
    state = run_pb2.RunState.Name(stored.run.state).removeprefix("RUN_STATE_")
    ended = stored.run.end_time.ToJsonString()
    raise RemitError(
        reasons.ERROR_REASON_INVALID_STATE,
        f"{stored.run.name} ended at {ended} ({state}); an ended run cannot be cancelled",
    )
