"""What every service measures: RPCs in flight and ended, commits, their queue, their failures."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc import metrics
from remit.rpc.errors import RemitError
from remit.rpc.observing import observing
from tests.monitoring.values import gained, value
from tests.waiting import eventually

METHOD = "/a.B/C"


def test_an_rpc_is_in_flight_until_it_ends() -> None:
    served = gained("remit_rpc_requests_total", method=METHOD, code="OK")
    timed = gained("remit_rpc_seconds_count", method=METHOD)
    metrics.rpc_began(METHOD)
    metrics.rpc_began(METHOD)
    assert value("remit_rpc_in_flight", method=METHOD) == 2
    metrics.rpc_ended(METHOD, "OK", 0.1)
    assert value("remit_rpc_in_flight", method=METHOD) == 1
    metrics.rpc_ended(METHOD, "OK", 0.1)
    assert (served(), timed()) == (2, 2)


def test_a_commit_is_counted_with_its_items() -> None:
    meter = metrics.CommitMeter("some-writer", deque())
    commits = gained("remit_commit_items_count", writer="some_writer")
    items = gained("remit_commit_items_sum", writer="some_writer")
    failures = gained("remit_commit_failures_total", writer="some_writer")
    with meter.commit(3):
        pass
    with meter.commit(4):
        pass
    assert (commits(), items(), failures()) == (2, 7, 0)


def test_a_failed_commit_is_counted_as_nothing_else() -> None:
    meter = metrics.CommitMeter("a writer", deque())
    commits = gained("remit_commit_items_count", writer="a_writer")
    failures = gained("remit_commit_failures_total", writer="a_writer")
    with pytest.raises(OSError, match="gone"), meter.commit(3):
        raise OSError("gone")
    assert (commits(), failures()) == (0, 1)


def test_writers_of_one_name_share_a_queue_length_while_they_live() -> None:
    first, second = deque([1, 2]), deque([3])
    metrics.CommitMeter("twins", first)
    metrics.CommitMeter("twins", second)
    assert value("remit_commit_queue_length", writer="twins") == 3
    first.popleft()
    assert value("remit_commit_queue_length", writer="twins") == 2
    del first
    assert value("remit_commit_queue_length", writer="twins") == 1


async def test_looking_goes_on_after_an_outage() -> None:
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")

    looking = asyncio.ensure_future(observing(look, every_s=0.01)())
    await eventually(lambda: looks > 2)
    looking.cancel()
