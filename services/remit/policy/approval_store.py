"""Approvals in the database: asked for, decided, used once, lapsed. Every change is recorded.

Each change takes one advisory lock, the next sequence, and writes its line for the audit log in the
same commit. What a row may become is decided here under that lock, so two replicas never disagree.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import asyncpg

from remit import names
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.approvals import ExactAction
from remit.idempotency import AdminRequest, known_change, remember
from remit.policy.approval_metrics import count_change
from remit.policy.approval_rows import (
    COLUMNS,
    OPEN,
    ApprovalRow,
    Asked,
    State,
    Vote,
    row_of,
    rules_text,
    vote_of,
)
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource

_LOCK: Final = 46
_SWEEP_LIMIT: Final = 256

ASKED: Final = "approvals.ask"
DECIDED: Final = "approvals.decide"
USED: Final = "approvals.use"
EXPIRED: Final = "approvals.expire"
WITHDRAWN: Final = "approvals.withdraw"


class ApprovalStore:
    """Rows in, rows out. Of an org `max_open` wait for people, or for their use, at most."""

    def __init__(self, database: Database, ids: IdSource, *, max_open: int) -> None:
        self.database = database
        self._ids = ids
        self._max_open = max_open

    # ------------------------------------------------------------------------------ of a claim

    async def ask(self, asked: Asked) -> ApprovalRow:
        """The approval of this exact action of a claim: new, as it stands, or USED by this attempt.

        One that was given is used by compare-and-set, by this attempt or a later one of the same
        claim. What the claim asked before, with another digest, is withdrawn.
        Raises OVERLOADED if too many of the org are open.
        """
        async with self._change() as change:
            row = await self._of_digest(change.connection, asked)
            if row is None:
                await self._withdraw(change, _OTHERS_OF_CLAIM, _uuid(asked), asked.digest)
                return await self._insert(change, asked)
            if row.state in OPEN and row.is_late:
                return await self._move(change, row, State.EXPIRED, EXPIRED)
            if _may_use(row, asked.attempt):
                return await self._use(change, row, asked)
            return row

    async def continues(self, claim: str, attempt: int, action_digest: bytes) -> bool:
        """Whether this attempt of a claim was allowed by an approval of this exact action."""
        return bool(
            await self.database.fetchval(
                "SELECT EXISTS (SELECT FROM approvals WHERE claim = $1 AND used_by_attempt = $2"
                " AND action_digest = $3 AND state = 'USED')",
                UUID(names.parse("claim", claim)[0]),
                attempt,
                action_digest,
            )
        )

    async def withdraw_of_run(self, run: str) -> int:
        """Withdraws what a run still asks for; returns how many there were."""
        async with self._change() as change:
            return await self._withdraw(change, _OPEN_OF_RUN, run)

    # ------------------------------------------------------------------------------- of people

    async def vote(
        self,
        approval: str,
        vote: Vote,
        request: AdminRequest,
        refusal: Callable[[ApprovalRow], RemitError | None],
    ) -> None:
        """Keeps what somebody said, to be counted once it is recorded.

        Raises what `refusal` says of the approval as it is now, APPROVAL_ALREADY_GIVEN if they
        said something before, KEY_REUSED.
        """
        async with self._change() as change:
            connection = change.connection
            if await known_change(connection, request) is not None:
                return
            error = refusal(await _locked(connection, approval))
            if error is not None:
                raise error
            kept = await connection.fetchval(
                "INSERT INTO approval_votes (approval, subject, verdict, reason, words, request_id)"
                " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING subject",
                UUID(approval),
                vote.subject,
                vote.verdict,
                vote.reason,
                sorted(vote.words),
                vote.request_id,
            )
            if kept is None:
                raise already_given(vote.subject, approval)
            await remember(connection, request, b"")

    async def settle(self, approval: str) -> ApprovalRow:
        """What becomes of an approval by the votes that are recorded, and by its time."""
        async with self._change() as change:
            row = await _locked(change.connection, approval)
            if row.state in OPEN and row.is_late:
                return await self._move(change, row, State.EXPIRED, EXPIRED)
            if row.state is not State.PENDING:
                return row
            if row.denial is not None:
                return await self._move(change, row, State.DENIED, "")
            return await self._move(change, row, State.APPROVED, "") if row.is_met else row

    async def keep_refusal(self, request: AdminRequest) -> None:
        """Notes for the audit log that a decision was refused."""
        async with self._change() as change:
            if await known_change(change.connection, request) is None:
                await remember(change.connection, request, b"")

    async def unsettled(self) -> list[str]:
        """Open approvals whose time has gone by, and pending ones that somebody voted about."""
        rows = await self.database.fetch(_UNSETTLED, _SWEEP_LIMIT)
        return [str(row["approval"]) for row in rows]

    # ---------------------------------------------------------------------------------- reading

    async def get(self, approval: str) -> ApprovalRow | None:
        """An approval; None if there is none."""
        found = await self.these([approval])
        return found[0] if found else None

    async def these(self, approvals: Sequence[str]) -> list[ApprovalRow]:
        """Those of these that there are."""
        return await self._read("approval = ANY($1::uuid[])", "approval", [*map(UUID, approvals)])

    async def page(
        self, org: str, seen_by: Seer, *, state: str, run: str, after: str, limit: int
    ) -> list[ApprovalRow]:
        """Approvals that somebody may see, the newest first, after one of them."""
        return await self._read(
            f"{_VISIBLE} AND ($4 = '' OR state = $4) AND ($5 = '' OR run = $5)"
            " AND ($6 = '' OR approval < $6::text::uuid)",
            "approval DESC",
            *seen_by.parameters(org),
            state,
            run,
            after,
            limit=limit,
        )

    async def changed(
        self, org: str, seen_by: Seer, *, after: int, through: int, pending_only: bool, limit: int
    ) -> list[ApprovalRow]:
        """Approvals that somebody may see and that changed last within these sequences."""
        return await self._read(
            f"{_VISIBLE} AND sequence > $4 AND sequence <= $5 AND (NOT $6 OR state = 'PENDING')",
            "sequence",
            *seen_by.parameters(org),
            after,
            through,
            pending_only,
            limit=limit,
        )

    async def newest_sequence(self) -> int:
        """Sequence of the newest change; 0 before the first."""
        return int(await self.database.fetchval("SELECT coalesce(max(sequence), 0) FROM approvals"))

    async def _read(
        self, where: str, order: str, *parameters: object, limit: int | None = None
    ) -> list[ApprovalRow]:
        bounded = "" if limit is None else f" LIMIT {int(limit)}"
        async with self.database.acquire() as connection:
            rows = await connection.fetch(
                f"SELECT {COLUMNS} FROM approvals WHERE {where} ORDER BY {order}{bounded}",  # noqa: S608 - constants of this module
                *parameters,
            )
            return await _with_votes(connection, rows)

    # --------------------------------------------------------------------------------- changing

    @contextlib.asynccontextmanager
    async def _change(self) -> AsyncIterator[_Change]:
        """A transaction in which nobody else changes an approval: sequences commit in order."""
        async with self.database.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            change = _Change(connection)
            yield change
        for row in change.came_to:
            count_change(row)

    async def _of_digest(self, connection: Connection, asked: Asked) -> ApprovalRow | None:
        rows = await connection.fetch(
            f"SELECT {COLUMNS} FROM approvals WHERE claim = $1 AND digest = $2",  # noqa: S608
            _uuid(asked),
            asked.digest,
        )
        found = await _with_votes(connection, rows)
        return found[0] if found else None

    async def _insert(self, change: _Change, asked: Asked) -> ApprovalRow:
        connection = change.connection
        count = await connection.fetchval(
            "SELECT count(*) FROM approvals WHERE org = $1 AND state IN ('PENDING', 'APPROVED')",
            asked.org,
        )
        if count >= self._max_open:
            raise RemitError(
                reasons.ERROR_REASON_OVERLOADED,
                f"{asked.org} has {count} open approvals, the limit",
            )
        action = asked.action
        row = await connection.fetchrow(
            _INSERT,
            UUID(self._ids.uuid7()),
            asked.org,
            _uuid(asked),
            asked.digest,
            asked.action_digest,
            action.subject,
            *(getattr(action, name) for name in _OF_ACTION),
            list(asked.policy_ids),
            asked.policy_reason,
            asked.policy_epoch,
            rules_text(asked.terms.rules),
            list(asked.terms.approvers),
            asked.arguments,
            float(asked.terms.expiry_s),
        )
        assert row is not None  # noqa: S101 - an insert of one row returns it
        made = row_of(row)
        change.came_to.append(made)
        await _record(connection, made, ASKED, trace_id=asked.trace_id)
        return made

    async def _use(self, change: _Change, row: ApprovalRow, asked: Asked) -> ApprovalRow:
        if row.used_by_attempt == asked.attempt:
            return row
        used = await _moved(change, row, State.USED, asked.attempt)
        key, trace_id = f"{asked.attempt}", asked.trace_id
        await _record(change.connection, used, USED, key=key, trace_id=trace_id)
        return used

    async def _move(
        self, change: _Change, row: ApprovalRow, state: State, method: str
    ) -> ApprovalRow:
        moved = await _moved(change, row, state, None)
        if method:
            await _record(change.connection, moved, method)
        return moved

    async def _withdraw(self, change: _Change, where: str, *parameters: object) -> int:
        rows = await change.connection.fetch(
            f"SELECT {COLUMNS} FROM approvals WHERE {where}",  # noqa: S608 - constants below
            *parameters,
        )
        for row in await _with_votes(change.connection, rows):
            await self._move(change, row, State.WITHDRAWN, WITHDRAWN)
        return len(rows)


@dataclass(frozen=True)
class _Change:
    """A transaction, and the approvals that come to another state with it."""

    connection: Connection
    came_to: list[ApprovalRow] = field(default_factory=list)


class Seer:
    """Who looks: what they asked for, what names them, and for an admin everything."""

    def __init__(self, subject: str, words: frozenset[str], *, sees_all: bool) -> None:
        self._subject = subject
        self._words = words
        self._sees_all = sees_all

    def parameters(self, org: str) -> tuple[object, ...]:
        """$1 to $3 of what is visible."""
        asked = list(self._words)
        return (org, "" if self._sees_all else self._subject, asked)

    def sees(self, row: ApprovalRow) -> bool:
        """Whether an approval of their org concerns them."""
        asked = {who for rule in row.rules for who in rule.approvers}
        return self._sees_all or row.requester == self._subject or not asked.isdisjoint(self._words)


def already_given(subject: str, approval: str) -> RemitError:
    """APPROVAL_ALREADY_GIVEN about a person."""
    return RemitError(
        reasons.ERROR_REASON_APPROVAL_ALREADY_GIVEN,
        f"{subject} has decided about approvals/{approval} already",
    )


def _may_use(row: ApprovalRow, attempt: int) -> bool:
    """Given and in time; one that was used is its claim's, for this attempt or a later one."""
    if row.is_late:
        # Asked again by the attempt that used it: the answer of then.
        return row.state is State.USED and row.used_by_attempt == attempt
    if row.state is State.USED:
        return row.used_by_attempt is not None and row.used_by_attempt <= attempt
    return row.state is State.APPROVED


