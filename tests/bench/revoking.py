"""A mesh in which things are taken away, and how long each still works after that.

What works and what is refused is seen from outside: by a client at the edge, by the model that a
run asks. Times are those of this machine's clock, which all parts share.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from remit.api.agent.v1 import agent_catalog_service_pb2, agent_catalog_service_pb2_grpc
from remit.api.policy.v1 import (
    grant_service_pb2,
    grant_service_pb2_grpc,
    policy_admin_service_pb2,
    policy_admin_service_pb2_grpc,
    policy_set_pb2,
    policy_set_service_pb2,
    policy_set_service_pb2_grpc,
    principal_service_pb2,
    principal_service_pb2_grpc,
)
from remit.policy.epochs import read_policies
from remit.policy.schema import SHIPPED_POLICIES
from tests.bench.running import MeasuringError, Mesh
from tests.integration.clients import bearer

ORG: Final = "orgs/local"
TOOL: Final = "tools/calculator"
GRANTED: Final = f"{ORG}/teams/granted"
"""Its members call tools by grants alone."""
POLL_S: Final = 0.02
AFTER_S: Final = 1.0
"""How long is looked on after the bound."""
TIMEOUT_S: Final = 10.0
REFUSALS: Final = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_MEMBERS_CALL: Final = "resource.permission_class <= 3"


@dataclass(frozen=True)
class Seen:
    """One try, and what became of it; seconds of the wall clock."""

    asked: float
    answered: float
    worked: bool

    @classmethod
    def now(cls, *, worked: bool) -> Seen:
        """What was not asked for but came."""
        return cls(time.time(), time.time(), worked)


@dataclass(frozen=True)
class Found:
    """How long something worked after it was taken away; seconds from the admin's answer on."""

    refused_s: float
    """When the first refusal came after which nothing worked any more; or, if nothing was refused
    to the end, when that was."""
    worked_s: float
    """When the last try began that worked; zero if none did."""
    late: int
    """Tries that began after the bound and worked."""


def found(seen: Sequence[Seen], revoked: float, bound_s: float) -> Found:
    """What tries show that were made one after another, until well after the bound. Pure.

    What still works at the end is told like anything that works too long: to try it again would
    hide it.

    Raises:
        MeasuringError: nothing worked before.

    """
    if not any(each.worked and each.answered <= revoked for each in seen):
        raise MeasuringError("it did not work before it was taken away")
    last = max(number for number, each in enumerate(seen) if each.worked)
    refused = seen[min(last + 1, len(seen) - 1)]
    return Found(
        max(refused.answered - revoked, 0.0),
        max(seen[last].asked - revoked, 0.0),
        sum(each.worked and each.asked > revoked + bound_s for each in seen),
    )


