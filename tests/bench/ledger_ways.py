"""Ways to the ledger within one process: its decisions over dictionaries, and its store.

Unbatched is the same code with batches of one. Where that has a single writer, its commits follow
one another; so the store is measured as well with a writer for each of several connections, whose
commits PostgreSQL itself may flush together.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import uuid4

from prometheus_client import generate_latest

from remit.cost.reservations import Price, ReservationKey, Reserve, Settle, Usage
from remit.cost.settings import CostSettings
from remit.cost.store import LedgerStore
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from tests.bench.counters import family
from tests.bench.pairs import BOUND_CALLS, USED_CALLS, Look, Moment, Way, latencies
from tests.bench.payers import ITEM, KINDS, Payer, limits, payers
from tests.cost.worlds import DictLedger

EACH = "each"
CONNECTIONS = "connections"
BATCHED = "batched"
_SERVICE = "tools"
_PRICE = Price(version="b" * 64, source="file", call_nanos=1_000)
_WRITERS = 8


def reserve_of(payer: Payer, claim: str) -> Reserve:
    """The operation of one effect."""
    return Reserve(
        key=ReservationKey(claim, 1),
        service=_SERVICE,
        account=payer.account,
        item=ITEM,
        price=_PRICE,
        bound=Usage(calls=BOUND_CALLS),
        own_limit_nanos=None,
        body_digest=bytes(32),
    )


def settle_of(claim: str) -> Settle:
    """Its end."""
    return Settle(ReservationKey(claim, 1), _SERVICE, Usage(calls=USED_CALLS))


# ------------------------------------------------------------------------------------- decisions


def decided(kind: str, batch: int, seconds: float) -> dict[str, float]:
    """Pairs that the ledger decides in batches over dictionaries; nothing is stored or awaited."""
    ledger = DictLedger(limits=limits(kind))
    paying = itertools.cycle(payers(kind))
    times: list[float] = []
    began, before = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < began + seconds or not times:
        claims = [f"claims/{uuid4()}" for _ in range(batch)]
        ledger.apply(
            [reserve_of(payer, claim) for payer, claim in zip(paying, claims, strict=False)]
        )
        ledger.apply([settle_of(claim) for claim in claims])
        times.append(time.perf_counter() - now)
    pairs, cpu_s = len(times) * batch, time.process_time() - before
    found = {"pairs": float(pairs), "pairs_per_s": pairs / (time.perf_counter() - began)}
    return found | {"cpu_us.ledger": cpu_s / pairs * 1e6} | latencies(times)


# ----------------------------------------------------------------------------------------- store


class StoreWay:
    """The ledger and its store, called as the service calls them; several take turns."""

    def __init__(self, stores: Sequence[LedgerStore]) -> None:
        self._next = itertools.cycle(stores)

    async def reserve(self, payer: Payer, claim: str) -> None:
        """Holds, through the next store."""
        await next(self._next).open(reserve_of(payer, claim))

    async def settle(self, claim: str) -> None:
        """Posts, through the next store."""
        await next(self._next).close(settle_of(claim))


@contextlib.asynccontextmanager
async def store_ways(dsn: str) -> AsyncIterator[Mapping[str, Way]]:
    """The ways to the store, of one database."""
    settings = CostSettings.load()
    async with (
        Database.open(dsn, pool_size=settings.pool_size) as database,
        Database.open(dsn, pool_size=2 * _WRITERS) as wide,
    ):
        yield {
            EACH: StoreWay([_store(database, settings, 1)]),
            CONNECTIONS: StoreWay([_store(wide, settings, 1) for _ in range(_WRITERS)]),
            BATCHED: StoreWay([_store(database, settings, settings.max_batch)]),
        }


def _store(database: Database, settings: CostSettings, max_batch: int) -> LedgerStore:
    return LedgerStore(
        database,
        settings.rules,
        SystemClock(),
        max_batch=max_batch,
        max_queue=settings.max_queue,
    )


async def spend_once(dsn: str) -> None:
    """Pays from every run once: its first effect makes rows, and those after it change them."""
    paying = [payer for kind in KINDS for payer in payers(kind)]
    claims = [f"claims/{uuid4()}" for _ in paying]
    async with store_ways(dsn) as ways:
        await asyncio.gather(*map(ways[BATCHED].reserve, paying, claims))
        await asyncio.gather(*map(ways[BATCHED].settle, claims))


def look_at(postgres: int) -> Look:
    """Looks at this process, which commits, and at PostgreSQL."""

    async def look() -> Moment:
        parts = {"ledger": [os.getpid()], "postgres": family(postgres)}
        return Moment.now(parts, (await asyncio.to_thread(generate_latest)).decode())

    return look
