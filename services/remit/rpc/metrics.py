"""What every service measures of itself: its RPCs, its readiness, its commits.

These are on the path of every call, so each series is looked up once and kept: finding it by its
labels costs as much as counting.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram

RPC_REQUESTS: Final = Counter(
    "remit_rpc_requests_total", "RPCs served, by method and canonical code.", ["method", "code"]
)
RPC_SECONDS: Final = Histogram(
    "remit_rpc_seconds",
    "Time from an RPC's acceptance to its end, in seconds.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
RPC_OVERLOADED: Final = Counter(
    "remit_rpc_overloaded_total",
    "RPCs refused with OVERLOADED, by method: the service or its queue is full.",
    ["method"],
)
RPC_IN_FLIGHT: Final = Gauge("remit_rpc_in_flight", "RPCs being served now, by method.", ["method"])
READY: Final = Gauge(
    "remit_ready", "1 while the service can do its work, 0 while it cannot, by area.", ["area"]
)
COMMIT_ITEMS: Final = Histogram(
    "remit_commit_items",
    "Items that shared one commit, by writer; its count is the number of commits.",
    ["writer"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
COMMIT_SECONDS: Final = Histogram(
    "remit_commit_seconds",
    "Time of one commit from its first statement to its end, in seconds, by writer.",
    ["writer"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
COMMIT_FAILURES: Final = Counter(
    "remit_commit_failures_total",
    "Commits that failed or whose end is unknown, by writer.",
    ["writer"],
)
COMMIT_QUEUE: Final = Gauge(
    "remit_commit_queue_length", "Items that wait for a commit, by writer.", ["writer"]
)
SPANS_LOST: Final = Counter(
    "remit_spans_lost_total",
    "Spans that the collector did not take, or that found the queue for it full, by area.",
    ["area"],
)


_in_flight: Final[collections.Counter[str]] = collections.Counter()


def rpc_began(method: str) -> None:
    """Counts an RPC in. There are as many methods as there are contracts."""
    if method not in _in_flight:
        RPC_IN_FLIGHT.labels(method).set_function(lambda: _in_flight[method])
    _in_flight[method] += 1


def rpc_ended(method: str, code: str, seconds: float) -> None:
    """Counts an RPC out, with its canonical code and its time."""
    _in_flight[method] -= 1
    _requests(method, code).inc()
    _seconds(method).observe(seconds)


def rpc_overloaded(method: str) -> None:
    """Counts an RPC that was refused because there was no room. Its code would not say so alone."""
    RPC_OVERLOADED.labels(method).inc()


@functools.cache
def _requests(method: str, code: str) -> Counter:
    return RPC_REQUESTS.labels(method, code)


@functools.cache
def _seconds(method: str) -> Histogram:
    return RPC_SECONDS.labels(method)


_queues: Final[dict[str, list[weakref.ref[deque[Any]]]]] = {}


class CommitMeter:
    """Measures the commits of one writer. Its name becomes a label, so it is a fixed one."""

    def __init__(self, name: str, queue: deque[Any]) -> None:
        writer = name.replace(" ", "_").replace("-", "_")
        self._items = COMMIT_ITEMS.labels(writer)
        self._seconds = COMMIT_SECONDS.labels(writer)
        self._failures = COMMIT_FAILURES.labels(writer)
        # A process may hold two writers of one name: those of inference's and of tools' claims.
        _queues[writer] = [*_alive(writer), weakref.ref(queue)]
        # Asked for at each scrape, so that the length costs nothing while it changes.
        COMMIT_QUEUE.labels(writer).set_function(lambda: _waiting(writer))

    @contextlib.contextmanager
    def commit(self, items: int) -> Iterator[None]:
        """Measures the body as one commit of so many items."""
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            self._failures.inc()
            raise
        self._items.observe(items)
        self._seconds.observe(time.perf_counter() - started)


def _alive(writer: str) -> list[weakref.ref[deque[Any]]]:
    return [queue for queue in _queues.get(writer, []) if queue() is not None]


def _waiting(writer: str) -> int:
    return sum(len(queue() or ()) for queue in _alive(writer))
