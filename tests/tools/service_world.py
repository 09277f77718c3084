"""The tools service wired as in production, over a real database and the in-memory mesh.

Policy, cost and audit are those of the gate's own tests: they speak the contracts and keep the
rules that the gate relies on. Remits are signed and verified for real.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.guardrails import parse_wanted
from remit.rpc.calls import remit_token
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import permissions
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.host import Service
from remit.rpc.ids import SystemIds
from remit.rpc.memory import MemoryMesh
from remit.rpc.mesh import Mesh
from remit.rpc.remits import Remit, RemitVerifier, encode_remit
from remit.tools.main import open_service
from remit.tools.settings import ToolsSettings
from tests.effects.world import World, connected
from tests.tools.calls import struct
from tests.waiting import PATIENCE

ALICE = "orgs/acme/users/alice"
BOB = "orgs/acme/users/bob"
_KEY = Ed25519PrivateKey.generate()


class OneKey:
    """The key that signs the remits of these tests."""

    async def public_key(self, _key_id: str) -> Ed25519PublicKey | None:
        return _KEY.public_key()


def token_of(
    subject: str = ALICE, *, run: str = "", tools: tuple[str, ...] = (), guardrails: str = ""
) -> str:
    """A signed remit: a client's, or a run's with its tools; policy wants these guardrails."""
    now = datetime.now(UTC)
    agent = "agents/assistant" if run else ""
    account = f"{subject}/{agent}/{run}" if run else subject
    remit = Remit(
        remit_id="r",
        subject=subject,
        team="",
        agent=agent,
        run=run,
        presenter=options_pb2.CALLER_AGENT if run else options_pb2.CALLER_PUBLIC,
        audience=frozenset({options_pb2.CALLER_TOOLS}),
        tools=frozenset(tools),
        models=frozenset(),
        account=account,
        max_cost_nanos=None,
        fencing_token=1 if run else 0,
        policy_epoch=1,
        roles=frozenset(),
        key_id="k",
        issue_time=now,
        expire_time=now + timedelta(minutes=5),
        permissions=frozenset(() if run else permissions()),
        guardrails=parse_wanted(guardrails).claim if guardrails else "",
    )
    return encode_remit(remit, _KEY)


def a_run() -> str:
    return f"runs/{uuid.uuid4()}"


@dataclass
class ToolsWorld:
    """The service and what is around it."""

    service: Service
    world: World
    mesh: MemoryMesh

    def stub(
        self, caller: options_pb2.Caller.ValueType = options_pb2.CALLER_PUBLIC
    ) -> tool_service_pb2_grpc.ToolServiceStub:
        return self.mesh.as_caller(caller).stub(tool_service_pb2_grpc.ToolServiceStub)

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        key: str = "key-1",
        token: str = "",
        caller: options_pb2.Caller.ValueType = options_pb2.CALLER_PUBLIC,
        limit_s: float | None = None,
    ) -> tool_service_pb2.CallToolResponse:
        request = tool_service_pb2.CallToolRequest(
            tool=tool, arguments=struct(arguments), request_id=key
        )
        if limit_s is not None:
            request.timeout.FromNanoseconds(int(limit_s * 1e9))
        with remit_token(token or token_of()):
            return await self.stub(caller).CallTool(request)

    async def settled_down(self) -> None:
        """Lets the service finish what it closes in the background."""
        for drain in self.service.drain:
            await drain()


@contextlib.asynccontextmanager
async def opened(settings: ToolsSettings, world: World) -> AsyncIterator[ToolsWorld]:
    """The service behind its guard."""
    neighbours = connected(world).as_caller(options_pb2.CALLER_TOOLS)
    async with open_service(
        settings, cast("Mesh", neighbours), clock=SystemClock(), ids=SystemIds()
    ) as service:
        guard = Guard(
            audience=options_pb2.CALLER_TOOLS,
            verifier=RemitVerifier(OneKey(), SystemClock()),
            clock=SystemClock(),
            max_in_flight=1000,
        )
        mesh = MemoryMesh(PATIENCE)
        for add, servicer in service.servicers:
            mesh.add(guard, add, servicer)
        opened_world = ToolsWorld(service, world, mesh)
        yield opened_world
        await opened_world.settled_down()


async def error_of(call: Callable[[], Awaitable[object]]) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call()
    return caught.value
