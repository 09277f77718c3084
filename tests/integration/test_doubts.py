"""Tools is killed when a mail has gone out and nothing says so; a person decides what follows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.integration.approving import DOWN
from tests.integration.clients import a_run, bearer, channel
from tests.integration.storming import Kill, StormWorld, arm, recipient_of, storm_world
from tests.integration.test_approvals import BOB, end_of
from tests.waiting import eventually

AFTER_THE_MAIL = Kill("tools-0", "tools", "smtplib.SMTP.data after", 0)
AGENT = {
    "name": "careful",
    "display_name": "Careful",
    "description": "Writes a file and sends a mail.",
    "instructions": "Do exactly what the task asks.",
    "model": "storm",
    "tools": ["write_file", "send_email"],
    "max_duration_s": 600,
    "on_doubt": "ask",
}


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    """A folder with an agent that asks about doubts."""
    tmp_path.chmod(0o755)
    (tmp_path / "careful.yaml").write_text(yaml.safe_dump(AGENT))
    return tmp_path


@pytest.fixture
async def storm(agents: Path) -> AsyncIterator[StormWorld]:
    """A mesh with a mail server outside."""
    async with storm_world(environment={"REMIT_AGENT_AGENTS_DIR": str(agents)}) as world:
        yield world


def bobs_key(world: StormWorld) -> str:
    """A key that may send mail; of what it asks for nobody else decides than another admin."""
    done = world.mesh.run("keys", "create", "bob", "--user", BOB, "--role", "admin", "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["secret"])


async def in_doubt(world: StormWorld, key: str, number: int) -> tuple[str, dict[str, Any]]:
    """A run whose mail went out when tools died, and the approval that it waits for."""
    _, fired = arm(world.orders, AFTER_THE_MAIL, number=number)
    request = a_run(f"Do storm {number}", agent="agents/careful")
    async with channel(world.mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        name = (await agents.CreateRun(request, metadata=bearer(key))).run.name

        async def waits() -> list[str]:
            asked = agent_service_pb2.GetRunRequest(name=name)
            try:
                run = (await agents.GetRun(asked, metadata=bearer(key))).run
            except grpc.aio.AioRpcError as error:
                if error.code() not in DOWN:
                    raise
                return []
            assert run.state <= run_pb2.RUN_STATE_RUNNING, run
            return list(run.approvals)

        (approval,) = await eventually(waits, 60)
    assert fired.exists()
    shown = world.mesh.run("approvals", "show", approval, "--json")
    return name, json.loads(shown.stdout)["approval"]


def decide(world: StormWorld, verb: str, approval: str, reason: str) -> None:
    done = world.mesh.run("approvals", verb, approval, "--reason", reason)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(240)
async def test_a_person_decides_about_a_mail_that_may_have_gone_out(storm: StormWorld) -> None:
    key = bobs_key(storm)
    approved, asked = await in_doubt(storm, key, 1)
    assert storm.mails()[recipient_of(1)] == 1, "it did go out"
    assert asked["repeats_claim"].startswith("claims/")
    assert asked["repeats_claim"] != asked["claim"]
    assert recipient_of(1) in json.dumps(asked["arguments"])
    decide(storm, "approve", asked["name"], "the mailbox is empty")
    events = await end_of(storm.mesh, key, approved)
    assert events[-1].ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, events[-1].ended.run
    assert storm.mails()[recipient_of(1)] == 2, "a person wanted it so"
    told = storm.mesh.run("explain", approved)
    assert "whether it took effect is unknown" in told.stdout

    denied, asked = await in_doubt(storm, key, 2)
    decide(storm, "deny", asked["name"], "it has arrived")
    events = await end_of(storm.mesh, key, denied)
    assert events[-1].ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
    ends = [e.tool_call_ended for e in events if e.HasField("tool_call_ended")]
    error = RemitError.from_status(ends[-1].error)
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    assert "it has arrived" in error.message
    assert storm.mails()[recipient_of(2)] == 1
