"""Reserve and settle as load: so many callers at once, each pair followed by the caller's next.

A pair is one effect's way through the ledger. Callers wait for each answer, which comes after its
commit. What is counted begins once every caller, on average, has had an answer: until then nobody
has waited in a full queue.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import uuid4

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from tests.bench.counters import Machine, use_of
from tests.bench.payers import Payer
from tests.bench.running import MeasuringError
from tests.bench.stats import quantile

WARM_UP_S: Final = 0.3
LIMIT_S: Final = 8.0
"""After which a load is taken as it is, however few its pairs are."""
BOUND_CALLS: Final = 2
USED_CALLS: Final = 1
"""Less is used than was held, as of nearly every model call: a hold, a posting and a void."""
_POLL_S: Final = 0.01
_LATE: Final = frozenset({error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED})
"""An RPC has the deadline of its contract, which a service that does not batch may miss."""
_COMMITS: Final = re.compile(
    r"^remit_commit_items_(?P<what>count|sum)"
    r'\{writer="(?:opening|closing|audit_log)"\} (?P<value>\S+)$',
    re.MULTILINE,
)


class Way(Protocol):
    """A way to the ledger."""

    async def reserve(self, payer: Payer, claim: str) -> None:
        """Holds BOUND_CALLS. Raises RemitError."""
        ...

    async def settle(self, claim: str) -> None:
        """Posts USED_CALLS. Raises RemitError."""
        ...


@dataclass(frozen=True)
class Moment:
    """What was used up to a moment."""

    at_s: float
    cpu_s: Mapping[str, float]
    """By part: the process that loads, the service, PostgreSQL."""
    commits: float
    operations: float
    machine: Machine

    @classmethod
    def now(cls, parts: Mapping[str, Sequence[int]], metrics: str) -> Moment:
        """Reads /proc of the processes of each part, and what the one that commits tells."""
        at_s = time.perf_counter()
        cpu_s = {part: sum(_cpu_s(pid) for pid in pids) for part, pids in parts.items()}
        totals = {"count": 0.0, "sum": 0.0}
        for match in _COMMITS.finditer(metrics):
            totals[match["what"]] += float(match["value"])
        return cls(at_s, cpu_s, totals["count"], totals["sum"], Machine.now())


Look = Callable[[], Awaitable[Moment]]


@dataclass(frozen=True, slots=True)
class _Ended:
    """A pair that ended."""

    at_s: float
    reserve_s: float
    pair_s: float


class _Load:
    def __init__(self, way: Way, payers: Sequence[Payer], limit_s: float) -> None:
        self._limit_s = limit_s
        self._way = way
        self._payers = payers
        self.ended: list[_Ended] = []
        self.failures: list[RemitError] = []
        self.over = False

    async def work(self, number: int, concurrency: int) -> None:
        """One caller, until it is over; it pays from one run after another."""
        for place in itertools.count(number, concurrency):
            if self.over:
                return
            try:
                await self._pair(self._payers[place % len(self._payers)])
            except RemitError as error:
                self.failures.append(error)

    async def _pair(self, payer: Payer) -> None:
        claim = f"claims/{uuid4()}"
        began = time.perf_counter()
        await self._way.reserve(payer, claim)
        held = time.perf_counter()
        await self._way.settle(claim)
        ended = time.perf_counter()
        self.ended.append(_Ended(ended, held - began, ended - began))

    async def until(self, seconds: float, pairs: int) -> None:
        """Waits so long, and until so many more pairs have ended; never longer than the limit."""
        began, least = time.perf_counter(), len(self.ended) + pairs
        while (passed_s := time.perf_counter() - began) < self._limit_s:
            if passed_s >= seconds and len(self.ended) >= least:
                return
            await asyncio.sleep(_POLL_S)


async def measure(
    way: Way,
    payers: Sequence[Payer],
    concurrency: int,
    seconds: float,
    look: Look,
    *,
    limit_s: float = LIMIT_S,
) -> dict[str, float]:
    """The figures of a load; without a latency where no pair ended in time.

    Raises:
        MeasuringError: a pair failed for another reason than its deadline.

    """
    load = _Load(way, payers, limit_s)
    async with asyncio.TaskGroup() as callers:
        for number in range(concurrency):
            callers.create_task(load.work(number, concurrency))
        await load.until(WARM_UP_S, concurrency)
        before = await look()
        await load.until(seconds, concurrency)
        after = await look()
        load.over = True
    within = [each for each in load.ended if before.at_s <= each.at_s <= after.at_s]
    others = [each for each in load.failures if each.reason not in _LATE]
    if others:
        raise MeasuringError(f"{len(others)} pairs failed, one of them so: {others[0]}")
    return figures(within, before, after) | {"failed": float(len(load.failures))}


def figures(ended: Sequence[_Ended], before: Moment, after: Moment) -> dict[str, float]:
    """What is said of the pairs that ended between two moments."""
    pairs, seconds = len(ended), after.at_s - before.at_s
    idle_s = after.machine.since(before.machine).idle_s
    found = {
        "pairs": float(pairs),
        "pairs_per_s": pairs / seconds,
        "idle_share": idle_s / seconds / (os.cpu_count() or 1),
        "commits_per_s": (after.commits - before.commits) / seconds,
        "operations_per_commit": _quotient(
            after.operations - before.operations, after.commits - before.commits
        ),
    }
    if not ended:
        return found
    found |= latencies([each.pair_s for each in ended])
    found |= latencies([each.reserve_s for each in ended], "reserve_")
    for part, cpu_s in after.cpu_s.items():
        found[f"cpu_us.{part}"] = (cpu_s - before.cpu_s[part]) / pairs * 1e6
    return found


def latencies(seconds: Sequence[float], prefix: str = "") -> dict[str, float]:
    """The median and the 99th percentile, in milliseconds."""
    ordered = sorted(seconds)
    return {
        f"{prefix}p50_ms": quantile(ordered, 0.5) * 1000,
        f"{prefix}p99_ms": quantile(ordered, 0.99) * 1000,
    }


def _quotient(amount: float, parts: float) -> float:
    return amount / parts if parts else 0.0


def _cpu_s(pid: int) -> float:
    return use_of(pid).cpu_s
