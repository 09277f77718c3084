"""Runs under way of a user or an org that is disabled: they perform nothing more, and end.

Real processes. The runs' model is held while somebody is disabled, so that what follows is known:
the tool call that the model asks for next, and the turn after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio

from remit.api.agent.v1 import run_pb2
from remit.api.policy.v1 import (
    org_service_pb2,
    org_service_pb2_grpc,
    policy_admin_service_pb2,
    policy_admin_service_pb2_grpc,
    principal_service_pb2,
    principal_service_pb2_grpc,
)
from remit.policy.api_keys import Pepper
from remit.policy.bootstrap import bootstrap_admin
from remit.postgres import Database
from remit.rpc.errors import RemitError
from remit.secret_files import read_secret
from tests.inference import openai_server
from tests.integration.clients import bearer, channel, reason_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.integration.walking import Walking, environment, rows, run_of, walk
from tests.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

OTHER = "orgs/other"
EVE = f"{OTHER}/users/eve"


@dataclass
class Walkers:
    """A mesh with runs that go on, and their model."""

    mesh: RunningMesh
    model: Walking

    async def start(self, key: str, task: str) -> str:
        """A run that has called a tool and whose model is held now."""
        self.model.released[task] = asyncio.Event()
        run = await walk(self.mesh, key, task)
        self.model.released[task].set()
        await eventually(lambda: self.model.asked[task] >= 3, 60)
        self.model.released[task] = asyncio.Event()
        held_at = self.model.asked[task] + 1
        await eventually(lambda: self.model.asked[task] >= held_at, 60)
        return run

    async def state(self, run: str) -> int:
        """As the database tells it: whoever is disabled cannot ask."""
        query = "SELECT state FROM runs WHERE run = $1"
        [row] = await rows(self.mesh, "agent", query, uuid.UUID(run.removeprefix("runs/")))
        return int(row["state"])

    async def performed(self, run: str) -> int:
        """Tool calls of a run that were started."""
        query = (
            "SELECT count(*) FROM effect_attempts"
            " WHERE run = $1 AND state NOT IN ('CLAIMED', 'REFUSED')"
        )
        [row] = await rows(self.mesh, "tools", query, run)
        return int(row["count"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def walkers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Walkers]:
    model = Walking()
    async with openai_server.running() as server:
        server.script = model.answer
        folder = tmp_path_factory.mktemp("walkers")
        with started_mesh({"policy": 2}, environment=environment(folder, server)) as mesh:
            yield Walkers(mesh, model)


async def bobs_key(mesh: RunningMesh, user: str) -> str:
    async with channel(mesh.address) as edge:
        made = await policy_admin_service_pb2_grpc.PolicyAdminServiceStub(edge).CreateApiKey(
            policy_admin_service_pb2.CreateApiKeyRequest(
                display_name="walks", user=user, roles=["member"], request_id=str(uuid.uuid4())
            ),
            metadata=bearer(mesh.api_key),
        )
    return str(made.secret)


async def eves_key(mesh: RunningMesh) -> str:
    """The first key of another org, as `remit keys bootstrap` makes it."""
    socket = json.loads((mesh.state / "mesh.json").read_text())["postgres_socket"]
    dsn = f"postgresql://postgres@/remit_policy?host={socket}"
    [pepper] = mesh.state.rglob("api-keys.pepper")
    async with Database.open(dsn, pool_size=1) as database:
        return await bootstrap_admin(database, Pepper(read_secret(pepper)), OTHER, EVE)


async def turn(mesh: RunningMesh, verb: str, name: str) -> None:
    """Disables or enables a user or an org."""
    fields = {"name": name, "request_id": str(uuid.uuid4())}
    async with channel(mesh.address) as edge:
        people = principal_service_pb2_grpc.PrincipalServiceStub(edge)
        orgs = org_service_pb2_grpc.OrgServiceStub(edge)
        is_org = name.count("/") == 1
        module = org_service_pb2 if is_org else principal_service_pb2
        method = f"{verb}{'Org' if is_org else 'Principal'}"
        request = getattr(module, f"{method}Request")(**fields)
        await getattr(orgs if is_org else people, method)(request, metadata=bearer(mesh.api_key))


async def enters_again(mesh: RunningMesh, key: str, run: str) -> run_pb2.Run | None:
    """The run, once the edge has noticed that its owner is enabled."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        return await run_of(mesh, key, run)
    return None


@pytest.mark.parametrize("what", ["user", "org"])
async def test_a_run_under_way_performs_nothing_more_and_ends(walkers: Walkers, what: str) -> None:
    mesh, model = walkers.mesh, walkers.model
    bob = f"{mesh.org}/users/bob"
    key = await (bobs_key(mesh, bob) if what == "user" else eves_key(mesh))
    disabled = bob if what == "user" else OTHER
    run = await walkers.start(key, what)
    asked, performed = model.asked[what], await walkers.performed(run)
    await turn(mesh, "Disable", disabled)
    model.released[what].set()

    async def is_over() -> bool:
        return await walkers.state(run) == run_pb2.RUN_STATE_FAILED

    await eventually(is_over, 60)
    assert (model.asked[what], await walkers.performed(run)) == (asked, performed)
    await turn(mesh, "Enable", disabled)
    ended = await eventually(lambda: enters_again(mesh, key, run), 30)
    assert ended is not None
    error = RemitError.from_status(ended.error)
    assert (error.reason_name, f"{disabled} is disabled" in error.message) == (
        "PERMISSION_DENIED",
        True,
    )
    again = await walkers.start(key, f"{what} again")
    assert await walkers.performed(again) > 0
    model.released[f"{what} again"].set()


async def test_whoever_takes_over_a_run_of_a_disabled_user_gets_no_remit_and_ends_it(
    walkers: Walkers,
) -> None:
    mesh, model = walkers.mesh, walkers.model
    carol = f"{mesh.org}/users/carol"
    key = await bobs_key(mesh, carol)
    run = await walkers.start(key, "taken over")
    asked, performed = model.asked["taken over"], await walkers.performed(run)
    await turn(mesh, "Disable", carol)
    mesh.kill("agent-0")

    async def is_over() -> bool:
        return await walkers.state(run) == run_pb2.RUN_STATE_FAILED

    await eventually(is_over, 60)
    assert (model.asked["taken over"], await walkers.performed(run)) == (asked, performed)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await eventually(lambda: refused_by_now(mesh, key))
    assert reason_of(refused.value).reason_name == "PRINCIPAL_DISABLED"
    await turn(mesh, "Enable", carol)
    ended = await eventually(lambda: enters_again(mesh, key, run), 30)
    assert ended is not None
    assert RemitError.from_status(ended.error).reason_name == "PRINCIPAL_DISABLED"


async def refused_by_now(mesh: RunningMesh, key: str) -> bool:
    """Raises what a start of a run is refused with; False while the edge lets it in."""
    await walk(mesh, key, "never")
    return False