async def _locked(connection: Connection, approval: str) -> ApprovalRow:
    rows = await connection.fetch(
        f"SELECT {COLUMNS} FROM approvals WHERE approval = $1",  # noqa: S608 - constants
        UUID(approval),
    )
    return (await _with_votes(connection, rows))[0]


async def _with_votes(connection: Connection, rows: Sequence[asyncpg.Record]) -> list[ApprovalRow]:
    votes: dict[UUID, list[Vote]] = {row["approval"]: [] for row in rows}
    for vote in await connection.fetch(_VOTES, list(votes)) if votes else []:
        votes[vote["approval"]].append(vote_of(vote))
    return [row_of(row, votes[row["approval"]]) for row in rows]


async def _moved(
    change: _Change, row: ApprovalRow, state: State, attempt: int | None
) -> ApprovalRow:
    found = await change.connection.fetchrow(
        _MOVE, UUID(row.approval), row.sequence, state, attempt
    )
    assert found is not None  # noqa: S101 - nobody else changes one under the lock
    moved = row_of(found, row.votes)
    if moved.state is not row.state:
        change.came_to.append(moved)
    return moved


async def _record(
    connection: Connection, row: ApprovalRow, method: str, *, key: str = "", trace_id: str = ""
) -> None:
    """Writes a change's line for the audit log, once."""
    detail = json.dumps(facts_of(row), sort_keys=True)
    request = AdminRequest(
        subject=row.requester,
        method=method,
        request_id=f"{row.approval}-{key}" if key else row.approval,
        org=row.org,
        body_digest=row.digest,
        action=method,
        resource=row.name,
        detail=detail,
        trace_id=trace_id,
    )
    if await known_change(connection, request) is None:
        await remember(connection, request, b"")


