"""The claims in the database. Every change is a compare-and-set; many share one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg

from remit.effects.claims import (
    LAPSES,
    OPEN_STATES,
    Admission,
    Attempt,
    Ended,
    Outcome,
    State,
    admit,
)
from remit.postgres import Connection, Database, GroupCommit
from remit.rpc.errors import RemitError

_INSERT_FRESH: Final = """
WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[],
                         $7::text[], $8::text[], $9::text[], $10::text[], $11::text[])
        AS t (claim, org, principal, method, key, body_digest,
              subject, run, action, resource, trace_id)
), fresh AS (
    INSERT INTO effect_claims (claim, org, principal, method, key, body_digest, attempt)
    SELECT claim, org, principal, method, key, body_digest, 1 FROM asked
    ORDER BY org, principal, method, key
    ON CONFLICT DO NOTHING
    RETURNING claim
)
INSERT INTO effect_attempts (claim, attempt, state, owner, lease_expires,
                             subject, run, action, resource, trace_id)
SELECT claim, 1, 'CLAIMED', $12, clock_timestamp() + $13::interval,
       subject, run, action, resource, trace_id
FROM asked JOIN fresh USING (claim)
RETURNING claim
"""

_SELECT_KNOWN: Final = """
SELECT c.claim, c.attempt, c.body_digest, a.state, a.owner, a.intent_leaf, a.outcome, a.result,
       a.error, a.used, a.cost_nanos, a.repeatable,
       extract(epoch FROM a.lease_expires - clock_timestamp())::float8 AS lease_left_s
FROM effect_claims c JOIN effect_attempts a USING (claim, attempt)
WHERE c.org = $1 AND c.principal = $2 AND c.method = $3 AND c.key = $4
FOR UPDATE OF c, a
"""

_INSERT_NEXT: Final = """
WITH next AS (
    UPDATE effect_claims SET attempt = attempt + 1 WHERE claim = $1 RETURNING claim, attempt
)
INSERT INTO effect_attempts (claim, attempt, state, owner, lease_expires,
                             subject, run, action, resource, trace_id)
SELECT claim, attempt, 'CLAIMED', $2, clock_timestamp() + $3::interval, $4, $5, $6, $7, $8
FROM next
RETURNING attempt
"""

_START: Final = """
UPDATE effect_attempts a
SET state = 'STARTED', decision_id = t.decision_id, reservation = t.reservation,
    intent_leaf = t.intent_leaf, hold_nanos = t.hold_nanos, update_time = clock_timestamp(),
    lease_expires = clock_timestamp() + $8::interval
FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
    AS t (claim, attempt, decision_id, reservation, intent_leaf, hold_nanos)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.state = 'CLAIMED' AND a.owner = $7
RETURNING a.claim, a.attempt
"""

_FINISH: Final = """
UPDATE effect_attempts a
SET state = 'DONE', outcome = t.outcome, result = t.result, error = t.error, used = t.used,
    cost_nanos = t.cost_nanos, repeatable = t.repeatable, update_time = clock_timestamp(),
    closed_time = NULL
