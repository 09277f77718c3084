"""The service as its process wires it."""

from __future__ import annotations

from pathlib import Path

import pytest

from remit.agent.main import open_service
from remit.agent.settings import AgentSettings
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.agent.conftest import World


async def test_the_service_opens_ready_and_drains(world: World) -> None:
    settings = AgentSettings.load(dsn=world.database.dsn)
    mesh = world.mesh().as_caller(options_pb2.CALLER_AGENT)
    async with open_service(settings, mesh, clock=SystemClock(), ids=SystemIds()) as service:
        assert service.area == "agent"
        assert len(service.servicers) == 3
        assert len(service.background) == 7
        for check in service.ready:
            await check()
        for hand_over in service.drain:
            await hand_over()
    versions = await world.database.fetch("SELECT agent FROM agent_definitions ORDER BY agent")
    assert [row["agent"] for row in versions] == [
        "agents/assistant",
        "agents/clerk",
        "agents/coordinator",
        "agents/researcher",
    ]


async def test_a_wrong_agent_file_stops_the_start(world: World, agents_dir: Path) -> None:
    (agents_dir / "bad.yaml").write_text("name: bad\n")
    settings = AgentSettings.load(dsn=world.database.dsn, agents_dir=agents_dir)
    mesh = world.mesh().as_caller(options_pb2.CALLER_AGENT)
    with pytest.raises(RemitError, match=r"bad\.yaml") as caught:
        async with open_service(settings, mesh, clock=SystemClock(), ids=SystemIds()):
            pass
    assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(RemitError, match="REMIT_AGENT_LEASE_S"):
        AgentSettings.load(lease_s=0)
