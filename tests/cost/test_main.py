"""The wired service and its settings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.cost.admission import DefaultBudget
from remit.cost.main import open_service
from remit.cost.periods import Period
from remit.cost.settings import CostSettings
from remit.rpc.calls import remit_token
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from remit.rpc.memory import MemoryMesh
from remit.rpc.mesh import Mesh
from tests.conftest import OpenDatabase
from tests.cost.services import CostWorld
from tests.waiting import eventually

CLOCK = SystemClock()


def a_mesh() -> Mesh:
    return cast("Mesh", MemoryMesh().as_caller(options_pb2.CALLER_COST))


async def test_the_service_opens_and_is_ready(database: OpenDatabase) -> None:
    settings = CostSettings.load(dsn=(await database("cost")).dsn)

    async with open_service(settings, a_mesh(), clock=CLOCK, ids=SystemIds()) as service:
        for check in service.ready:
            await check()

        assert service.area == "cost"
        assert len(service.servicers) == 3


async def test_it_does_not_open_with_a_wrong_price_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("prices: {tools/clock: {call_nanos: -1}}", encoding="utf-8")
    settings = CostSettings.load(prices_file=file)

    with pytest.raises(RemitError, match=r"prices\.yaml: prices\.tools/clock\.call_nanos"):
        async with open_service(settings, a_mesh(), clock=CLOCK, ids=SystemIds()):
            pass


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_COST_DEFAULT_LIMIT_NANOS", "5")
    monkeypatch.setenv("REMIT_COST_DEFAULT_PERIOD", "DAY")
    monkeypatch.setenv("REMIT_COST_PRICES_FILE", "")
    monkeypatch.setenv("REMIT_COST_UNLISTED_TOOLS", "refuse")
    monkeypatch.setenv("REMIT_COST_DEFAULT_ALERT_PERCENTS", "90, 50")

    settings = CostSettings.load()

    assert settings.rules.default_budget == DefaultBudget(Period.DAY, 5, (50, 90))
    assert settings.prices_file is None
    assert settings.unlisted_tools == "refuse"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REMIT_COST_DEFAULT_LIMIT_NANOS", "-1"),
        ("REMIT_COST_DEFAULT_LIMIT_NANOS", str(2**63)),
        ("REMIT_COST_DEFAULT_PERIOD", "WEEK"),
        ("REMIT_COST_UNLISTED_MODELS", "maybe"),
        ("REMIT_COST_MAX_BATCH", "0"),
        ("REMIT_COST_DEFAULT_ALERT_PERCENTS", ""),
        ("REMIT_COST_DEFAULT_ALERT_PERCENTS", "80,0"),
        ("REMIT_COST_DEFAULT_ALERT_PERCENTS", "much"),
    ],
)
def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(RemitError, match=variable) as caught:
        CostSettings.load()

    assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID


def test_every_setting_is_documented() -> None:
    for name, field in CostSettings.model_fields.items():
        assert field.description, name


async def test_what_nobody_repeats_is_recorded_in_the_background(world: CostWorld) -> None:
    world.audit.away = True
    request = report_pb2.SetBudgetRequest(
        account="orgs/acme", period=reservation_pb2.PERIOD_DAY, limit_nanos=1, request_id="one"
    )
    with remit_token(world.client_token()), pytest.raises(RemitError, match="the log is away"):
        await world.reports().SetBudget(request)
    recording = asyncio.create_task(world.recorder.run())
    try:
        world.audit.away = False
        await eventually(lambda: len(world.audit.events) == 1)
    finally:
        recording.cancel()
