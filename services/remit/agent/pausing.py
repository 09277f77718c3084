"""Pausing a run and letting it go on: taken from its worker, journalled, given back.

Seizing the run stops its journal, so no further call is journalled; the token raised at policy
refuses a call that was journalled and not yet made. A tool call under way ends where it is made and
is recorded under its key, so the run finds it there when it goes on. A model turn whose text would
have to be journalled is broken off, billed for what it used, and asked for again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from remit.agent.entries import Control
from remit.agent.journal import TERMINAL
from remit.agent.leases import Held, LeaseStore
from remit.agent.logbook import Books, Logbook
from remit.agent.reading import StoredRun
from remit.agent.run_remit import RemitDesk
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

_TRIES: Final = 5
"""A run that changes hands this often during one request is left to the client's next try."""


@dataclass(frozen=True)
class _Wish:
    """What is asked for: a pause, or its end."""

    control: Control
    event: run_pb2.RunPaused | run_pb2.RunResumed

    def is_fulfilled(self, state: run_pb2.RunState.ValueType) -> bool:
        """Whether a run in this state is as it is wished."""
        return (state == run_pb2.RUN_STATE_PAUSED) == self.control.is_pause


@dataclass(frozen=True)
class Pauser:
    """Pauses runs and lets them go on."""

    books: Books
    leases: LeaseStore
    desk: RemitDesk

    async def pause(self, stored: StoredRun, subject: str, request_id: str) -> run_pb2.Run:
        """The paused run. The same request gets the same answer.

        Raises INVALID_STATE if the run has ended or is paused already, DEPENDENCY_UNAVAILABLE if
        policy or the database is away; then the same request completes what was begun.
        """
        wish = _Wish(
            Control(f"pause {request_id}", is_pause=True), run_pb2.RunPaused(subject=subject)
        )
        return await self._fulfil(stored, wish)

    async def resume(self, stored: StoredRun, subject: str, request_id: str) -> run_pb2.Run:
        """The run, which waits for a worker. The same request gets the same answer.

        Raises INVALID_STATE if the run has ended or is not paused, DEPENDENCY_UNAVAILABLE.
        """
        wish = _Wish(
            Control(f"resume {request_id}", is_pause=False), run_pb2.RunResumed(subject=subject)
        )
        return await self._fulfil(stored, wish)

    async def _fulfil(self, stored: StoredRun, wish: _Wish) -> run_pb2.Run:
        name = stored.run.name
        for _ in range(_TRIES):
            if stored.run.state in TERMINAL or wish.is_fulfilled(stored.run.state):
                await self._complete(stored, wish)
                await self._fulfil_below(name, wish)
                return stored.run
            await self._seized(name, wish)
            stored = await self.books.reader.run(name)
        raise RemitError(
            reasons.ERROR_REASON_OVERLOADED, f"{name} changes hands too fast to be controlled"
        )

    async def _fulfil_below(self, name: str, wish: _Wish) -> None:
        """Does the same with the sub-runs that go on; one that is as wished already stays so."""
        for below in await self.books.reader.unfinished_sub_runs(name):
            stored = await self.books.reader.run(below)
            try:
                await self._fulfil(stored, wish)
            except RemitError as error:
                if error.reason != reasons.ERROR_REASON_INVALID_STATE:
                    raise

    async def _complete(self, stored: StoredRun, wish: _Wish) -> None:
        """Sees that a fulfilled wish was this one, and that policy knows of it."""
        if stored.run.state in TERMINAL or stored.control_request != wish.control.request:
            raise _refused(stored.run, wish)
        if wish.control.is_pause:
            await self.desk.fence(stored.run.name, stored.fencing_token)

    async def _seized(self, name: str, wish: _Wish) -> None:
        """Takes the run, journals the wish and gives it back, unless somebody else has it."""
        grant = await self.leases.seize(name)
        if grant is None:
            return
        progress = await self.books.standing.now(name)
        if progress.ended is not None or wish.is_fulfilled(progress.state):
            await self.leases.release([Held(name, grant.fencing_token)])
            return
        logbook = Logbook(
            self.books, name, grant.fencing_token, progress, grant.key, grant.traceparent
        )
        draft = logbook.draft()
        draft.add(wish.event)
        try:
            await logbook.commit(draft, control=wish.control)
        except RemitError as error:
            if error.reason != reasons.ERROR_REASON_FENCED:
                raise
        finally:
            logbook.close()


def _refused(run: run_pb2.Run, wish: _Wish) -> RemitError:
    state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    verb = "paused" if wish.control.is_pause else "resumed"
    return RemitError(
        reasons.ERROR_REASON_INVALID_STATE, f"{run.name} is {state}; it cannot be {verb}"
    )
