"""The inference service for tests: the shipped models, and one at a provider on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from remit.inference.settings import InferenceSettings
from tests.conftest import PostgresCluster
from tests.effects.world import World
from tests.inference.openai_server import OpenAIServer, running
from tests.inference.service_world import InferenceWorld, opened


@pytest.fixture
def world() -> World:
    """Policy allows, money is there, the log takes everything."""
    return World()


@pytest.fixture
async def provider() -> AsyncIterator[OpenAIServer]:
    """A provider that says hello."""
    async with running() as server:
        yield server


@pytest.fixture
def guardrails() -> str:
    """What the service is told to do about what its guardrails find."""
    return ""


@pytest.fixture
async def inference(
    postgres: PostgresCluster,
    guardrails: str,
    world: World,
    provider: OpenAIServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[InferenceWorld]:
    """The service with `builtin-rules`, `gpt` at the provider, and `keyless` without its key."""
    monkeypatch.setenv("PROVIDER_KEY", "rk-provider-secret")
    monkeypatch.delenv("MISSING_KEY", raising=False)
    file = tmp_path / "models.yaml"
    file.write_text(yaml.safe_dump({"models": _models(provider.base_url)}))
    settings = InferenceSettings(
        dsn=postgres.dsn(await postgres.fresh("inference"), "remit_inference"),
        models_file=file,
        guardrails=guardrails,
        heartbeat_s=0.05,
        effect_sweep_s=0.05,
        effect_stop_grace_s=2.0,
    )
    async with opened(settings, world) as started:
        background = [asyncio.ensure_future(work()) for work in started.service.background]
        yield started
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


def _models(base_url: str) -> list[dict[str, object]]:
    at_provider = {
        "engine": "openai",
        "base_url": base_url,
        "provider_model": "gpt-5-mini",
        "context_tokens": 10_000,
        "max_output_tokens": 100,
        "list_item": "openai/gpt-5-mini",
        "stop_stops_bill": True,
    }
    return [
        {
            "name": "builtin-rules",
            "engine": "builtin-rules",
            "context_tokens": 1_000_000,
            "max_output_tokens": 1_000,
        },
        {"name": "gpt", "api_key": {"env": "PROVIDER_KEY"}, **at_provider},
        {"name": "keyless", "api_key": {"env": "MISSING_KEY"}, **at_provider},
    ]