@dataclass
class World:
    """An administrator of a mesh, and whoever is let in and shut out."""

    mesh: Mesh
    edge: grpc.aio.Channel
    policies: dict[str, str]
    """The text of the files in force, by name."""
    _version: int = 0
    _pushing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def key(self, user: str, team: str = "") -> tuple[str, str]:
        """A new API key of a user: its name and its secret."""
        admin = policy_admin_service_pb2_grpc.PolicyAdminServiceStub(self.edge)
        request = policy_admin_service_pb2.CreateApiKeyRequest(
            display_name="is revoked",
            user=user,
            team=team,
            roles=["member"],
            request_id=str(uuid.uuid4()),
        )
        made = await admin.CreateApiKey(request, metadata=self.mesh.metadata, timeout=TIMEOUT_S)
        return made.api_key.name, made.secret

    async def revoke_key(self, name: str) -> None:
        """Revokes an API key."""
        admin = policy_admin_service_pb2_grpc.PolicyAdminServiceStub(self.edge)
        request = policy_admin_service_pb2.RevokeApiKeyRequest(
            name=name, request_id=str(uuid.uuid4())
        )
        await admin.RevokeApiKey(request, metadata=self.mesh.metadata, timeout=TIMEOUT_S)

    async def disable(self, user: str) -> None:
        """Disables a user."""
        people = principal_service_pb2_grpc.PrincipalServiceStub(self.edge)
        request = principal_service_pb2.DisablePrincipalRequest(
            name=user, request_id=str(uuid.uuid4())
        )
        await people.DisablePrincipal(request, metadata=self.mesh.metadata, timeout=TIMEOUT_S)

    async def grant(self, user: str) -> str:
        """Grants a user the tool; the name of the grant."""
        grants = grant_service_pb2_grpc.GrantServiceStub(self.edge)
        request = grant_service_pb2.GrantToolAccessRequest(
            principal=user, tool=TOOL, request_id=str(uuid.uuid4())
        )
        made = await grants.GrantToolAccess(request, metadata=self.mesh.metadata, timeout=TIMEOUT_S)
        return made.grant.name

    async def revoke_grant(self, name: str) -> None:
        """Revokes a grant."""
        grants = grant_service_pb2_grpc.GrantServiceStub(self.edge)
        request = grant_service_pb2.RevokeToolAccessRequest(name=name, request_id=str(uuid.uuid4()))
        await grants.RevokeToolAccess(request, metadata=self.mesh.metadata, timeout=TIMEOUT_S)

    async def forbid(self, user: str, action: str, resource: str = "resource") -> None:
        """Pushes one more policy, which forbids a user something; what was forbidden stays so."""
        async with self._pushing:
            number = len(self.policies)
            self.policies[f"forbidden-{number}.cedar"] = (
                f'@id("forbidden-{number}") forbid (principal == User::"{user}",'
                f' action == Action::"{action}", {resource});'
            )
            await self._push()

    async def _push(self) -> None:
        sets = policy_set_service_pb2_grpc.PolicySetServiceStub(self.edge)
        if not self._version:
            request = policy_set_service_pb2.ListPolicySetsRequest(page_size=1)
            listed = await sets.ListPolicySets(request, metadata=self.mesh.metadata)
            self._version = listed.policy_sets[0].version
        pushed = await sets.PushPolicySet(
            policy_set_service_pb2.PushPolicySetRequest(
                files=[
                    policy_set_pb2.PolicyFile(name=name, text=text)
                    for name, text in self.policies.items()
                ],
                expected_version=self._version,
                request_id=str(uuid.uuid4()),
            ),
            metadata=self.mesh.metadata,
            timeout=2 * TIMEOUT_S,
        )
        self._version = pushed.policy_set.version


def policies() -> dict[str, str]:
    """The shipped policies, but a team's members call no tool without a grant."""
    files = dict(read_policies(SHIPPED_POLICIES).files)
    changed = {
        name: text.replace(_MEMBERS_CALL, f'{_MEMBERS_CALL} && !(principal in Team::"{GRANTED}")')
        for name, text in files.items()
    }
    assert changed != files, "the shipped policies do not read as expected"
    return changed


def write_policies(folder: Path) -> dict[str, str]:
    """The settings of a mesh that begins with these policies; their files lie in `folder`."""
    folder.mkdir()
    folder.chmod(0o755)
    for name, text in policies().items():
        (folder / name).write_text(text)
    return {"REMIT_POLICY_POLICIES_DIR": str(folder)}


@contextlib.asynccontextmanager
async def world_of(mesh: Mesh) -> AsyncIterator[World]:
    """An administrator at the edge of a mesh that began with `policies`."""
    async with grpc.aio.insecure_channel(mesh.edge) as edge:
        yield World(mesh, edge, policies())


async def at_the_edge(
    world: World,
    secret: str,
    take_away: Callable[[], Awaitable[None]],
    before_s: float,
    bound_s: float,
) -> Found:
    """Calls again and again with a key, from `before_s` before until well after the bound."""
    seen: list[Seen] = []
    polling = asyncio.create_task(_poll(world, secret, seen))
    try:
        await asyncio.wait({polling}, timeout=before_s)
        await take_away()
        revoked = time.time()
        await asyncio.wait({polling}, timeout=bound_s + AFTER_S)
    finally:
        polling.cancel()
        ended = await asyncio.gather(polling, return_exceptions=True)
    if isinstance(ended[0], MeasuringError):
        raise ended[0]
    return found(seen, revoked, bound_s)


async def _poll(world: World, secret: str, seen: list[Seen]) -> None:
    """One call after another, a pause between them. Raises MeasuringError if one fails."""
    agents = agent_catalog_service_pb2_grpc.AgentCatalogServiceStub(world.edge)
    request = agent_catalog_service_pb2.ListAgentsRequest()
    metadata = bearer(secret)
    while True:
        asked, worked = time.time(), True
        try:
            await agents.ListAgents(request, metadata=metadata, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise MeasuringError(f"a call failed: {error.code()}") from error
            worked = False
        seen.append(Seen(asked, time.time(), worked))
        await asyncio.sleep(POLL_S)
