"""A journal is followed to its end, whatever breaks on the way, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.client import Patience, RunStream, is_break
from remit.client.run_stream import RunResponse
from remit.rpc.errors import RemitError
from tests.cli.journals import RUN, accepted_run, journal, responses
from tests.client.still import StillClock
from tests.waiting import in_time

UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")
DENIED = RemitError(error_reason_pb2.ERROR_REASON_PERMISSION_DENIED, "no")
RESET = RemitError(error_reason_pb2.ERROR_REASON_INTERNAL, "reset")
BUSY = RemitError(error_reason_pb2.ERROR_REASON_OVERLOADED, "busy", retry_after_s=7.0)
WHOLE = list(range(1, 14))


class BrokenServer:
    """Sends the journal in pieces: each stream breaks after some messages; the last is whole."""

    def __init__(self, pieces: list[tuple[int, RemitError]], *, overlap: int = 0) -> None:
        self._pieces = pieces
        self._overlap = overlap
        self.journal = journal()
        self.asked: list[int] = []

    def open(self, after_sequence: int) -> AsyncIterator[RunResponse]:
        self.asked.append(after_sequence)
        return self._send(after_sequence)

    async def _send(self, after_sequence: int) -> AsyncIterator[RunResponse]:
        count, error = self._pieces.pop(0) if self._pieces else (None, None)
        for response in responses(self.journal, max(0, after_sequence - self._overlap))[:count]:
            yield response
        if error is not None:
            raise error


def following(
    server: BrokenServer,
    clock: StillClock | None = None,
    *,
    patience: Patience | None = None,
    after: int = 0,
    timeout_s: float | None = None,
    on_break: Callable[[RemitError], None] = lambda _: None,
) -> RunStream:
    return RunStream(
        server.open,
        (clock or StillClock()).resumption(patience),
        after_sequence=after,
        timeout_s=timeout_s,
        on_break=on_break,
    )


async def sequences(stream: RunStream) -> list[int]:
    return [event.sequence async for event in stream]


async def failure(stream: RunStream) -> RemitError:
    with pytest.raises(RemitError) as failed:
        await sequences(stream)
    return failed.value


async def test_a_whole_stream_is_followed_to_its_end() -> None:
    server = BrokenServer([])
    stream = following(server)
    assert await sequences(stream) == WHOLE
    assert server.asked == [0]
    assert stream.ended == journal()[-1].ended.run
    assert (stream.run, stream.sequence) == (RUN, 13)


PIECES = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([UNAVAILABLE, RESET, BUSY])), max_size=6
)


@given(pieces=PIECES, overlap=st.integers(0, 3))
async def test_no_event_is_lost_or_seen_twice(
    pieces: list[tuple[int, RemitError]], overlap: int
) -> None:
    # Something was answered before the first break: what was never there is another test's.
    server = BrokenServer([(2, UNAVAILABLE), *pieces], overlap=overlap)
    assert await sequences(following(server)) == WHOLE


async def test_it_asks_for_what_follows_the_newest_event_and_tells_of_each_break() -> None:
    breaks: list[RemitError] = []
    server = BrokenServer([(4, UNAVAILABLE), (3, RESET), (1, BUSY)])
    await sequences(following(server, on_break=breaks.append))
    assert server.asked == [0, 3, 5, 5]
    assert breaks == [UNAVAILABLE, RESET, BUSY]


@pytest.mark.parametrize("heard", [0, 1, 4])
async def test_a_refusal_is_no_break(heard: int) -> None:
    server = BrokenServer([(heard, DENIED)])
    assert await failure(following(server)) is DENIED
    assert len(server.asked) == 1


async def test_a_server_that_is_too_busy_to_begin_is_told_at_once() -> None:
    server = BrokenServer([(0, BUSY)])
    assert await failure(following(server)) is BUSY
    assert len(server.asked) == 1


async def test_a_mesh_that_was_never_there_is_told_soon() -> None:
    clock = StillClock()
    server = BrokenServer([(0, UNAVAILABLE)] * 100)
    breaks: list[RemitError] = []
    patience = Patience(unanswered_s=1.0)
    stream = following(server, clock, patience=patience, on_break=breaks.append)
    assert await failure(stream) is UNAVAILABLE
    assert clock.pauses_s == [0.25, 0.5]
    assert breaks == []


async def test_a_heartbeat_is_an_answer() -> None:
    clock = StillClock()
    server = BrokenServer([(1, UNAVAILABLE), *[(0, UNAVAILABLE)] * 30])
    stream = following(server, clock, patience=Patience(unanswered_s=1.0), after=3)
    assert await sequences(stream) == WHOLE[3:]


async def test_it_gives_up_when_the_run_must_have_ended() -> None:
    clock = StillClock()
    server = BrokenServer([(4, UNAVAILABLE), *[(0, UNAVAILABLE)] * 1_000])
    assert await failure(following(server, clock)) is UNAVAILABLE
    limit_s = 300 + Patience().grace_s
    assert limit_s <= clock.monotonic() <= limit_s + Patience().longest_pause_s


async def test_behind_the_last_event_there_is_nothing_to_wait_for() -> None:
    server, clock = BrokenServer([]), StillClock()
    stream = following(server, clock, after=13)
    assert await sequences(stream) == []
    assert (server.asked, clock.pauses_s, stream.ended) == ([13], [], None)


async def test_it_waits_longer_each_time_and_as_long_as_the_server_asks() -> None:
    clock = StillClock()
    server = BrokenServer([(4, UNAVAILABLE), (0, UNAVAILABLE), (0, BUSY), (0, UNAVAILABLE)])
    await sequences(following(server, clock))
    assert clock.pauses_s == [0.25, 0.5, 7.0, 2.0]


async def test_a_journal_can_be_followed_from_the_middle() -> None:
    server = BrokenServer([(3, UNAVAILABLE)])
    assert await sequences(following(server, after=9)) == [10, 11, 12, 13]
    assert server.asked == [9, 11]


async def test_a_stream_that_leaves_an_event_out_is_opened_again() -> None:
    server = BrokenServer([])
    whole = server.journal
    server.journal = [event for event in whole if event.sequence != 6]

    def healed(_: RemitError) -> None:
        server.journal = whole

    assert await sequences(following(server, on_break=healed)) == WHOLE
    assert server.asked == [0, 5]


async def test_a_journal_with_a_gap_is_refused_after_a_few_tries() -> None:
    server = BrokenServer([])
    server.journal = [event for event in server.journal if event.sequence != 6]
    fault = await failure(following(server))
    assert fault.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT
    assert "event 7 came after event 5" in fault.message
    assert server.asked == [0, 5, 5]


async def test_a_heartbeat_that_knows_of_more_events_shows_a_gap() -> None:
    server = BrokenServer([])
    asked: list[int] = []

    async def forgetful(after: int) -> AsyncIterator[RunResponse]:
        yield agent_service_pb2.WatchRunResponse(sequence=after + 2)

    def open_stream(after: int) -> AsyncIterator[RunResponse]:
        asked.append(after)
        return forgetful(after) if len(asked) == 1 else server.open(after)

    assert await sequences(RunStream(open_stream, StillClock().resumption())) == WHOLE
    assert asked == [0, 0]


async def test_a_stream_that_ends_before_the_run_is_opened_again() -> None:
    server = BrokenServer([])
    whole, server.journal = server.journal, server.journal[:5]

    def healed(cause: RemitError) -> None:
        assert "before the run did" in cause.message
        server.journal = whole

    assert await sequences(following(server, on_break=healed)) == WHOLE
    assert server.asked == [0, 5]


async def test_a_silent_stream_is_broken() -> None:
    server = BrokenServer([])
    opened: list[int] = []
    causes: list[RemitError] = []

    async def silent(after: int) -> AsyncIterator[RunResponse]:
        for response in responses(journal(), after)[:3]:
            yield response
        await asyncio.Event().wait()

    def open_stream(after: int) -> AsyncIterator[RunResponse]:
        opened.append(after)
        return silent(after) if len(opened) == 1 else server.open(after)

    resumption = StillClock().resumption(Patience(silence_s=0.05))
    stream = RunStream(open_stream, resumption, on_break=causes.append)
    assert await sequences(stream) == WHOLE
    assert opened == [0, 2]
    assert "nothing came for 0.05 s" in causes[0].message


async def test_a_timeout_ends_the_wait_and_says_where_to_go_on() -> None:
    clock = StillClock()
    server = BrokenServer([(4, UNAVAILABLE), *[(0, UNAVAILABLE)] * 1_000])
    ended = await failure(following(server, clock, timeout_s=20.0))
    assert ended.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert f"{RUN} did not end within 20 s" in ended.message
    assert "resume after event 3" in ended.message
    assert clock.monotonic() == pytest.approx(20.0)


async def test_a_timeout_ends_a_stream_that_goes_on() -> None:
    async def endless(_: int) -> AsyncIterator[RunResponse]:
        await asyncio.Event().wait()
        yield agent_service_pb2.WatchRunResponse()

    stream = RunStream(endless, StillClock().resumption(), timeout_s=0.0)
    assert (await failure(stream)).reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED


async def test_a_read_that_was_cancelled_loses_no_event() -> None:
    server = BrokenServer([])
    stuck = asyncio.Event()
    opened: list[int] = []

    async def stops(after: int) -> AsyncIterator[RunResponse]:
        for response in responses(journal(), after)[:4]:
            yield response
        stuck.set()
        await asyncio.Event().wait()

    def open_stream(after: int) -> AsyncIterator[RunResponse]:
        opened.append(after)
        return stops(after) if len(opened) == 1 else server.open(after)

    stream = RunStream(open_stream, StillClock().resumption())
    got: list[int] = []

    async def read() -> None:
        async for event in stream:
            got.append(event.sequence)  # noqa: PERF401 - one by one: what came is kept

    reading = asyncio.create_task(read())
    await in_time(stuck.wait(), 5)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await read()
    assert got == WHOLE
    assert opened == [0, 3]


async def test_leaving_early_closes_the_stream() -> None:
    closed = asyncio.Event()

    async def held(after: int) -> AsyncIterator[RunResponse]:
        try:
            for response in responses(journal(), after):
                yield response
        finally:
            closed.set()

    async with RunStream(held, StillClock().resumption()) as stream:
        async for _ in stream:
            break
    assert closed.is_set()
    assert await sequences(stream) == []


async def test_a_scheduled_run_is_awaited_from_its_time_on() -> None:
    run = accepted_run()
    run.schedule_time.FromSeconds(run.create_time.seconds + 3_600)
    created = run_pb2.RunEvent(run=RUN, sequence=1, created=run_pb2.RunCreated(run=run))
    server, clock = BrokenServer([(2, UNAVAILABLE), *[(0, UNAVAILABLE)] * 2_000]), StillClock()
    server.journal = [created]
    await failure(following(server, clock))
    assert clock.monotonic() == pytest.approx(3_930, abs=6)


async def test_a_pause_takes_nothing_from_the_time_of_a_run() -> None:
    server, clock = BrokenServer([(4, UNAVAILABLE), *[(0, UNAVAILABLE)] * 2_000]), StillClock()
    paused, resumed = run_pb2.RunEvent(), run_pb2.RunEvent()
    paused.paused.SetInParent()
    resumed.resumed.SetInParent()
    for sequence, event in enumerate((paused, resumed), start=2):
        event.run, event.sequence = RUN, sequence
        event.event_time.FromSeconds(accepted_run().create_time.seconds + 1_000 * (sequence - 2))
    server.journal = [server.journal[0], paused, resumed]
    await failure(following(server, clock))
    assert clock.monotonic() == pytest.approx(1_330, abs=6)


def test_a_reset_stream_is_a_break_and_a_bug_is_not() -> None:
    reset = status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0], message="Received RST_STREAM with error code 2"
    )
    bug = RemitError(error_reason_pb2.ERROR_REASON_INTERNAL, "oh", metadata={"error_id": "0af7"})
    assert is_break(RemitError.from_status(reset))
    assert not is_break(bug)
    assert not is_break(DENIED)