def facts_of(row: ApprovalRow) -> Mapping[str, object]:
    """What the audit log says of an approval; never the arguments themselves."""
    action = row.action
    return {
        "action": action.action,
        "resource": action.resource,
        "claim": action.claim,
        "run": action.run,
        "agent": action.agent,
        "arguments_sha256": action.arguments_digest.hex(),
        "definition_sha256": action.definition_digest.hex(),
        "cost_bound_nanos": action.cost_bound_nanos,
        "digest": row.digest.hex(),
        "policy_ids": list(row.policy_ids),
        "policy_epoch": row.policy_epoch,
        "state": row.state,
        "attempt": row.used_by_attempt,
        **({"repeats_claim": action.repeats_claim} if action.repeats_claim else {}),
    }


def _uuid(asked: Asked) -> UUID:
    return UUID(names.parse("claim", asked.action.claim)[0])


_OF_ACTION: Final = tuple(
    name for name in ExactAction.__dataclass_fields__ if name not in {"claim", "subject"}
)
_NEXT: Final = "(SELECT coalesce(max(sequence), 0) + 1 FROM approvals)"
_AFTER_ACTION: Final = 7 + len(_OF_ACTION)
_INSERT: Final = f"""
INSERT INTO approvals (approval, sequence, state, org, claim, digest, action_digest, requester,
    {", ".join(_OF_ACTION)}, policy_ids, policy_reason, policy_epoch, rules, approvers, arguments,
    expire_time)
VALUES ($1, {_NEXT}, 'PENDING', $2, $3, $4, $5, $6,
    {", ".join(f"${7 + place}" for place in range(len(_OF_ACTION)))},
    {", ".join(f"${_AFTER_ACTION + place}" for place in range(6))},
    clock_timestamp() + make_interval(secs => ${_AFTER_ACTION + 6}::float8))
RETURNING {COLUMNS}
"""  # noqa: S608 - made of constants
_MOVE: Final = f"""
UPDATE approvals SET state = $3, sequence = {_NEXT}, used_by_attempt = $4,
    end_time = CASE WHEN $3 IN ('PENDING', 'APPROVED') THEN NULL
                    ELSE coalesce(end_time, clock_timestamp()) END,
    arguments = CASE WHEN $3 IN ('PENDING', 'APPROVED') THEN arguments END
WHERE approval = $1 AND sequence = $2
RETURNING {COLUMNS}
"""  # noqa: S608 - made of constants
# A vote counts once the request that brought it is in the audit log.
_VOTES: Final = f"""
SELECT v.approval, v.subject, v.verdict, v.reason, v.words, v.request_id, v.create_time
FROM approval_votes v JOIN admin_requests r
    ON r.subject = v.subject AND r.method = '{DECIDED}' AND r.request_id = v.request_id
WHERE v.approval = ANY($1::uuid[]) AND r.record_time IS NOT NULL
ORDER BY v.create_time, v.subject
"""  # noqa: S608 - made of constants
_VISIBLE: Final = "org = $1 AND ($2 = '' OR requester = $2 OR approvers && $3::text[])"
_OTHERS_OF_CLAIM: Final = "claim = $1 AND digest <> $2 AND state IN ('PENDING', 'APPROVED')"
_OPEN_OF_RUN: Final = "run = $1 AND state IN ('PENDING', 'APPROVED')"
_UNSETTLED: Final = """
SELECT approval FROM approvals a
WHERE state IN ('PENDING', 'APPROVED') AND (
    expire_time <= clock_timestamp()
    OR (state = 'PENDING' AND EXISTS (
        SELECT FROM approval_votes v WHERE v.approval = a.approval
    ))
)
ORDER BY expire_time, approval LIMIT $1
"""
