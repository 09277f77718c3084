"""A tail brings every event that is wanted once, in order, and not for longer than it may."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from remit.api.audit.v1 import audit_query_service_pb2 as query_pb2
from remit.api.audit.v1 import audit_query_service_pb2_grpc, event_pb2
from remit.audit.filters import EventFilter
from remit.audit.tail import LogHead, Piece, Tail
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading
from tests.audit.events import BOB, ORG, RUN, Log, make_event, make_log
from tests.audit.test_service import (  # noqa: F401 - a fixture
    PUBLIC,
    Audit,
    admin,
    audit,
    intent,
    token,
    verified,
)
from tests.conftest import OpenDatabase
from tests.waiting import in_time

ALL = EventFilter(ORG)


@contextlib.asynccontextmanager
async def tailing(log: Log, page: int = 3, looked_at: int = 256) -> AsyncIterator[Tail]:
    head = LogHead(log.store, every_s=0.01)
    looking = asyncio.create_task(head.run())
    try:
        yield Tail(log.log, head, page=page, looked_at=looked_at, heartbeat_s=0.05)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def taken(pieces: AsyncIterator[Piece], count: int) -> list[int]:
    """The indices of the next so many events, heartbeats left out."""
    found: list[int] = []
    while len(found) < count:
        found += [event.leaf_index for event in (await anext(pieces)).events]
    return found


async def append(log: Log, *ids: str, **changes: Any) -> None:
    await log.append(*(make_event(event_id, **changes) for event_id in ids))


async def test_what_was_and_what_comes(log: Log) -> None:
    await append(log, *(f"e-{n}" for n in range(7)))
    async with tailing(log) as tail:
        pieces = tail.follow(ALL, 0, end=None)
        assert await anext(pieces) == Piece(0, [])
        assert await in_time(taken(pieces, 7), 10) == list(range(7))
        await append(log, "later")
        assert await in_time(taken(pieces, 1), 10) == [7]
        assert await in_time(anext(pieces), 10) == Piece(8, []), "a heartbeat"
        await pieces.aclose()


async def test_what_another_replica_appends_comes(log: Log, database: OpenDatabase) -> None:
    other = make_log(await database("audit"), await database("audit_keys"))
    async with tailing(log) as tail:
        pieces = tail.follow(ALL, 0, end=None)
        coming = asyncio.create_task(taken(pieces, 2))
        await append(other, "e-0", "e-1")
        assert await in_time(coming, 10) == [0, 1]
        await pieces.aclose()


async def test_a_slow_reader_misses_nothing_and_holds_nobody_up(log: Log) -> None:
    async with tailing(log) as tail:
        slow, quick = (tail.follow(ALL, 0, end=None) for _ in range(2))
        await anext(slow)
        for start in range(0, 60, 20):
            await append(log, *(f"e-{n}" for n in range(start, start + 20)))
        assert await in_time(taken(quick, 60), 10) == list(range(60))
        assert await in_time(taken(slow, 60), 10) == list(range(60))
        await slow.aclose()
        await quick.aclose()


async def test_rare_events_among_many_are_found_without_a_gap(log: Log) -> None:
    changes = {"kind": event_pb2.EVENT_KIND_ADMIN, "claim": "", "run": "", "attempt": 0}
    for n in range(40):
        await append(log, f"e-{n}", **(changes if n % 13 == 5 else {}))
    async with tailing(log, looked_at=4) as tail:
        for wanted in (EventFilter(ORG, kind="ADMIN"), EventFilter(ORG, run="", kind="INTENT")):
            indices = [n for n in range(40) if (n % 13 == 5) == (wanted.kind == "ADMIN")]
            pieces = [piece async for piece in tail.follow(wanted, 0, end=40)]
            assert [e.leaf_index for piece in pieces for e in piece.events] == indices
            assert [piece.size for piece in pieces] == sorted(piece.size for piece in pieces)
            assert pieces[-1] == Piece(40, [])


async def test_a_tail_ends_where_it_was_told_to(log: Log) -> None:
    await append(log, *(f"e-{n}" for n in range(9)))
    async with tailing(log) as tail:
        found = [piece async for piece in tail.follow(ALL, 2, end=5)]
    assert [e.leaf_index for piece in found for e in piece.events] == [2, 3, 4]
    assert found[-1].size == 5


async def test_a_replica_that_drains_ends_its_tails(log: Log) -> None:
    head = LogHead(log.store, every_s=0.01)
    tail = Tail(log.log, head, page=3, looked_at=256, heartbeat_s=60)
    pieces = tail.follow(ALL, 0, end=None)
    await anext(pieces)
    waiting = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    await head.close()
    with pytest.raises(RemitError, match="resume after") as raised:
        await in_time(waiting, 10)
    assert raised.value.reason_name == "DEPENDENCY_UNAVAILABLE"


# ------------------------------------------------------------------------- the contract


@contextlib.asynccontextmanager
async def tail_of(audit: Audit, remit: str = "", **fields: Any) -> AsyncIterator[Any]:  # noqa: F811
    with remit_token(remit or token(run="")):
        factory = audit_query_service_pb2_grpc.AuditQueryServiceStub
        stub = audit.mesh.as_caller(PUBLIC).stub(factory)
        async with reading(stub.TailEvents(query_pb2.TailEventsRequest(**fields))) as stream:
            yield aiter(stream)


ENDLESS = 1_000_000
"""More events than there are: who reads so many comes to the end of a stream."""


async def told(stream: Any, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        found += [e.event.event_id for e in (await anext(stream)).events]
    return found


async def whole(audit: Audit, **fields: Any) -> list[query_pb2.TailEventsResponse]:  # noqa: F811
    async with tail_of(audit, until_now=True, **fields) as stream:
        return [message async for message in stream]


def ids(messages: list[query_pb2.TailEventsResponse]) -> list[str]:
    return [e.event.event_id for message in messages for e in message.events]


async def test_a_tail_resumes_after_its_sequence(audit: Audit) -> None:  # noqa: F811
    await audit.append(
        *(admin(f"a-{n}") for n in range(5)),
        admin("x", org="orgs/other", subject="orgs/other/users/eve"),
    )
    messages = await whole(audit)
    assert ids(messages) == [f"a-{n}" for n in range(5)], "another org's are not shown"
    assert messages[0] == query_pb2.TailEventsResponse(sequence=0)
    assert messages[-1].sequence == 6
    assert ids(await whole(audit, after_sequence=3))[:2] == ["a-3", "a-4"]


async def test_a_tail_filters_as_a_list_does(audit: Audit) -> None:  # noqa: F811
    await audit.append(intent("e-1"), admin("a-1", subject=BOB), admin("a-2", action="keys.make"))
    assert ids(await whole(audit, run=RUN)) == ["e-1"]
    assert ids(await whole(audit, subject="users/bob")) == ["a-1"]
    assert ids(await whole(audit, action="keys.make")) == ["a-2"]
    future = datetime.now(UTC) + timedelta(days=1)
    assert ids(await whole(audit, start_time=future)) == []


async def test_what_comes_from_now_on_is_told(audit: Audit) -> None:  # noqa: F811
    await audit.append(admin("old"))
    async with tail_of(audit, new_only=True, kind=event_pb2.EVENT_KIND_ADMIN) as stream:
        first = await in_time(anext(stream), 10)
        assert (first.sequence, list(first.events)) == (1, [])
        await audit.append(admin("new"))
        assert await in_time(told(stream, 1), 10) == ["new"]


async def test_each_tail_leaves_one_event(audit: Audit) -> None:  # noqa: F811
    await audit.append(admin("a-1"))
    await whole(audit, after_sequence=1, subject=BOB)
    reads = (await audit.list_events(kind=event_pb2.EVENT_KIND_READ)).events
    assert [e.event.action for e in reads] == ["audit.read"]
    assert '"after_sequence": 1' in reads[0].event.detail_json
    assert "bob" not in reads[0].event.detail_json


@pytest.mark.parametrize("after", [-1, 7])
async def test_a_place_that_is_not_in_the_log(audit: Audit, after: int) -> None:  # noqa: F811
    with pytest.raises(RemitError) as raised:
        await whole(audit, after_sequence=after)
    assert [v.field for v in raised.value.violations] == ["after_sequence"]
