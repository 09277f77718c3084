"""What a run sees of those before it: whole exchanges, the newest, within bounds, in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit import names
from remit.agent.conversation import messages
from remit.agent.definitions import load_catalog
from remit.agent.history import Exchange, exchanges_of, kept
from remit.agent.journal import fold
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.rpc.errors import RemitError
from tests.agent.histories import histories

ASSISTANT = load_catalog(None).get("agents/assistant")

exchanges = st.builds(
    Exchange,
    run=st.just("runs/x"),
    task=st.text(min_size=1, max_size=20),
    context=st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2),
    answer=st.text(min_size=1, max_size=20),
)
lines = st.lists(exchanges, max_size=8)
bounds = st.integers(min_value=0, max_value=9), st.integers(min_value=0, max_value=300)


@given(lines, *bounds)
def test_the_newest_that_fit_are_kept_whole(
    line: list[Exchange], max_runs: int, max_bytes: int
) -> None:
    found = kept(line, max_runs=max_runs, max_bytes=max_bytes)
    count = len(found)
    assert list(found) == line[:count]
    assert count <= max_runs
    assert sum(exchange.size_bytes for exchange in found) <= max_bytes
    if count < len(line):  # one more would not have fitted
        more = sum(exchange.size_bytes for exchange in line[: count + 1])
        assert count == max_runs or more > max_bytes


@given(lines, *bounds, st.integers(min_value=0, max_value=8))
def test_reading_on_changes_nothing_once_something_was_left_out(
    line: list[Exchange], max_runs: int, max_bytes: int, cut: int
) -> None:
    """So whoever reads in pages may stop there."""
    part = kept(line[:cut], max_runs=max_runs, max_bytes=max_bytes)
    whole = kept(line, max_runs=max_runs, max_bytes=max_bytes)
    assert whole[: len(part)] == part
    if len(part) < len(line[:cut]):
        assert whole == part


@given(exchanges)
def test_the_size_counts_every_text(exchange: Exchange) -> None:
    texts = exchange.task + exchange.answer
    texts += "".join(key + value for key, value in exchange.context.items())
    assert exchange.size_bytes == len(texts.encode())


@given(histories(), lines)
def test_what_came_before_stands_between_instructions_and_task(
    events: list[run_pb2.RunEvent], line: list[Exchange]
) -> None:
    progress = fold(events)
    alone = messages(progress, ASSISTANT)
    told = messages(progress, ASSISTANT, line)
    assert told[:1] + told[1 + 2 * len(line) :] == alone
    before = told[1 : 1 + 2 * len(line)]
    assert [message.text for message in before[1::2]] == [exchange.answer for exchange in line]
    for exchange, asked in zip(line, before[::2], strict=True):
        assert asked.role == message_pb2.ROLE_USER
        assert asked.text.startswith(exchange.task.rstrip())
    assert messages(progress, ASSISTANT, list(line)) == told


def ends(count: int) -> list[run_pb2.RunEvent]:
    """The last events of runs that follow on one another, newest first."""
    runs = [names.run_name(f"00000000-0000-7000-8000-{n:012}") for n in range(count)]
    found = []
    for number in reversed(range(count)):
        run = run_pb2.Run(
            name=runs[number],
            task=f"task {number}",
            result=f"answer {number}",
            state=run_pb2.RUN_STATE_SUCCEEDED,
            previous_run=runs[number - 1] if number else "",
        )
        event = run_pb2.RunEvent(run=run.name, sequence=7, ended=run_pb2.RunEnded(run=run))
        found.append(event)
    return found


def test_exchanges_are_read_along_the_line() -> None:
    line = ends(3)
    found = exchanges_of(line[0].run, line)
    assert [exchange.answer for exchange in found] == ["answer 2", "answer 1", "answer 0"]
    assert [exchange.previous_run for exchange in found] == [line[1].run, line[2].run, ""]


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(RemitError, match="its last event is missing") as caught:
        exchanges_of("runs/x", [])
    assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("left out", "event 7 stands where"),
        ("another's end", "event 7 stands where"),
        ("failed", "event 7 is no answer"),
        ("no end", "event 7 stands where"),
    ],
)
def test_what_is_no_line_is_refused(fault: str, message: str) -> None:
    line = ends(3)
    newest = line[0].run
    if fault == "left out":
        del line[1]
    elif fault == "another's end":
        line[1].ended.run.name = newest
    elif fault == "failed":
        line[1].ended.run.state = run_pb2.RUN_STATE_FAILED
    else:
        line[1].started.fencing_token = 1
    with pytest.raises(RemitError, match=message) as caught:
        exchanges_of(newest, line)
    assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT
