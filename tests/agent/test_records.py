"""Rows of the journal: what is stored comes back, and what was changed by hand is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.records import (
    EventRow,
    decode_event,
    decode_run,
    encode_event,
    encode_summary,
    erased_run,
    run_id,
    split_run,
)
from remit.agent.sealing import Key
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.histories import RUN, accepted, histories
from tests.agent.test_sealing import OTHER_RUN, key

KEYS = st.sampled_from([None, key(), key(record=run_id(RUN))])
"""None: as rows were before there were keys."""


@given(histories(), KEYS)
def test_events_come_back_as_they_were(
    events: list[run_pb2.RunEvent], sealed_with: Key | None
) -> None:
    contents = set()
    for event in events:
        row, content = encode_event(event, sealed_with)
        assert decode_event(row, content.data if content else None, sealed_with) == event
        assert row.is_sealed == (sealed_with is not None)
        if content is not None:
            contents.add(content.digest)
            assert content.is_plain == (sealed_with is None)
    # The task, and one large argument or result, are the only contents of these histories.
    assert len(contents) <= 2


@given(histories(), st.data(), KEYS)
def test_any_change_by_hand_is_detected_and_named(
    events: list[run_pb2.RunEvent], data: st.DataObject, sealed_with: Key | None
) -> None:
    event = data.draw(st.sampled_from(events))
    row, content = encode_event(event, sealed_with)
    changed: list[EventRow] = [
        replace(row, sequence=row.sequence + 1),
        replace(row, percent=row.percent ^ 1),
        replace(row, event_time=row.event_time + timedelta(microseconds=1)),
        replace(row, payload=row.payload + b"\x00"),
        replace(row, digest=bytes(32)),
        replace(row, content_digest=bytes(31) + b"\x01"),
    ]
    if row.facts is not None:
        changed += [
            replace(row, facts=None),
            replace(row, facts=replace(row.facts, claim=UUID(int=7))),
            replace(row, facts=replace(row.facts, resource="tools/x")),
            replace(row, facts=replace(row.facts, intent_leaf_index=77)),
        ]
    for wrong in changed:
        with pytest.raises(RemitError, match=rf"{RUN}: event \d+ ") as caught:
            decode_event(wrong, content.data if content else None, sealed_with)
        assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT
    if content is not None:
        with pytest.raises(RemitError, match="content that is missing or changed"):
            decode_event(row, content.data + b"x", sealed_with)
        with pytest.raises(RemitError, match="content that is missing or changed"):
            decode_event(row, None, sealed_with)


def test_a_run_is_stored_without_its_task_and_comes_back_with_it() -> None:
    run = accepted(3)
    run.task = "a task of some length"
    slim, content = split_run(run)
    summary = encode_summary(slim)
    assert b"some length" not in summary.public
    assert decode_run(summary, content) == run


@given(histories())
def test_only_the_key_of_a_run_opens_its_events(events: list[run_pb2.RunEvent]) -> None:
    for event in events:
        row, content = encode_event(event, key())
        data = content.data if content else None
        for other in (None, key("b"), key(record=OTHER_RUN)):
            with pytest.raises(RemitError, match=rf"event {event.sequence} cannot be opened"):
                decode_event(row, data, other)


def test_what_is_public_of_a_run_is_read_without_its_key() -> None:
    run = accepted(3)
    run.result, run.webhook.url, run.webhook.id = "the answer", "https://example.com/x", "w"
    run.error.message = "it failed"
    slim, given = split_run(run)
    summary, content = encode_summary(slim, key()), key().sealed(given)
    assert decode_run(summary, content, key()) == run
    left = erased_run(summary)
    assert left.erased
    assert (left.name, left.subject, left.limits) == (run.name, run.subject, run.limits)
    assert (left.result, left.webhook.url, left.webhook.id) == ("", "", "w")
    assert not left.HasField("error")
    with pytest.raises(RemitError, match="under another key"):
        decode_run(summary, content, key("b"))
    unsaid = accepted(3)
    assert encode_summary(split_run(unsaid)[0], key()).sealed is None
