"""`CheckLedger`: the whole ledger against the claims, then against itself, as a stream of steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final, TypeAlias

from remit import telemetry
from remit.api.cost.v1 import cost_report_service_pb2, ledger_difference_pb2
from remit.cost.checks import stored_differences
from remit.cost.ledger_walk import LedgerWalk
from remit.cost.messages import key_violations
from remit.cost.paging import decode_texts, encode_token
from remit.cost.reconciliation import NEXT_STEPS, Difference
from remit.cost.reservations import ReservationKey
from remit.postgres import Database
from remit.rpc.errors import RemitError, Violation, invalid_request

HEARTBEAT_S: Final = 10.0
"""Longest silence of the stream; its contract allows 30 s."""
MOST_FAULTS: Final = 200
"""Wrong balances, and wrong reservations, that are told at most, in one message."""
MOST_LOGGED: Final = 1000
"""Differences of one check that go into the log; after a restore there may be millions."""
_WALK_PERCENT: Final = 90
_LIST: Final = "ledger check"
_COUNTED_EXACTLY: Final = 100_000
_ESTIMATE: Final = "SELECT reltuples::bigint FROM pg_class WHERE oid = 'reservations'::regclass"
_COUNT: Final = "SELECT count(*) FROM reservations"

Step = cost_report_service_pb2.CheckLedgerResponse
Steps: TypeAlias = AsyncGenerator[Step]

log = telemetry.logger(__name__)


class LedgerCheck:
    """Runs checks. It only reads: what is wrong is told, and nothing is closed."""

    def __init__(self, database: Database, walk: LedgerWalk, *, books_timeout_s: float) -> None:
        self._database = database
        self._walk = walk
        self._books_timeout_s = books_timeout_s

    async def run(self, org: str, resume_token: str) -> Steps:
        """The steps of a check for somebody of `org`; each counts for itself.

        Raises INVALID_REQUEST for another token, DEPENDENCY_UNAVAILABLE when a part is away: what
        could not be looked at is not said to be right.
        """
        sequence = 0
        async for step in self._steps(org, resume_token):
            sequence += 1
            step.sequence = sequence
            yield step

    async def _steps(self, org: str, resume_token: str) -> Steps:
        after, checked = _place(resume_token)
        total = await self._total()
        token, logged = resume_token, 0
        async for step in self._walk.steps(after):
            checked += step.reservations
            if step.after is not None:
                token = encode_token((*map(str, step.after), str(checked)), _LIST)
            logged += report_most(step.differences, MOST_LOGGED - logged)
            message = _told(org, step.differences)
            message.percent = min(_WALK_PERCENT * checked // max(total, checked, 1), _WALK_PERCENT)
            message.reservations, message.attempts = step.reservations, step.attempts
            message.resolved_late = step.resolved_late
            message.resume_token = token
            yield message
        books = asyncio.create_task(self._books(), name="ledger-books")
        try:
            while not (await asyncio.wait({books}, timeout=HEARTBEAT_S))[0]:
                yield Step(percent=_WALK_PERCENT, resume_token=token)
            faults = await books
        finally:
            books.cancel()
        report_most(faults, MOST_LOGGED - logged)
        message = _told(org, faults)
        message.percent, message.resume_token = 100, token
        yield message

    async def _books(self) -> list[Difference]:
        return await stored_differences(
            self._database, limit=MOST_FAULTS, timeout_s=self._books_timeout_s
        )

    async def _total(self) -> int:
        """About how many reservations there are: exact counts of large tables take long."""
        estimate: int = await self._database.fetchval(_ESTIMATE)
        if estimate >= _COUNTED_EXACTLY:
            return estimate
        count: int = await self._database.fetchval(_COUNT)
        return count


def report(found: Difference) -> None:
    """Says a difference in the log, where the operator of all orgs finds it."""
    log.error(
        "ledger_differs",
        kind=found.kind.name,
        claim=found.claim,
        attempt=found.attempt,
        area=found.service,
        account=found.account,
        explanation=found.explanation,
    )


def report_most(differences: Sequence[Difference], most: int) -> int:
    """Says the first of these; returns how many it said."""
    said = differences[:most]
    for found in said:
        report(found)
    return len(said)


def _told(org: str, differences: Sequence[Difference]) -> Step:
    """What somebody of `org` may know of these."""
    own = [found for found in differences if found.org == org]
    return Step(
        differences=[_message(found) for found in own],
        differences_elsewhere=len(differences) - len(own),
    )


def _message(found: Difference) -> ledger_difference_pb2.LedgerDifference:
    return ledger_difference_pb2.LedgerDifference(
        kind=ledger_difference_pb2.LedgerDifference.Kind.ValueType(found.kind),
        claim=found.claim,
        attempt=found.attempt,
        service=found.service,
        account=found.account,
        explanation=found.explanation,
        next_step=NEXT_STEPS[found.kind],
    )


def _place(token: str) -> tuple[ReservationKey | None, int]:
    """Where to go on, and how many reservations lie before. Raises INVALID_REQUEST."""
    fault = invalid_request([Violation("resume_token", "is not a token of a check of the ledger")])
    try:
        texts = decode_texts(token, _LIST, 3)
    except RemitError as error:
        raise fault from error
    if texts is None:
        return None, 0
    claim, attempt, checked = texts
    if not (attempt.isdecimal() and checked.isdecimal()):
        raise fault
    key = ReservationKey(claim, int(attempt))
    if key_violations(key):
        raise fault
    return key, int(checked)
