"""The inference service wired as in production, over a real database and the in-memory mesh.

Policy, cost and audit are those of the gate's own tests: they speak the contracts and keep the
rules that the gate relies on. Remits are signed and verified for real.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from remit.api.inference.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    message_pb2,
    model_service_pb2_grpc,
)
from remit.api.options.v1 import options_pb2
from remit.guardrails import parse_wanted
from remit.inference.main import open_service
from remit.inference.settings import InferenceSettings
from remit.rpc.calls import REMIT_KEY, remit_token
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import permissions
from remit.rpc.guard import Guard
from remit.rpc.host import Service
from remit.rpc.ids import SystemIds
from remit.rpc.memory import MemoryMesh
from remit.rpc.mesh import Mesh
from remit.rpc.remits import Remit, RemitVerifier, encode_remit
from tests.effects.world import World, connected
from tests.inference.offered import shipped
from tests.waiting import PATIENCE

ALICE = "orgs/acme/users/alice"
_KEY = Ed25519PrivateKey.generate()


class OneKey:
    """The key that signs the remits of these tests."""

    async def public_key(self, _key_id: str) -> Ed25519PublicKey | None:
        return _KEY.public_key()


def token_of(
    subject: str = ALICE, *, run: str = "", models: tuple[str, ...] = (), guardrails: str = ""
) -> str:
    """A signed remit: a client's, or a run's with its models; policy wants these guardrails."""
    now = datetime.now(UTC)
    agent = "agents/assistant" if run else ""
    remit = Remit(
        remit_id="r",
        subject=subject,
        team="",
        agent=agent,
        run=run,
        presenter=options_pb2.CALLER_AGENT if run else options_pb2.CALLER_PUBLIC,
        audience=frozenset({options_pb2.CALLER_INFERENCE, options_pb2.CALLER_COST}),
        tools=frozenset(),
        models=frozenset(models),
        account=f"{subject}/{agent}/{run}" if run else subject,
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


def a_prompt(
    text: str = "What is 17 * 23?",
    *,
    key: str = "key-1",
    model: str = "builtin-rules",
    **fields: Any,
) -> inference_service_pb2.GenerateTextRequest:
    """A question with every shipped tool on offer."""
    request = inference_service_pb2.GenerateTextRequest(
        model=f"models/{model}",
        messages=[message_pb2.Message(role=message_pb2.ROLE_USER, text=text)],
        tools=shipped(),
        request_id=key,
    )
    request.MergeFrom(inference_service_pb2.GenerateTextRequest(**fields))
    return request


@dataclass
class InferenceWorld:
    """The service and what is around it."""

    service: Service
    world: World
    mesh: MemoryMesh

    def stub(
        self, caller: options_pb2.Caller.ValueType = options_pb2.CALLER_PUBLIC
    ) -> inference_service_pb2_grpc.InferenceServiceStub:
        return self.mesh.as_caller(caller).stub(inference_service_pb2_grpc.InferenceServiceStub)

    def models(
        self, caller: options_pb2.Caller.ValueType = options_pb2.CALLER_PUBLIC
    ) -> model_service_pb2_grpc.ModelServiceStub:
        return self.mesh.as_caller(caller).stub(model_service_pb2_grpc.ModelServiceStub)

    async def generate(
        self, request: inference_service_pb2.GenerateTextRequest, *, token: str = ""
    ) -> inference_service_pb2.GenerateTextResponse:
        with remit_token(token or token_of()):
            return await self.stub().GenerateText(request)

    async def stream(
        self, request: inference_service_pb2.GenerateTextRequest, *, token: str = ""
    ) -> AsyncGenerator[inference_service_pb2.StreamGenerateTextResponse, None]:
        call = self.stub().StreamGenerateText(
            inference_service_pb2.StreamGenerateTextRequest(request=request),
            metadata=((REMIT_KEY, token or token_of()),),
        )
        async with contextlib.aclosing(cast("Any", call)) as pieces:
            async for piece in pieces:
                yield piece

    async def streamed(
        self, request: inference_service_pb2.GenerateTextRequest, *, token: str = ""
    ) -> list[inference_service_pb2.StreamGenerateTextResponse]:
        return [piece async for piece in self.stream(request, token=token)]

    async def settled_down(self) -> None:
        """Lets the service finish what it closes in the background."""
        for drain in self.service.drain:
            await drain()


@contextlib.asynccontextmanager
async def opened(
    settings: InferenceSettings, world: World, mesh: MemoryMesh | None = None
) -> AsyncIterator[InferenceWorld]:
    """The service behind its guard; its neighbours are in `mesh`, or the gate's own tests'."""
    neighbours = (mesh or connected(world)).as_caller(options_pb2.CALLER_INFERENCE)
    async with open_service(
        settings, cast("Mesh", neighbours), clock=SystemClock(), ids=SystemIds()
    ) as service:
        guard = Guard(
            audience=options_pb2.CALLER_INFERENCE,
            verifier=RemitVerifier(OneKey(), SystemClock()),
            clock=SystemClock(),
            max_in_flight=1000,
        )
        door = MemoryMesh(PATIENCE)
        for add, servicer in service.servicers:
            door.add(guard, add, servicer)
        opened_world = InferenceWorld(service, world, door)
        yield opened_world
        await opened_world.settled_down()
