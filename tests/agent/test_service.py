"""Runs through the public contract, with the outside played by small services."""

from __future__ import annotations

import asyncio

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica, World, request
from tests.agent.outside import MODEL_COST_NANOS, TOOL_COST_NANOS, away, client_remit
from tests.waiting import eventually


def kinds(events: list[run_pb2.RunEvent]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


async def test_a_run_calls_a_tool_and_answers(replica: StartReplica, world: World) -> None:
    client = (await replica()).client()
    run = await client.create(context={"unit": "apples"})
    events = await client.watch(run.name)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert kinds(events) == [
        "created",
        "started",
        "model_call_started",
    ] or kinds(events) == [
        "created",
        "started",
        "stage_started",
        "model_call_started",
        "stage_started",
        "text_delta",
        "model_call_ended",
        "stage_started",
        "tool_call_started",
        "tool_call_ended",
        "stage_started",
        "model_call_started",
        "stage_started",
        "text_delta",
        "model_call_ended",
        "ended",
    ]
    ended = events[-1].ended.run
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED
    assert ended.result == "The result is 391."
    assert ended.cost_nanos == 2 * MODEL_COST_NANOS + TOOL_COST_NANOS
    assert ended.usage.input_tokens == 20
    assert ended.last_leaf_index == 8
    assert ended.last_sequence == len(events)
    assert events[-1].percent == 100
    assert max(event.percent for event in events[:-1]) < 100
    assert await client.get(run.name) == ended
    assert ended.context["unit"] == "apples"
    assert '"unit": "apples"' in world.inference.requests[0].messages[0].text
