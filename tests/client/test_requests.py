"""Requests hold every field of the contracts, and one value is one request."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.client import Limits, ListedRuns, NewRun

PAGE = {"page_size", "page_token"}


def test_a_new_run_has_every_field_of_the_request() -> None:
    fields = {field.name for field in dataclasses.fields(NewRun)}
    assert fields == set(agent_service_pb2.CreateRunRequest.DESCRIPTOR.fields_by_name)
    limits = {field.name for field in dataclasses.fields(Limits)}
    assert limits == set(run_pb2.RunLimits.DESCRIPTOR.fields_by_name)


def test_a_list_has_every_filter_of_the_request() -> None:
    fields = {field.name for field in dataclasses.fields(ListedRuns)}
    assert fields == set(agent_service_pb2.ListRunsRequest.DESCRIPTOR.fields_by_name) - PAGE


def test_every_value_reaches_the_request() -> None:
    start = datetime(2026, 12, 1, 8, tzinfo=UTC)
    new = NewRun(
        "count",
        agent="clerk",
        context={"unit": "apples"},
        limits=Limits(3, timedelta(minutes=2), 50_000),
        priority=2,
        schedule_time=start,
        webhook="https://example.com/ended",
        conversation="0198",
        request_id="r1",
    )
    wanted = agent_service_pb2.CreateRunRequest(
        agent="agents/clerk",
        task="count",
        context={"unit": "apples"},
        limits=run_pb2.RunLimits(max_steps=3, max_cost_nanos=50_000),
        priority=2,
        request_id="r1",
        conversation="conversations/0198",
        webhook="https://example.com/ended",
    )
    wanted.limits.max_duration.FromSeconds(120)
    wanted.schedule_time.FromDatetime(start)
    assert new.to_request() == wanted


def test_what_is_not_given_is_not_sent() -> None:
    request = NewRun("count").to_request()
    assert not request.HasField("limits")
    assert not request.HasField("schedule_time")
    partly = NewRun("count", limits=Limits(max_steps=1)).to_request().limits
    assert partly == run_pb2.RunLimits(max_steps=1)


def test_one_value_is_one_request_and_another_is_another() -> None:
    new = NewRun("count")
    assert new.to_request() == new.to_request()
    assert new.request_id != NewRun("count").request_id


@pytest.mark.parametrize(
    ("given", "asked"), [("clerk", "agents/clerk"), ("agents/clerk", "agents/clerk"), ("", "")]
)
def test_names_may_lack_their_collection(given: str, asked: str) -> None:
    assert ListedRuns(agent=given).to_request().agent == asked
