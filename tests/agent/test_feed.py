"""Following a journal: every event once and in order, whatever wakes the follower."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent import feed as feed_module
from remit.agent.feed import Feed
from remit.agent.reading import RunReader
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import StartReplica, World
from tests.agent.histories import RUN
from tests.waiting import eventually, in_time

PAGE = 3


def event(sequence: int, *, last: bool = False) -> run_pb2.RunEvent:
    made = run_pb2.RunEvent(run=RUN, sequence=sequence)
    if last:
        made.ended.SetInParent()
    return made


class Journal:
    """A journal in memory that counts how often it is read."""

    def __init__(self) -> None:
        self.events_: list[run_pb2.RunEvent] = []
        self.reads = 0

    def was_read_since(self, reads: int) -> bool:
        return self.reads > reads

    async def events(self, _: str, *, after: int, limit: int) -> list[run_pb2.RunEvent]:
        self.reads += 1
        await asyncio.sleep(0)
        return [e for e in self.events_ if e.sequence > after][:limit]


def feed_of(journal: Journal, *, heartbeat_s: float = 30.0, recent: int = 4) -> Feed:
    return Feed(
        cast("RunReader", journal), page=PAGE, recent_events=recent, heartbeat_s=heartbeat_s
    )


async def follow(feed: Feed, after: int, known: Sequence[run_pb2.RunEvent] = ()) -> list[int]:
    return [e.sequence async for e in feed.follow(RUN, after, known) if e is not None]


@given(
    st.lists(st.tuples(st.integers(1, 7), st.sampled_from(["push", "tell"])), max_size=8),
    st.integers(0, 10),
)
async def test_every_event_arrives_once_and_in_order(
    commits: list[tuple[int, str]], after: int
) -> None:
    journal = Journal()
    feed = feed_of(journal)
    total = sum(size for size, _ in commits) + 1
    following = asyncio.create_task(follow(feed, min(after, total - 1)))
    for size, how in [*commits, (1, "push")]:
        start = len(journal.events_) + 1
        made = [event(n, last=n == total) for n in range(start, start + size)]
        await asyncio.sleep(0)
        journal.events_ += made
        if how == "push":
            feed.publish(made)
        else:
            feed.announce(RUN, made[-1].sequence)
    received = await in_time(following, 5)
    assert received == list(range(min(after, total - 1) + 1, total + 1))
    assert feed._topics == {}


async def test_what_is_published_here_is_not_read_back() -> None:
    journal = Journal()
    feed = feed_of(journal)
    first = [event(1), event(2)]
    following = asyncio.create_task(follow(feed, 0, first))
    await eventually(lambda: feed._topics)
    for number in range(3, 20):
        feed.publish([event(number, last=number == 19)])
        await asyncio.sleep(0)
    assert await following == list(range(1, 20))
    assert journal.reads == 0


async def test_a_large_event_is_read_back_instead_of_kept() -> None:
    journal = Journal()
    feed = feed_of(journal)
    following = asyncio.create_task(follow(feed, 0, [event(1)]))
    await eventually(lambda: feed._topics)
    large = event(2)
    large.text_delta.text = "x" * 100_000
    for made in (large, event(3, last=True)):
        journal.events_ = [event(1), large, event(3, last=True)][: made.sequence]
        feed.publish([made])
        assert all(kept.ByteSize() < 20_000 for kept in feed._topics[RUN].recent)
        await asyncio.sleep(0)
    assert await in_time(following, 5) == [1, 2, 3]


async def test_a_lost_notice_is_made_good_at_the_heartbeat() -> None:
    journal = Journal()
    feed = feed_of(journal, heartbeat_s=0.02)
    following = asyncio.create_task(follow(feed, 0))
    await eventually(lambda: journal.reads >= 1)
    journal.events_ = [event(1), event(2, last=True)]
    assert await in_time(following, 5) == [1, 2]


@pytest.mark.parametrize("losses", [1, 3])
async def test_a_notice_after_a_lost_connection_wakes_at_once(losses: int) -> None:
    journal = Journal()
    journal.events_ = [event(1)]
    feed = feed_of(journal)
    following = asyncio.create_task(follow(feed, 0))
    await eventually(lambda: journal.reads >= 1)
    for _ in range(losses):
        before = journal.reads
        feed.wake_all()
        await eventually(functools.partial(journal.was_read_since, before))
    journal.events_ = [event(1), event(2, last=True)]
    feed.announce(RUN, 2)
    assert await in_time(following, 5) == [1, 2]


async def test_what_was_told_while_nobody_listened_is_looked_for() -> None:
    journal = Journal()
    feed = feed_of(journal)
    following = asyncio.create_task(follow(feed, 0))
    await eventually(lambda: journal.reads >= 1)
    journal.events_ = [event(1), event(2, last=True)]
    feed.wake_all()
    assert await in_time(following, 5) == [1, 2]


async def test_a_closed_feed_sends_its_followers_away() -> None:
    feed = feed_of(Journal())
    following = asyncio.create_task(follow(feed, 0))
    await eventually(lambda: feed._topics)
    feed.close()
    with pytest.raises(RemitError) as caught:
        await following
    assert caught.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_a_listener_whose_connection_ends_is_back_at_once(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It does not wait until it would ask whether the connection still stands.
    monkeypatch.setattr(feed_module, "_PING_S", 60.0)
    listener = (await replica()).parts.listener
    pid = await world.database.fetchval(_LISTENING)
    await world.database.fetchval("SELECT pg_terminate_backend($1)", pid)

    async def is_back() -> bool:
        listening = await world.database.fetchval(_LISTENING)
        return listener.connected.is_set() and listening not in {None, pid}

    await eventually(is_back)


async def test_a_watcher_at_another_replica_is_pushed_to(
    replica: StartReplica, world: World
) -> None:
    # A heartbeat, at which it would look for itself, comes after the end of the test.
    first, second = [await replica() for _ in range(2)]
    second.parts.feed._heartbeat_s = 60.0
    world.inference.effects.hold = hold = asyncio.Event()
    run = await first.client().create()
    await eventually(lambda: world.inference.effects.held == 1)
    watching = asyncio.create_task(second.client().watch(run.name))
    await eventually(lambda: second.parts.listener._feed._topics)
    world.inference.effects.hold = None
    hold.set()
    events = await in_time(watching, 15)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].HasField("ended")


_LISTENING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'LISTEN %' LIMIT 1
"""
