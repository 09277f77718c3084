"""Decisions, written behind: nobody who asks waits for it.

What was decided waits in a bounded queue and is stored in batches. Where the queue is full, or
audit, which has the keys, does not answer, decisions are dropped and counted: the record serves to
try policies and proves nothing. The proof of what was done is audit's log.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from remit import telemetry
from remit.policy.metrics import DECISIONS_DROPPED, DECISIONS_RECORDED
from remit.policy.recorded import Recorded, question_json
from remit.policy.rules import Decision, Question
from remit.postgres import NOT_STORABLE, Database
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.subject_keys import NONCE_BYTES, AreaKey, SubjectKeys, is_erased, key_id_of

SLOTS: Final = 32
_BATCH: Final = 1_000
_PAGE: Final = 2_000
_AT_ONCE: Final = 200
"""Rows that are opened before others have their turn: some milliseconds."""
_LOOK_S: Final = 3_600.0

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class Place:
    """Where reading goes on: before a decision, and how many may still be read."""

    before: datetime
    name: str
    left: int


@dataclass(frozen=True)
class Page:
    """Decisions, None for one whose subject was erased, and where reading goes on behind them."""

    decisions: list[Recorded | None]
    place: Place


class _Noted(NamedTuple):
    """A decision that waits to be stored."""

    decision_id: str
    question: Question
    time: datetime
    decision: Decision


class DecisionRecord:
    """Takes decisions down, gives them back, and forgets them."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        database: Database,
        keys: SubjectKeys,
        clock: Clock,
        ids: IdSource,
        *,
        retention_days: int,
        max_queue: int,
        interval_s: float,
    ) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock
        self._ids = ids
        self._retention_days = retention_days
        self._max_queue = max_queue
        self._interval_s = interval_s
        self._waiting: deque[_Noted] = deque()
        self._swept: float | None = None

    def note(self, name: str, question: Question, decision: Decision) -> None:
        """Take a decision down. Never waits; a full queue drops it."""
        if not self._retention_days:
            return
        if len(self._waiting) >= self._max_queue:
            DECISIONS_DROPPED.labels("QUEUE_FULL").inc()
            return
        time = question.time or self._clock.now()
        self._waiting.append(_Noted(name, question, time, decision))

    async def run(self) -> None:
        """Store what waits and empty what is too old, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.flush()
                await self._sweep_in_time()
            except RemitError as error:
                log.warning("decisions_not_recorded", reason=error.reason_name)

    async def flush(self) -> None:
        """Store everything that waits now.

        What cannot be stored, whatever the reason, is dropped alone: policy does not end of it.
        """
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                await self._keep(batch)
            except NOT_STORABLE:
                for each in batch:
                    await self._keep_or_drop(each)

    async def _keep_or_drop(self, each: _Noted) -> None:
        try:
            await self._keep([each])
        except NOT_STORABLE:
            DECISIONS_DROPPED.labels("INTERNAL").inc()
            log.exception("decision_not_storable", decision=each.decision_id)

    async def _keep(self, batch: Sequence[_Noted]) -> None:
        try:
            await self._store(batch)
        except RemitError as error:
            DECISIONS_DROPPED.labels(error.reason_name).inc(len(batch))
            raise
        DECISIONS_RECORDED.inc(len(batch))

    async def _store(self, batch: Sequence[_Noted]) -> None:
        rows = [await self._row(each) for each in batch]
        await self._database.execute(
            "INSERT INTO decisions (slot, decision_time, decision_id, subject, epoch, allowed,"
            " policy_ids, sealed_question)"
            " SELECT slot, decision_time, decision_id, subject, epoch, allowed,"
            " ARRAY(SELECT jsonb_array_elements_text(policy_ids::jsonb)), sealed_question"
            " FROM unnest($1::smallint[], $2::timestamptz[], $3::text[], $4::text[], $5::bigint[],"
            " $6::boolean[], $7::text[], $8::bytea[]) AS given (slot, decision_time, decision_id,"
            " subject, epoch, allowed, policy_ids, sealed_question) ON CONFLICT DO NOTHING",
            *(list(column) for column in zip(*rows, strict=True)),
        )

    async def _row(self, each: _Noted) -> tuple[object, ...]:
        subject = each.question.principal.user
        key = await self._keys.for_writing(subject)
        sealed = key.seal(
            question_json(each.question),
            bound_to=each.decision_id.encode(),
            nonce=self._ids.token_bytes(NONCE_BYTES),
        )
        return (
            slot_of(each.time),
            each.time,
            each.decision_id,
            subject,
            each.decision.epoch,
            each.decision.allow,
            json.dumps(each.decision.policy_ids),
            sealed,
        )

    async def read(self, start: datetime, place: Place) -> AsyncIterator[Page]:
        """Yield decisions from `start` on and before `place`, the newest first.

        One whose subject was erased is None.
        """
        now = self._clock.now()
        start = max(start, now - timedelta(days=self._retention_days))
        for day in range(-1, self._retention_days + 1):
            slot = slot_of(now - timedelta(days=day))
            while place.left > 0 and (rows := await self._rows(slot, start, place)):
                last = rows[-1]
                place = Place(last["decision_time"], last["decision_id"], place.left - len(rows))
                yield Page(await self._opened(rows), place)

    async def _rows(self, slot: int, start: datetime, place: Place) -> list[asyncpg.Record]:
        """The next rows of a day, in the order of its index.

        A sort would take all that is left of the day for each page, and the statistics of a day
        that fills up make it look cheap.
        """
        async with self._database.transaction() as connection:
            await connection.execute("SET LOCAL enable_sort = off")
            await connection.execute("SET LOCAL enable_bitmapscan = off")
            return await connection.fetch(
                "SELECT * FROM decisions WHERE slot = $1 AND decision_time >= $2"
                " AND (decision_time, decision_id) < ($3, $4)"
                " ORDER BY decision_time DESC, decision_id DESC LIMIT $5",
                slot,
                start,
                place.before,
                place.name,
                min(_PAGE, place.left),
            )

    async def _opened(self, rows: Sequence[asyncpg.Record]) -> list[Recorded | None]:
        """Open rows with the keys of their subjects, which are asked for together."""
        keys: dict[tuple[str, bytes], AreaKey | None] = {}
        missing: set[tuple[str, bytes]] = set()
        for row in rows:
            wanted = row["subject"], key_id_of(row["sealed_question"])
            key = self._keys.remembered(wanted[0])
            if key is not None and key.key_id == wanted[1]:
                keys[wanted] = key
            else:
                missing.add(wanted)
        found = await asyncio.gather(*(self._key(*each) for each in missing))
        keys |= zip(missing, found, strict=True)
        decisions: list[Recorded | None] = []
        for number, row in enumerate(rows):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # whoever waits for a decision goes first
            key = keys[row["subject"], key_id_of(row["sealed_question"])]
            decisions.append(None if key is None else _recorded(row, key))
        return decisions

    async def _key(self, subject: str, key_id: bytes) -> AreaKey | None:
        try:
            return await self._keys.for_reading(subject, key_id)
        except RemitError as error:
            if is_erased(error):
                return None
            raise

    async def _sweep_in_time(self) -> None:
        now = self._clock.monotonic()
        if self._swept is None or now - self._swept >= _LOOK_S:
            await self.sweep()
            self._swept = now

    async def sweep(self) -> None:
        """Empty the partitions of days that are older than is kept."""
        today = self._clock.now()
        kept = {slot_of(today - timedelta(days=n)) for n in range(-1, self._retention_days + 1)}
        for slot in sorted(set(range(SLOTS)) - kept):
            table = f"decisions_{slot}"
            if await self._database.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table})"):  # noqa: S608 - a number
                await self._database.execute(f"TRUNCATE {table}")
                log.info("decisions_forgotten", slot=slot)


def _recorded(row: asyncpg.Record, key: AreaKey) -> Recorded:
    return Recorded(
        row["decision_id"],
        key.open(row["sealed_question"], bound_to=row["decision_id"].encode()),
        row["decision_time"],
        row["allowed"],
        tuple(row["policy_ids"]),
        row["epoch"],
    )


def slot_of(time: datetime) -> int:
    """The partition of a day, in UTC."""
    return time.astimezone(UTC).date().toordinal() % SLOTS
