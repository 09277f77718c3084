"""What the gateway refuses by itself, in a whole mesh: in the log once, and beside policy's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningMesh, remit, started_mesh
from tests.integration.test_rate_limits import DAY_S, create
from tests.rest import Client
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)
LIMITS = {
    "REMIT_POLICY_RUN_LIMIT_OF_USER": "1",
    "REMIT_POLICY_RUN_LIMIT_WINDOW_S": str(DAY_S),
}
OPERATOR = "orgs/operator"


async def listed(mesh: RunningMesh, file: Path, key: str, *filters: str) -> list[dict[str, Any]]:
    """The events that `remit audit events` gives to the owner of a key."""
    options = ("--api-key", key, "--force", *filters)
    told = await asyncio.to_thread(mesh.run, "audit", "events", str(file), *options)
    assert told.returncode == 0, told
    lines = (await asyncio.to_thread(file.read_text)).splitlines()
    return [json.loads(line) for line in lines]


def operators_key(mesh: RunningMesh) -> str:
    """The first key of the operator's org, made where policy runs."""
    environ = Path(f"/proc/{mesh.pid('policy-0')}/environ").read_text()
    environment = dict(pair.split("=", 1) for pair in environ.split("\0") if pair)
    made = remit(environment, "keys", "bootstrap", "--user", f"{OPERATOR}/users/ops")
    assert made.returncode == 0, made
    return made.stdout.strip()


async def test_each_refusal_has_one_entry_of_whoever_refused(tmp_path: Path) -> None:
    with started_mesh(environment=LIMITS) as mesh:
        assert await create(mesh) == ""
        assert await create(mesh) == "RATE_LIMITED"
        ops = await asyncio.to_thread(operators_key, mesh)
        anybody = Client(mesh.address)
        assert (await anybody.get("/v1/nothing?token=hidden")).status == 404
        assert (await anybody.get("/v1/runs")).status == 401
        file = tmp_path / "events.jsonl"

        async def limited() -> list[dict[str, Any]]:
            return await listed(mesh, file, mesh.api_key, "--action", "edge.refuse")

        (event,) = await eventually(limited, timeout_s=60)
        assert event["subject"] == f"{mesh.org}/users/admin"
        detail = json.loads(event["detail_json"])
        assert detail["flags"] == "RL"
        assert detail["methods"] == ["remit.api.agent.v1.AgentService/CreateRun"]
        assert detail["best_effort"] is True

        async def unverified() -> list[dict[str, Any]]:
            found = await listed(mesh, file, ops, "--kind", "access")
            return [each for each in found if each["subject"] == f"{OPERATOR}/users/unverified"]

        async def both() -> bool:
            return {"edge.refuse", "runs.read"} <= {each["action"] for each in await unverified()}

        await eventually(both, timeout_s=60)
        # Asked again after both came: neither was told twice.
        told = {each["action"]: json.loads(each["detail_json"]) for each in await unverified()}
        assert len(await unverified()) == len(told) == 2
        assert told["edge.refuse"]["methods"] == ["GET /v1/nothing"]
        assert told["edge.refuse"]["best_effort"] is True
        assert told["runs.read"]["reason"] == "CREDENTIAL_MISSING"
        assert "best_effort" not in told["runs.read"]
        assert "hidden" not in str(await unverified())
        assert len(await limited()) == 1
