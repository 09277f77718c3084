"""Ways to the log within one process: sealing, hashing, tree and tables, as the service has them.

A pair is what an effect leaves in the log: its intent, for which it waits, and its outcome.
Unbatched is the same code with batches of one: the same sealing, hashes and nodes, over the same
pool. As its single writer's commits follow one another, eight writers on as many connections stand
beside it, whose commits PostgreSQL may flush together. A checkpoint is signed every second
throughout, as the service does, and read back from the tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from prometheus_client import generate_latest

from remit.api.audit.v1 import event_pb2
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.key_files import LogKeys, make_log_keys
from remit.audit.keyring import SubjectKeyring
from remit.audit.log import AuditLog
from remit.audit.sealing import Pseudonyms
from remit.audit.settings import AuditSettings
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.audit.wrapping import FileKeyWrapper
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.bench.counters import family
from tests.bench.ledger_ways import BATCHED, CONNECTIONS, EACH
from tests.bench.pairs import Look, Moment, Way
from tests.bench.payers import ITEM, USERS, Payer, payers

REPORTER: Final = "tools"
_WRITERS: Final = 8
_TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
_INTENT_DETAIL: Final = (
    '{"arguments_digest":"b94d27b9934d3eb92e9de2c3a3d6c6a2c1f9e2e6b1a1d0d0b5a1f2c3d4e5f607",'
    '"decision":"decisions/0198c0de-0000-7000-8000-0000000000aa"}'
)
_OUTCOME_DETAIL: Final = '{"cost_nanos":1000,"result_digest":"9f86d081884c7d659a2feaa0c55ad015"}'


def intent_of(payer: Payer, claim: str) -> event_pb2.Event:
    """What the gate records before an effect."""
    return _event(payer, claim, "intent", _INTENT_DETAIL, event_pb2.EVENT_KIND_INTENT)


def outcome_of(payer: Payer, claim: str) -> event_pb2.Event:
    """What it records after it."""
    event = _event(payer, claim, "succeeded", _OUTCOME_DETAIL, event_pb2.EVENT_KIND_OUTCOME)
    event.outcome = event_pb2.OUTCOME_SUCCEEDED
    return event


def _event(
    payer: Payer, claim: str, what: str, detail: str, kind: event_pb2.EventKind.ValueType
) -> event_pb2.Event:
    event = event_pb2.Event(
        event_id=f"{claim.partition('/')[2]}-1-{what}",
        kind=kind,
        org=payer.org,
        subject=payer.subject,
        action="tools.call",
        resource=ITEM,
        run=payer.run,
        claim=claim,
        attempt=1,
        trace_id=_TRACE,
        detail_json=detail,
    )
    event.event_time.FromDatetime(datetime.now(UTC))
    return event


class Effects:
    """Whose outcome is due: a claim is told with its payer once, at its beginning."""

    def __init__(self) -> None:
        self._payers: dict[str, Payer] = {}

    def began(self, payer: Payer, claim: str) -> event_pb2.Event:
        """The intent of a claim."""
        self._payers[claim] = payer
        return intent_of(payer, claim)

    def ended(self, claim: str) -> event_pb2.Event:
        """The outcome of a claim."""
        return outcome_of(self._payers.pop(claim), claim)


class LogWay:
    """The log, called as its service calls it; several take turns."""

    def __init__(self, logs: Sequence[AuditLog]) -> None:
        self._next = itertools.cycle(logs)
        self._effects = Effects()

    async def reserve(self, payer: Payer, claim: str) -> None:
        """Appends the intent. Raises RemitError."""
        await self._append(self._effects.began(payer, claim))

    async def settle(self, claim: str) -> None:
        """Appends the outcome. Raises RemitError."""
        await self._append(self._effects.ended(claim))

    async def _append(self, event: event_pb2.Event) -> None:
        (place,) = await next(self._next).append([event], REPORTER)
        if isinstance(place, RemitError):
            raise place


class Logs:
    """Makes logs over one pair of databases."""

    def __init__(self, keys: LogKeys, keys_database: Database, settings: AuditSettings) -> None:
        self.keys = keys
        self._settings = settings
        self._clock = SystemClock()
        self._ids = SystemIds(self._clock)
        self._keyring = SubjectKeyring(
            keys_database,
            FileKeyWrapper(keys.master, self._ids),
            clock=self._clock,
            ids=self._ids,
            cache_size=settings.subject_key_cache_size,
            cache_ttl_s=settings.subject_key_cache_s,
        )

    async def know(self, acting: Sequence[Payer]) -> None:
        """Make the keys of whoever acts, and remember them: that is done once for each."""
        pseudonyms = Pseudonyms(self.keys.pseudonym)
        await self._keyring.for_writing({pseudonyms.of(payer.subject) for payer in acting})

    def log(self, database: Database, max_batch: int) -> AuditLog:
        """A log that commits so many events at once at the most."""
        store = LogStore(database, max_batch=max_batch, max_queue=self._settings.max_queue)
        return AuditLog(store, self._keyring, Pseudonyms(self.keys.pseudonym), self._ids)

    def signer(self, database: Database, log: AuditLog) -> CheckpointSigner:
        """Signs checkpoints of it, as often as the service does."""
        keys = SigningKeys(self.keys.signer, self.keys.rotations)
        interval_ms = self._settings.checkpoint_interval_ms
        return CheckpointSigner(database, log.store, keys, interval_ms=interval_ms)


@contextlib.asynccontextmanager
async def logs(keys_dsn: str, folder: Path) -> AsyncIterator[Logs]:
    """With keys of its own in a folder."""
    settings = AuditSettings.load(keys_dir=folder / "keys")
    async with Database.open(keys_dsn, pool_size=settings.pool_size) as keys_database:
        yield Logs(make_log_keys(folder / "keys"), keys_database, settings)


@contextlib.asynccontextmanager
async def store_ways(dsn: str, made: Logs) -> AsyncIterator[Mapping[str, Way]]:
    """The ways to the log, of one database."""
    settings = AuditSettings.load()
    async with (
        Database.open(dsn, pool_size=settings.pool_size) as database,
        Database.open(dsn, pool_size=2 * _WRITERS) as wide,
    ):
        batched = made.log(database, settings.max_batch)
        await batched.store.prepare_partitions()
        await made.know(payers(USERS))
        async with working(made.signer(database, batched).run):
            yield {
                EACH: LogWay([made.log(database, 1)]),
                CONNECTIONS: LogWay([made.log(wide, 1) for _ in range(_WRITERS)]),
                BATCHED: LogWay([batched]),
            }


@contextlib.asynccontextmanager
async def working(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs what runs until cancelled."""
    task = asyncio.ensure_future(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def look_at(postgres: int) -> Look:
    """Looks at this process, which commits, and at PostgreSQL."""

    async def look() -> Moment:
        parts = {"log": [os.getpid()], "postgres": family(postgres)}
        return Moment.now(parts, (await asyncio.to_thread(generate_latest)).decode())

    return look
