"""The spans of a run that does not go well: which of them failed, why, and in nobody's words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace.status import StatusCode

from remit.api.agent.v1 import agent_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.rpc.errors import RemitError
from remit.telemetry import table
from tests.agent.conftest import StartReplica, World
from tests.agent.outside import Generate, Turn, says
from tests.telemetry.tracing import Recorder, recorded
from tests.waiting import eventually

WORDS = "you wrote: secret"
RUN = "invoke_agent assistant"
Failures = list[tuple[str, str | None]]


@dataclass(frozen=True)
class Traced:
    """Runs whose spans are kept."""

    recorder: Recorder
    world: World
    replica: StartReplica

    async def failures(self, count: int, **more: Any) -> Failures:
        """Why each of the `count` stages of a run failed, and the run itself; by name."""
        client = (await self.replica()).client()
        metadata = (*client.metadata, ("traceparent", self.recorder.root.traceparent))
        client = replace(client, metadata=metadata)
        await client.ended((await client.create(**more)).name)

        def ended() -> list[ReadableSpan]:
            names = ("stage ", table.INVOKE_AGENT)
            spans = [s for s in self.recorder.all_spans() if s.name.startswith(names)]
            return spans if len(spans) > count else []

        spans = await eventually(ended)
        assert not [span for span in self.recorder.all_spans() if WORDS in span.to_json()]
        return sorted((span.name, failure(span)) for span in spans)


def failure(span: ReadableSpan) -> str | None:
    """Why a span failed, by its reason; None where it did not."""
    reason = dict(span.attributes or {}).get(table.ERROR_TYPE)
    assert (span.status.status_code is StatusCode.ERROR) is (reason is not None)
    assert span.status.description is None
    return None if reason is None else str(reason)


@pytest.fixture
async def traced(world: World, replica: StartReplica) -> AsyncIterator[Traced]:
    with recorded() as recorder:
        yield Traced(recorder, world, replica)


async def test_a_stage_whose_tool_failed_has_failed_and_the_run_goes_on(traced: Traced) -> None:
    error = RemitError(reasons.ERROR_REASON_TOOL_FAILED, WORDS)
    traced.world.tools.effects.failures = [error]
    traced.world.inference.think = asks_once("calculator")
    assert await traced.failures(4) == [
        (RUN, None),
        ("stage answering", None),
        ("stage thinking", None),
        ("stage thinking", None),
        ("stage using tools", "TOOL_FAILED"),
    ]


@pytest.mark.parametrize("tools", [("calculator",), ("calculator", "search")])
async def test_a_tool_that_ends_the_run_fails_its_stage_for_the_same_reason(
    tools: tuple[str, ...], traced: Traced
) -> None:
    error = RemitError(reasons.ERROR_REASON_EFFECT_IN_DOUBT, WORDS)
    traced.world.tools.effects.failures = [error, error]
    traced.world.inference.think = asks_once(*tools)
    assert await traced.failures(2) == [
        (RUN, "EFFECT_IN_DOUBT"),
        ("stage thinking", None),
        ("stage using tools", "EFFECT_IN_DOUBT"),
    ]


async def test_a_model_that_failed_fails_its_stage(traced: Traced) -> None:
    error = RemitError(reasons.ERROR_REASON_PROVIDER_FAILED, WORDS)
    traced.world.inference.effects.failures = [error]
    assert await traced.failures(1) == [
        (RUN, "PROVIDER_FAILED"),
        ("stage thinking", "PROVIDER_FAILED"),
    ]


async def test_a_turn_that_was_cut_fails_its_stage(traced: Traced) -> None:
    def think(_: Generate) -> Turn:
        turn = says(WORDS)
        turn.finish_reason = message_pb2.FINISH_REASON_LENGTH
        return turn

    traced.world.inference.think = think
    assert await traced.failures(2) == [
        (RUN, "RUN_LIMIT_REACHED"),
        ("stage answering", None),
        ("stage thinking", "RUN_LIMIT_REACHED"),
    ]


async def test_a_run_at_its_limit_of_steps_fails_and_its_stages_do_not(traced: Traced) -> None:
    limits = agent_service_pb2.CreateRunRequest().limits
    limits.max_steps = 1
    traced.world.inference.think = asks_once("calculator")
    assert await traced.failures(1, limits=limits) == [
        (RUN, "RUN_LIMIT_REACHED"),
        ("stage thinking", None),
    ]


async def test_an_answer_that_breaks_off_has_failed_and_its_turn_has_not(traced: Traced) -> None:
    traced.world.inference.breaks = 1
    assert await traced.failures(2, task="no tools here") == [
        (RUN, None),
        ("stage answering", "DEPENDENCY_UNAVAILABLE"),
        ("stage thinking", None),
    ]


def asks_once(*tools: str) -> Callable[[Generate], Turn]:
    """A model that calls these tools, then answers."""

    def think(asked: Generate) -> Turn:
        if asked.messages[-1].role == message_pb2.ROLE_TOOL:
            return says("done")
        return says("", *((tool, {"expression": "1 * 1"}) for tool in tools))

    return think
