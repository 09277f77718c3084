"""Rows of the journal: what is stored comes back, and what was changed by hand is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.records import (
    EventRow,
    decode_event,
    decode_run,
    encode_event,
    encode_summary,
    split_run,
)
from remit.agent.sealing import Content
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.histories import RUN, accepted, histories


@given(histories())
def test_events_come_back_as_they_were(events: list[run_pb2.RunEvent]) -> None:
    contents = set()
    for event in events:
        row, content = encode_event(event)
        assert decode_event(row, content.data if content else None) == event
        if content is not None:
            contents.add(content.digest)
            assert content == Content.of(content.data)
    # The task, and one large argument or result, are the only contents of these histories.
    assert len(contents) <= 2


@given(histories(), st.data())
def test_any_change_by_hand_is_detected_and_named(
    events: list[run_pb2.RunEvent], data: st.DataObject
) -> None:
    event = data.draw(st.sampled_from(events))
    row, content = encode_event(event)
    changed: list[EventRow] = [
        replace(row, sequence=row.sequence + 1),
        replace(row, percent=row.percent ^ 1),
        replace(row, event_time=row.event_time + timedelta(microseconds=1)),
        replace(row, payload=row.payload + b"\x00"),
        replace(row, digest=bytes(32)),
        replace(row, content_digest=bytes(31) + b"\x01"),
    ]
    for wrong in changed:
        with pytest.raises(RemitError, match=rf"{RUN}: event \d+ ") as caught:
            decode_event(wrong, content.data if content else None)
        assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT
    if content is not None:
        with pytest.raises(RemitError, match="content that is missing or changed"):
            decode_event(row, content.data + b"x")
        with pytest.raises(RemitError, match="content that is missing or changed"):
            decode_event(row, None)


def test_a_run_is_stored_without_its_task_and_comes_back_with_it() -> None:
    run = accepted(3)
    run.task = "a task of some length"
    slim, content = split_run(run)
    summary = encode_summary(slim)
    assert b"some length" not in summary.public
    assert decode_run(summary, content) == run
