"""A journal is followed to its end, whatever breaks on the way, and never for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.agent.v1 import agent_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli.follow import Follower, Patience, RunResponse, is_break
from remit.rpc.errors import RemitError
from tests.cli.journals import CREATED_S, journal, responses

UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")
DENIED = RemitError(error_reason_pb2.ERROR_REASON_PERMISSION_DENIED, "no")


class StillClock:
    """Time that moves only when somebody waits."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.pauses_s: list[float] = []

    def now(self) -> datetime:
        return datetime.fromtimestamp(CREATED_S, UTC) + timedelta(seconds=self._now_s)

    def monotonic(self) -> float:
        return self._now_s

    async def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self._now_s += seconds


class BrokenServer:
    """Sends the journal in pieces: each stream breaks after some messages; the last is whole."""

    def __init__(self, pieces: list[tuple[int, RemitError]], *, overlap: int = 0) -> None:
        self._pieces = pieces
        self._overlap = overlap
        self.asked: list[int] = []

    def open(self, after_sequence: int) -> AsyncIterator[RunResponse]:
        self.asked.append(after_sequence)
        return self._send(after_sequence)

    async def _send(self, after_sequence: int) -> AsyncIterator[RunResponse]:
        count, error = self._pieces.pop(0) if self._pieces else (None, None)
        for response in responses(journal(), max(0, after_sequence - self._overlap))[:count]:
            yield response
        if error is not None:
            raise error


async def followed(
    server: BrokenServer, clock: StillClock, breaks: list[RemitError] | None = None
) -> list[int]:
    told = [] if breaks is None else breaks
    follower = Follower(server.open, clock=clock, on_break=told.append, pause=clock.pause)
    return [event.sequence async for event in follower.events()]


async def test_a_whole_stream_is_followed_to_its_end() -> None:
    server = BrokenServer([])
    assert await followed(server, StillClock()) == list(range(1, 14))
    assert server.asked == [0]


RESET = RemitError(error_reason_pb2.ERROR_REASON_INTERNAL, "reset")
PIECES = st.lists(st.tuples(st.integers(2, 9), st.sampled_from([UNAVAILABLE, RESET])), max_size=6)


@given(pieces=PIECES, overlap=st.integers(0, 3))
async def test_no_event_is_lost_or_seen_twice(
    pieces: list[tuple[int, RemitError]], overlap: int
) -> None:
    server = BrokenServer(pieces, overlap=overlap)
    assert await followed(server, StillClock()) == list(range(1, 14))


async def test_it_asks_for_what_follows_the_newest_event_and_tells_of_each_break() -> None:
    breaks: list[RemitError] = []
    server = BrokenServer([(4, UNAVAILABLE), (3, RESET)])
    await followed(server, StillClock(), breaks)
    assert server.asked == [0, 3, 5]
    assert breaks == [UNAVAILABLE, RESET]


async def test_a_refusal_is_no_break() -> None:
    with pytest.raises(RemitError) as refused:
        await followed(BrokenServer([(0, DENIED)]), StillClock())
    assert refused.value is DENIED


async def test_a_mesh_that_was_never_there_is_told_at_once() -> None:
    clock = StillClock()
    server = BrokenServer([(0, UNAVAILABLE)] * 100)
    breaks: list[RemitError] = []
    with pytest.raises(RemitError) as refused:
        await followed(server, clock, breaks)
    assert refused.value is UNAVAILABLE
    assert len(server.asked) == Patience().attempts_before_first_event
    assert sum(clock.pauses_s) < 1
    assert breaks == []


async def test_it_gives_up_when_the_run_must_have_ended() -> None:
    clock = StillClock()
    server = BrokenServer([(4, UNAVAILABLE), *[(0, UNAVAILABLE)] * 1_000])
    with pytest.raises(RemitError) as refused:
        await followed(server, clock)
    assert refused.value is UNAVAILABLE
    limit_s = 300 + Patience().grace_s
    assert limit_s <= clock.monotonic() <= limit_s + Patience().longest_pause_s


async def test_behind_the_last_event_there_is_nothing_to_wait_for() -> None:
    server = BrokenServer([])
    clock = StillClock()
    follower = Follower(
        server.open, clock=clock, on_break=lambda _: None, pause=clock.pause, after_sequence=13
    )
    assert [event async for event in follower.events()] == []
    assert (server.asked, clock.pauses_s) == ([13], [])


async def test_it_waits_longer_each_time_and_as_long_as_the_server_asks() -> None:
    clock = StillClock()
    busy = RemitError(error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, "busy", retry_after_s=3.0)
    server = BrokenServer([(4, UNAVAILABLE), (0, UNAVAILABLE), (0, busy)])
    await followed(server, clock)
    assert clock.pauses_s == [0.25, 0.5, 3.0]


async def test_a_journal_can_be_followed_from_the_middle() -> None:
    server = BrokenServer([(3, UNAVAILABLE)])
    clock = StillClock()
    follower = Follower(
        server.open, clock=clock, on_break=lambda _: None, pause=clock.pause, after_sequence=9
    )
    assert [event.sequence async for event in follower.events()] == [10, 11, 12, 13]
    assert server.asked == [9, 11]


def test_a_reset_stream_is_a_break_and_a_bug_is_not() -> None:
    reset = status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0], message="Received RST_STREAM with error code 2"
    )
    bug = RemitError(error_reason_pb2.ERROR_REASON_INTERNAL, "oh", metadata={"error_id": "0af7"})
    assert is_break(RemitError.from_status(reset))
    assert not is_break(bug)
    assert not is_break(DENIED)


def test_heartbeats_have_no_event() -> None:
    assert not agent_service_pb2.StreamRunResponse(sequence=3).HasField("event")
