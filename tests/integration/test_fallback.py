"""Second models and confidence through the whole mesh: a provider that hangs, one that guesses."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import yaml
from starlette.responses import Response

from remit.api.agent.v1 import confidence_pb2, run_pb2
from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from tests.inference import openai_server
from tests.integration.clients import a_run, bearer, channel, followed, result_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

_RULES: Final = {
    "name": "builtin-rules",
    "engine": "builtin-rules",
    "context_tokens": 100_000,
    "max_output_tokens": 1_000,
}
_AT_PROVIDER: Final = {
    "engine": "openai",
    "provider_model": "any",
    "context_tokens": 100_000,
    "max_output_tokens": 1_000,
    "logprobs": True,
    "stop_stops_bill": True,
}
_AGENT: Final = {
    "display_name": "Tested",
    "description": "Is tested.",
    "instructions": "Answer.",
    "tools": ["calculator"],
}
_AGENTS: Final = (
    {
        "name": "hasty",
        "model": "hanging",
        "fallback": {"model": "builtin-rules", "timeout_s": 1},
    },
    {
        "name": "doubtful",
        "model": "guessing",
        "fallback": {"model": "builtin-rules"},
        "confidence": {"min": 0.8},
    },
)
_PRICE: Final = {"input_nanos_per_million": 50_000_000, "output_nanos_per_million": 50_000_000}


def provider_of(server: openai_server.OpenAIServer) -> openai_server.Script:
    """A provider that hangs, or guesses, by the model's name in the request."""
    guess = openai_server.delta(content="Perhaps 400.")
    guess["choices"][0]["logprobs"] = {"content": [{"logprob": math.log(0.5)}]}
    guessing = openai_server.chunks(
        guess, openai_server.delta(finish_reason="stop"), openai_server.usage(10, 4)
    )
    hanging = openai_server.stalls_after(server, openai_server.delta(content="Let me "))

    async def script(body: dict[str, Any]) -> Response:
        return await (guessing if body["model"] == "guessing" else hanging)(body)

    return script


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second_models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningMesh]:
    """A mesh whose first models hang or guess."""
    folder = tmp_path_factory.mktemp("second-models")
    async with openai_server.running() as server:
        server.script = provider_of(server)
        with started_mesh(environment=_environment(folder, server.base_url)) as mesh:
            yield mesh


def _environment(folder: Path, base_url: str) -> dict[str, str]:
    agents = folder / "agents"
    agents.mkdir()
    for agent in _AGENTS:
        (agents / f"{agent['name']}.yaml").write_text(yaml.safe_dump(_AGENT | agent))
    at_provider = [
        {"name": name, "base_url": base_url, **_AT_PROVIDER, "provider_model": name}
        for name in ("hanging", "guessing")
    ]
    prices = {"prices": dict.fromkeys(("models/hanging", "models/guessing"), _PRICE)}
    files = {"models": {"models": [_RULES, *at_provider]}, "prices": prices}
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return {
        "REMIT_AGENT_AGENTS_DIR": str(agents),
        "REMIT_COST_PRICES_FILE": str(folder / "prices.yaml"),
        "REMIT_INFERENCE_MODELS_FILE": str(folder / "models.yaml"),
    }


async def run_of(mesh: RunningMesh, agent: str, task: str) -> list[run_pb2.RunEvent]:
    return await followed(mesh.address, mesh.api_key, a_run(task, agent=f"agents/{agent}"))


def causes(events: list[run_pb2.RunEvent]) -> list[run_pb2.FallbackCause.ValueType]:
    return [e.model_fallback.cause for e in events if e.HasField("model_fallback")]


async def spent(mesh: RunningMesh, model: str) -> int:
    async with channel(mesh.address) as edge:
        response = await cost_report_service_pb2_grpc.CostReportServiceStub(edge).ListSpend(
            cost_report_service_pb2.ListSpendRequest(
                group_by=cost_report_service_pb2.ListSpendRequest.DIMENSION_ITEM
            ),
            metadata=bearer(mesh.api_key),
        )
    return sum(row.posted_nanos for row in response.rows if row.key == model)


async def test_a_provider_that_hangs_is_left_and_its_bill_is_settled(
    second_models: RunningMesh,
) -> None:
    events = await run_of(second_models, "hasty", "What is 17 * 23?")
    run = result_of(events)
    assert run.result == "17 * 23 = 391"
    assert causes(events) == [run_pb2.FALLBACK_CAUSE_TIMED_OUT] * 2, "once a step"
    assert run.confidence == confidence_pb2.Confidence(
        value=1.0,
        source=confidence_pb2.CONFIDENCE_SOURCE_MEASURED,
        kind=confidence_pb2.ANSWER_KIND_ANSWER,
    )

    # What was stopped is in the ledger, not in the run's bill.
    async def is_settled() -> bool:
        return await spent(second_models, "models/hanging") > 0

    await eventually(is_settled)


async def test_an_answer_that_was_guessed_gives_way_to_one_that_was_calculated(
    second_models: RunningMesh,
) -> None:
    events = await run_of(second_models, "doubtful", "What is 17 * 23?")
    run = result_of(events)
    assert causes(events) == [run_pb2.FALLBACK_CAUSE_LOW_CONFIDENCE] * 2, "once a step"
    ends = [e.model_call_ended for e in events if e.HasField("model_call_ended")]
    assert ends[0].confidence.value == pytest.approx(0.5)
    assert ends[1].kept_model == "models/builtin-rules", "which asks the calculator"
    assert run.result == "17 * 23 = 391"
    assert run.confidence.value == 1.0


async def test_where_both_guess_the_agent_abstains(second_models: RunningMesh) -> None:
    run = result_of(await run_of(second_models, "doubtful", "Write a poem."))
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert run.confidence.kind == confidence_pb2.ANSWER_KIND_ABSTENTION
    assert "400" not in run.result
    shown = second_models.run("runs", "show", run.name)
    assert "sure    0.50 (measured); not enough, so the agent abstains" in shown.stdout