FROM unnest($1::uuid[], $2::int[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[],
            $7::bigint[], $8::bool[])
    AS t (claim, attempt, outcome, result, error, used, cost_nanos, repeatable)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.owner = $9
    AND a.state IN ('STARTED', 'IN_DOUBT')
RETURNING a.claim, a.attempt
"""

_REFUSE: Final = """
UPDATE effect_attempts a
SET state = 'REFUSED', outcome = 'REFUSED', error = t.error, update_time = clock_timestamp()
FROM unnest($1::uuid[], $2::int[], $3::bytea[]) AS t (claim, attempt, error)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.owner = $4
    AND a.state IN ('CLAIMED', 'STARTED')
RETURNING a.claim, a.attempt
"""

_CLOSE: Final = """
UPDATE effect_attempts a
SET closed_time = clock_timestamp(),
    state = CASE WHEN a.state = 'DONE' THEN 'CLOSED' ELSE a.state END
FROM unnest($1::uuid[], $2::int[], $3::text[]) AS t (claim, attempt, outcome)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.closed_time IS NULL
    AND a.outcome = t.outcome
RETURNING a.claim, a.attempt
"""

_RENEW: Final = """
UPDATE effect_attempts a SET lease_expires = clock_timestamp() + $4::interval
FROM unnest($1::uuid[], $2::int[]) AS t (claim, attempt)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.owner = $3
    AND a.state IN ('CLAIMED', 'STARTED')
RETURNING a.claim, a.attempt
"""

_LAPSE: Final = """
UPDATE effect_attempts
SET state = $2, outcome = $2, update_time = clock_timestamp()
WHERE (claim, attempt) IN (
    SELECT claim, attempt FROM effect_attempts
    WHERE state = $1 AND lease_expires < clock_timestamp()
        AND state IN ('CLAIMED', 'STARTED') -- or a generic plan could not use the index
    ORDER BY claim, attempt LIMIT $3 FOR UPDATE SKIP LOCKED
) AND state = $1
RETURNING claim
"""

_LAPSE_ONE: Final = """
UPDATE effect_attempts SET state = $3, outcome = $3, update_time = clock_timestamp()
WHERE claim = $1 AND attempt = $2 AND state = $4
"""

_SELECT_UNCLOSED: Final = """
SELECT c.org, a.claim, a.attempt, a.outcome, a.subject, a.run, a.action, a.resource, a.trace_id,
       a.decision_id, a.used, a.error, a.cost_nanos, a.update_time,
       CASE WHEN a.result <> '' THEN sha256(a.result) END AS result_digest
FROM effect_attempts a JOIN effect_claims c USING (claim)
WHERE a.outcome IS NOT NULL AND a.closed_time IS NULL
    AND a.update_time < clock_timestamp() - $1::interval
    AND (a.update_time, a.claim, a.attempt) > ($3::timestamptz, $4::uuid, $5::int)
ORDER BY a.update_time, a.claim, a.attempt LIMIT $2
"""

_BEFORE_THE_FIRST: Final = (datetime.min.replace(tzinfo=UTC), UUID(int=0), 0)


@dataclass(frozen=True)
class Begin:
    """Claim a key, or learn what it is."""

    claim: str
    org: str
    principal: str
    method: str
    key: str
    body_digest: bytes
    idempotent: bool
    subject: str
    run: str
    action: str
    resource: str
    trace_id: str


@dataclass(frozen=True)
class Begun:
    """What a Begin found: a new attempt of ours, or what another made of the key."""

    attempt: Attempt
    admission: Admission | None
    """None: the attempt is ours and CLAIMED."""


@dataclass(frozen=True)
class Start:
    """CLAIMED to STARTED, with all three permits."""

    claim: str
    attempt: int
    decision_id: str
    reservation: str
    intent_leaf: int
    hold_nanos: int


@dataclass(frozen=True)
class Finish:
    """STARTED (or, late, IN_DOUBT) to DONE."""

    claim: str
    attempt: int
    ended: Ended


@dataclass(frozen=True)
class Refuse:
    """CLAIMED (or STARTED, by the owner who did no I/O) to REFUSED."""

    claim: str
    attempt: int
    error: bytes


@dataclass(frozen=True)
class Close:
    """The attempt's hold and outcome are where they belong."""

    claim: str
    attempt: int
    outcome: Outcome


@dataclass(frozen=True)
class Renew:
    """Prolong the lease."""

    claim: str
    attempt: int


@dataclass(frozen=True)
class Unclosed:
    """An ended attempt whose hold or outcome is still due."""

    org: str
    claim: str
    attempt: int
    outcome: Outcome
    subject: str
    run: str
    action: str
    resource: str
    trace_id: str
    decision_id: str
    used: bytes
    error: bytes
    cost_nanos: int
    result_digest: bytes
    """SHA-256 over the result; empty if there is none."""
    end_time: datetime | None = None
    """When it ended, by the database's clock; the same at every closing."""


Change: TypeAlias = Start | Finish | Refuse | Close | Renew
Step: TypeAlias = Begin | Change


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
        self._database = database
        self.owner = owner
        self.lease_s = lease_s
        self._max_batch = max_batch
        self._swept = _BEFORE_THE_FIRST
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

    async def change(self, change: Change) -> bool:
        """Whether the compare-and-set took place."""
        return bool(await self._commits.submit(change))

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
        async with self._database.transaction() as connection:
            for before, after in LAPSES.items():
                rows = await connection.fetch(_LAPSE, before, after, self._max_batch)
                ended[after] = len(rows)
        return ended

    async def unclosed(self, older_than_s: float) -> list[Unclosed]:
        """The next ended attempts that wait to be closed for longer than that, the oldest first.

        Call after call comes past all of them, so that some that cannot be closed now do not keep
        the rest from being closed.
        """
        rows = await self._database.fetch(
            _SELECT_UNCLOSED, _interval(older_than_s), self._max_batch, *self._swept
        )
        self._swept = _BEFORE_THE_FIRST
        if len(rows) == self._max_batch:
            self._swept = (rows[-1]["update_time"], rows[-1]["claim"], rows[-1]["attempt"])
        return [_unclosed(row) for row in rows]

    async def _write(
        self, connection: Connection, steps: Sequence[Step]
    ) -> Sequence[Begun | bool | RemitError]:
        begun = await self._begin_all(connection, [s for s in steps if isinstance(s, Begin)])
        changed = await self._change_all(connection, [s for s in steps if not isinstance(s, Begin)])
        return [begun[s.claim] if isinstance(s, Begin) else s in changed for s in steps]

    async def _begin_all(self, connection: Connection, begins: Sequence[Begin]) -> dict[str, Begun]:
        if not begins:
            return {}
        columns = list(zip(*(_columns(begin) for begin in begins), strict=True))
        rows = await connection.fetch(_INSERT_FRESH, *columns, self.owner, _interval(self.lease_s))
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
        known = _attempt(await self._known(connection, begin))
        verdict = self._admit(known, begin)
        if verdict is Admission.LAPSED:
            after = LAPSES[known.state]
            await connection.execute(_LAPSE_ONE, known.claim, known.attempt, after, known.state)
            known = _lapsed(known, after)
            verdict = self._admit(known, begin)
        if verdict is not Admission.REPEAT:
            return Begun(known, verdict)
        attempt = await connection.fetchval(
            _INSERT_NEXT,
            known.claim,
            self.owner,
            _interval(self.lease_s),
            *_columns(begin)[6:],
        )
        return Begun(self._claimed(known.claim, attempt, begin), None)

    async def _known(self, connection: Connection, begin: Begin) -> asyncpg.Record:
        """The newest attempt of a key, locked."""
        asked = (begin.org, begin.principal, begin.method, begin.key)
        row: asyncpg.Record | None = await connection.fetchrow(_SELECT_KNOWN, *asked)
        if row is None:
            # Another replica began the next attempt while the statement waited for the claim's
            # lock. The lock is ours now, and a second statement sees that attempt.
            row = await connection.fetchrow(_SELECT_KNOWN, *asked)
        assert row is not None  # noqa: S101 - the insert conflicted and claims are never deleted
        return row

    def _admit(self, known: Attempt, begin: Begin) -> Admission:
        attempt = (known.claim, known.attempt)
        worked_on = attempt in self._live or attempt in self._tentative.values()
        abandoned = known.owner == self.owner and not worked_on
        return admit(known, begin.body_digest, idempotent=begin.idempotent, abandoned=abandoned)

    def _claimed(self, claim: str, attempt: int, begin: Begin) -> Attempt:
        self._tentative[begin.claim] = (claim, attempt)
        return Attempt(claim, attempt, State.CLAIMED, self.owner, self.lease_s, begin.body_digest)

    async def _change_all(self, connection: Connection, changes: Sequence[Change]) -> set[Change]:
        changed: set[Change] = set()
        for kind, statement in _STATEMENTS.items():
            some = sorted(
                (change for change in changes if isinstance(change, kind)),
                key=lambda change: (change.claim, change.attempt),
            )
            if not some:
                continue
            columns = list(zip(*(_values(change) for change in some), strict=True))
            rows = await connection.fetch(statement, *columns, *self._extra(kind))
            done = {(str(row["claim"]), row["attempt"]) for row in rows}
            changed |= {change for change in some if (change.claim, change.attempt) in done}
        return changed

    def _extra(self, kind: type[Change]) -> tuple[str, ...] | tuple[Any, ...]:
        if kind in {Start, Renew}:
            return (self.owner, _interval(self.lease_s))
        return () if kind is Close else (self.owner,)


def _opening(steps: Sequence[Step]) -> str:
    """Steps of one kind are one statement, and so a transaction by themselves."""
    return "" if len({type(step) for step in steps}) == 1 else "BEGIN"


_STATEMENTS: Final[dict[type[Any], str]] = {
    Start: _START,
    Finish: _FINISH,
    Refuse: _REFUSE,
    Close: _CLOSE,
    Renew: _RENEW,
}


def _columns(begin: Begin) -> tuple[Any, ...]:
    return (
        begin.claim,
        begin.org,
        begin.principal,
        begin.method,
        begin.key,
        begin.body_digest,
        begin.subject,
        begin.run,
        begin.action,
        begin.resource,
        begin.trace_id,
    )


def _values(change: Change) -> tuple[Any, ...]:
    match change:
        case Start(claim, attempt, decision_id, reservation, intent_leaf, hold_nanos):
            return (claim, attempt, decision_id, reservation, intent_leaf, hold_nanos)
        case Finish(claim, attempt, ended):
            return (
                claim,
                attempt,
                ended.outcome,
                ended.result,
                ended.error,
                ended.used,
                ended.cost_nanos,
                ended.repeatable,
            )
        case Refuse(claim, attempt, error):
            return (claim, attempt, error)
        case Close(claim, attempt, outcome):
            return (claim, attempt, outcome)
        case Renew(claim, attempt):
            return (claim, attempt)


def _attempt(row: Any) -> Attempt:  # noqa: ANN401 - asyncpg.Record
    state = State(row["state"])
    ended = None
    if state not in OPEN_STATES:
        ended = Ended(
            outcome=Outcome(row["outcome"]),
            result=row["result"] or b"",
            error=row["error"] or b"",
            used=row["used"] or b"",
            cost_nanos=row["cost_nanos"] or 0,
            repeatable=row["repeatable"],
        )
    return Attempt(
        claim=str(row["claim"]),
        attempt=row["attempt"],
        state=state,
        owner=row["owner"],
        lease_left_s=row["lease_left_s"],
        body_digest=row["body_digest"],
        intent_leaf=row["intent_leaf"],
        ended=ended,
    )


def _lapsed(known: Attempt, after: State) -> Attempt:
    ended = Ended(Outcome(after.value), b"", b"", b"", 0, repeatable=False)
    return Attempt(
        known.claim,
        known.attempt,
        after,
        known.owner,
        known.lease_left_s,
        known.body_digest,
        known.intent_leaf,
        ended,
    )


def _unclosed(row: Any) -> Unclosed:  # noqa: ANN401 - asyncpg.Record
    return Unclosed(
        org=row["org"],
        claim=str(row["claim"]),
        attempt=row["attempt"],
        outcome=Outcome(row["outcome"]),
        subject=row["subject"],
        run=row["run"],
        action=row["action"],
        resource=row["resource"],
        trace_id=row["trace_id"],
        decision_id=row["decision_id"] or "",
        used=row["used"] or b"",
        error=row["error"] or b"",
        cost_nanos=row["cost_nanos"] or 0,
        result_digest=row["result_digest"] or b"",
        end_time=row["update_time"],
    )


def _interval(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
