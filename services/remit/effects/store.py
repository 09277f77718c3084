"""The claims in the database. Every change is a compare-and-set; many share one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from remit.effects.claims import LAPSES, Admission, Attempt, Outcome, State, admit
from remit.effects.statements import (
    ACKNOWLEDGE,
    BEFORE_THE_FIRST,
    CHANGE_STATEMENTS,
    HOLDS_END,
    INSERT_FRESH,
    INSERT_NEXT,
    LAPSE,
    LAPSE_ONE,
    READ_KNOWN,
    SELECT_KNOWN,
    SELECT_UNCLOSED,
    attempt_of,
    begin_columns,
    change_values,
    interval,
    lapsed,
    unclosed_of,
)
from remit.effects.steps import Begin, Begun, Change, Close, Finish, Renew, Start, Step, Unclosed
from remit.postgres import Connection, Database, GroupCommit
from remit.rpc.errors import RemitError


class ClaimStore:
    """Claims of one enforcement service, written by group commit."""

    def __init__(
        self,
        database: Database,
        *,
        owner: str,
        lease_s: float,
        max_batch: int = 256,
        max_queue: int = 4096,
    ) -> None:
        self.database = database
        self.owner = owner
        self.lease_s = lease_s
        self._max_batch = max_batch
        self._swept = BEFORE_THE_FIRST
        self._live: set[tuple[str, int]] = set()
        # Begun in a commit whose end the caller has not heard yet, by the Begin's own id.
        self._tentative: dict[str, tuple[str, int]] = {}
        self._commits: GroupCommit[Step, Begun | bool] = GroupCommit(
            database,
            self._write,
            name="claims",
            opens=_opening,
            max_batch=max_batch,
            max_queue=max_queue,
        )

    async def begin(self, begin: Begin) -> Begun:
        """Claims the key, or tells what it is."""
        try:
            begun = await self._commits.submit(begin)
            assert isinstance(begun, Begun)  # noqa: S101 - narrows the writer's union
            if begun.admission is None:
                self._live.add((begun.attempt.claim, begun.attempt.attempt))
            return begun
        finally:
            self._tentative.pop(begin.claim, None)

    async def known(self, begin: Begin) -> Begun | None:
        """What a key stands for, if for anything; it is not claimed, and nothing is changed."""
        row = await self.database.fetchrow(
            READ_KNOWN, begin.org, begin.principal, begin.method, begin.key
        )
        if row is None:
            return None
        attempt = attempt_of(row)
        return Begun(attempt, self._admit(attempt, begin))

    async def change(self, change: Change) -> bool:
        """Whether the compare-and-set took place."""
        return bool(await self._commits.submit(change))

    async def holds(self, finish: Finish) -> bool:
        """Whether exactly this end is recorded already."""
        end = finish.end
        found: bool = await self.database.fetchval(
            HOLDS_END,
            finish.claim,
            finish.attempt,
            self.owner,
            end.outcome,
            end.result,
            end.error,
            end.digest,
        )
        return found

    async def acknowledge(self, claims: Sequence[str], presenter: str) -> dict[str, Outcome | None]:
        """Drops the results of claims of this presenter that succeeded; digests stay.

        Returns the outcomes of those claims that there are, by claim; None of an open one.
        """
        rows = await self.database.fetch(ACKNOWLEDGE, claims, presenter)
        return {
            str(row["claim"]): Outcome(row["outcome"]) if row["outcome"] else None for row in rows
        }

    def forget(self, claim: str, attempt: int) -> None:
        """The attempt is no longer worked on here; its lease is renewed no more."""
        self._live.discard((claim, attempt))

    def live(self) -> tuple[tuple[str, int], ...]:
        """Attempts that are worked on here."""
        return tuple(self._live)

    @property
    def commits(self) -> int:
        """Commits so far, for benchmarks."""
        return self._commits.commits

    async def lapse(self) -> dict[State, int]:
        """Ends attempts whose lease has lapsed; returns how many became what."""
        ended = {}
        async with self.database.transaction() as connection:
            for before, after in LAPSES.items():
                rows = await connection.fetch(LAPSE, before, after, self._max_batch)
                ended[after] = len(rows)
        return ended

    async def unclosed(self, older_than_s: float) -> list[Unclosed]:
        """The next ended attempts that wait to be closed for longer than that, the oldest first.

        Call after call comes past all of them, so that some that cannot be closed now do not keep
        the rest from being closed.
        """
        rows = await self.database.fetch(
            SELECT_UNCLOSED, interval(older_than_s), self._max_batch, *self._swept
        )
        self._swept = BEFORE_THE_FIRST
        if len(rows) == self._max_batch:
            self._swept = (rows[-1]["update_time"], rows[-1]["claim"], rows[-1]["attempt"])
        return [unclosed_of(row) for row in rows]

    async def _write(
        self, connection: Connection, steps: Sequence[Step]
    ) -> Sequence[Begun | bool | RemitError]:
        begun = await self._begin_all(connection, [s for s in steps if isinstance(s, Begin)])
        changed = await self._change_all(connection, [s for s in steps if not isinstance(s, Begin)])
        return [begun[s.claim] if isinstance(s, Begin) else s in changed for s in steps]

    async def _begin_all(self, connection: Connection, begins: Sequence[Begin]) -> dict[str, Begun]:
        if not begins:
            return {}
        columns = list(zip(*(begin_columns(begin) for begin in begins), strict=True))
        rows = await connection.fetch(INSERT_FRESH, *columns, self.owner, interval(self.lease_s))
        fresh = {str(row["claim"]) for row in rows}
        begun = {}
        for begin in sorted(begins, key=lambda b: (b.org, b.principal, b.method, b.key)):
            if begin.claim in fresh:
                begun[begin.claim] = Begun(self._claimed(begin.claim, 1, begin), None)
            else:
                begun[begin.claim] = await self._look_alone(connection, begin)
        return begun

    async def _look_alone(self, connection: Connection, begin: Begin) -> Begun:
        """Looks in the batch's transaction, or in one of its own where the batch has none."""
        if connection.is_in_transaction():
            return await self._look(connection, begin)
        async with connection.transaction():
            return await self._look(connection, begin)

    async def _look(self, connection: Connection, begin: Begin) -> Begun:
        """The key is known: what may this call do?"""
        known = attempt_of(await self._known(connection, begin))
        verdict = self._admit(known, begin)
        if verdict is Admission.LAPSED:
            after = LAPSES[known.state]
            await connection.execute(LAPSE_ONE, known.claim, known.attempt, after, known.state)
            known = lapsed(known, after)
            verdict = self._admit(known, begin)
        if verdict is not Admission.REPEAT:
            return Begun(known, verdict)
        attempt = await connection.fetchval(
            INSERT_NEXT,
            known.claim,
            self.owner,
            interval(self.lease_s),
            *begin_columns(begin)[7:],
        )
        return Begun(self._claimed(known.claim, attempt, begin), None)

    async def _known(self, connection: Connection, begin: Begin) -> asyncpg.Record:
        """The newest attempt of a key, locked."""
        asked = (begin.org, begin.principal, begin.method, begin.key)
        row: asyncpg.Record | None = await connection.fetchrow(SELECT_KNOWN, *asked)
        if row is None:
            # Another replica began the next attempt while the statement waited for the claim's
            # lock. The lock is ours now, and a second statement sees that attempt.
            row = await connection.fetchrow(SELECT_KNOWN, *asked)
        assert row is not None  # noqa: S101 - the insert conflicted and claims are never deleted
        return row

    def _admit(self, known: Attempt, begin: Begin) -> Admission:
        attempt = (known.claim, known.attempt)
        worked_on = attempt in self._live or attempt in self._tentative.values()
        abandoned = known.owner == self.owner and not worked_on
        return admit(known, begin.body_digest, idempotent=begin.idempotent, abandoned=abandoned)

    def _claimed(self, claim: str, attempt: int, begin: Begin) -> Attempt:
        self._tentative[begin.claim] = (claim, attempt)
        return Attempt(
            claim,
            attempt,
            State.CLAIMED,
            self.owner,
            self.lease_s,
            begin.body_digest,
            subject=begin.subject,
        )

    async def _change_all(self, connection: Connection, changes: Sequence[Change]) -> set[Change]:
        changed: set[Change] = set()
        for kind, statement in CHANGE_STATEMENTS.items():
            some = sorted(
                (change for change in changes if isinstance(change, kind)),
                key=lambda change: (change.claim, change.attempt),
            )
            if not some:
                continue
            columns = list(zip(*(change_values(change) for change in some), strict=True))
            rows = await connection.fetch(statement, *columns, *self._extra(kind))
            done = {(str(row["claim"]), row["attempt"]) for row in rows}
            changed |= {change for change in some if (change.claim, change.attempt) in done}
        return changed

    def _extra(self, kind: type[Change]) -> tuple[str, ...] | tuple[Any, ...]:
        if kind in {Start, Renew}:
            return (self.owner, interval(self.lease_s))
        return () if kind is Close else (self.owner,)


def _opening(steps: Sequence[Step]) -> str:
    """Steps of one kind are one statement, and so a transaction by themselves."""
    return "" if len({type(step) for step in steps}) == 1 else "BEGIN"
