"""What is taken away ends the streams that it let in, within the bound of their contracts.

The policy service, its database, the guard and the clients are real; time is the test's, and the
streams send a heartbeat as often as they promise to.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from remit.agent.settings import AgentSettings
from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.audit.settings import AuditSettings
from remit.client import RunStream
from remit.policy.epochs import Policies
from remit.policy.rule_sets import PolicySource
from remit.rpc.calls import REMIT_KEY
from remit.rpc.contracts import MethodContract, all_contracts
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.mesh import reading
from remit.rpc.permission import HEARTBEAT_SHARE, StreamPermissions
from tests.client.still import StillClock
from tests.policy.world import LIFETIME_S, MovedClock, World
from tests.waiting import in_time

BOUNDED = [
    contract
    for contract in all_contracts().values()
    if contract.stream is not None and contract.stream.permission_bound_s
]
WATCH_RUN = all_contracts()["/remit.api.agent.v1.AgentService/WatchRun"]
RUN = "runs/01980000-0000-7000-8000-000000000000"
REVOKE = "UPDATE api_keys SET revoke_time = now()"
"""As another replica does: what this one remembers it does not forget by itself."""
_LONG_S = 600.0
FORBID = '@id("stop") @reason("stopped by hand") forbid(principal, action, resource);'


def caller_of(contract: MethodContract) -> options_pb2.Caller.ValueType:
    return options_pb2.Caller.Value(f"CALLER_{contract.area.upper()}")


def heartbeat_s(contract: MethodContract) -> float:
    """The longest silence of a stream that may be bounded so."""
    assert contract.stream is not None
    return HEARTBEAT_SHARE * contract.stream.permission_bound_s


class Beats:
    """A method that sends what the test lets it send, and nothing by itself."""

    def __init__(self, contract: MethodContract) -> None:
        module = importlib.import_module(f"{contract.service.rpartition('.')[0]}.{_file(contract)}")
        name = contract.path.rpartition("/")[2]
        service = module.DESCRIPTOR.services_by_name[contract.service.rpartition(".")[2]]
        method = service.methods_by_name[name]
        self._contract = contract
        self._request = message_factory.GetMessageClass(method.input_type)
        self._response = message_factory.GetMessageClass(method.output_type)
        self.due: asyncio.Queue[Any] = asyncio.Queue()
        self.begun = 0

    def add_to(self, server: Any) -> None:
        """As generated code does."""
        handler: Any = grpc.unary_stream_rpc_method_handler(
            self._send,
            self._request.FromString,
            lambda response: response.SerializeToString(),
        )
        name = self._contract.path.rpartition("/")[2]
        server.add_registered_method_handlers(self._contract.service, {name: handler})

    async def _send(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        self.begun += 1
        while True:
            yield await self.due.get()

    def beat(self) -> None:
        """Lets one message go."""
        self.due.put_nowait(self._response())

    def asked(self) -> Any:
        """A request of the method."""
        return self._request()


def _file(contract: MethodContract) -> str:
    noun = contract.service.rpartition(".")[2]
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in noun).lstrip("_") + "_pb2"


class Streaming:
    """A service with one stream, beside the real policy."""

    def __init__(self, world: World, contract: MethodContract) -> None:
        self.world = world
        self.beats = Beats(contract)
        self._contract = contract
        caller = caller_of(contract)
        policy = world.mesh.as_caller(caller).stub(policy_service_pb2_grpc.PolicyServiceStub)
        guard = Guard(
            audience=caller,
            verifier=world.verifier,
            clock=world.clock,
            max_in_flight=100,
            permissions=StreamPermissions(policy, world.clock),
        )
        world.mesh.add(guard, lambda _, server: self.beats.add_to(server), None)

    @contextlib.asynccontextmanager
    async def opened(self, token: str) -> AsyncIterator[AsyncIterator[Any]]:
        """A client's stream under a remit, which has just begun."""
        channel = self.world.mesh.as_caller(options_pb2.CALLER_PUBLIC)._channel
        call: Any = channel.unary_stream(
            self._contract.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=lambda data: data,
        )
        shown = ((REMIT_KEY, token),)
        stream = aiter(call(self.beats.asked(), timeout=_LONG_S, metadata=shown))
        async with reading(stream):
            self.beats.beat()
            await in_time(anext(stream), 10)
            yield stream

    async def lasts(self, stream: AsyncIterator[Any], seconds: float) -> float:
        """Seconds until the stream ends, at most so many; it sends a heartbeat in time."""
        began = self.world.clock.monotonic()
        while (passed := self.world.clock.monotonic() - began) < seconds:
            self.world.clock.move(min(heartbeat_s(self._contract), seconds - passed))
            self.beats.beat()
            await in_time(anext(stream), 10)
        return passed

    async def ending(self, stream: AsyncIterator[Any]) -> tuple[float, RemitError]:
        """Seconds until the stream fails, and how."""
        began = self.world.clock.monotonic()
        with pytest.raises(RemitError) as raised:
            await self.lasts(stream, LIFETIME_S)
        return self.world.clock.monotonic() - began, raised.value


async def key_of(world: World, contract: MethodContract = WATCH_RUN) -> str:
    """A client's remit, as the edge gives it for an API key."""
    return (await world.credentials.session(await world.admin_secret())).token(contract.permission)


def by_path(contract: MethodContract) -> str:
    return contract.path.rpartition("/")[2]


@pytest.mark.parametrize("contract", BOUNDED, ids=by_path)
async def test_a_key_that_is_revoked_ends_each_stream_within_its_bound(
    world: World, contract: MethodContract
) -> None:
    assert contract.stream is not None
    streaming, token = Streaming(world, contract), await key_of(world, contract)
    for before_s in (0.0, 9.0, 19.0, 25.0, 47.0):
        async with streaming.opened(token) as stream:
            await streaming.lasts(stream, before_s)
            await world.database.execute(REVOKE)
            seconds, error = await streaming.ending(stream)
        await world.database.execute("UPDATE api_keys SET revoke_time = NULL")
        assert 0 < seconds <= contract.stream.permission_bound_s
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        assert "was revoked" in error.message
        assert error.metadata["permission"] == contract.permission


@pytest.mark.parametrize("contract", BOUNDED, ids=by_path)
async def test_a_permission_that_is_taken_away_ends_each_stream_within_its_bound(
    world: World, contract: MethodContract
) -> None:
    assert contract.stream is not None
    streaming, token = Streaming(world, contract), await key_of(world, contract)
    async with streaming.opened(token) as stream:
        await streaming.lasts(stream, 45)
        source = world.policies.book.source
        forbidding = PolicySource({**source.files, "stop.cedar": FORBID}, source.schema)
        await Policies.open(world.sets, forbidding, world.clock)
        seconds, error = await streaming.ending(stream)
    assert seconds <= contract.stream.permission_bound_s
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert error.message.startswith(f"the stream ends: {contract.permission} was taken away")


async def test_a_stream_that_stays_permitted_ends_with_its_remit_and_can_be_resumed(
    world: World,
) -> None:
    streaming, token = Streaming(world, WATCH_RUN), await key_of(world)
    async with streaming.opened(token) as stream:
        seconds, error = await streaming.ending(stream)
    assert LIFETIME_S - 2 * heartbeat_s(WATCH_RUN) <= seconds <= LIFETIME_S
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert "resume after the last sequence" in error.message


async def test_without_a_decision_a_stream_ends_and_can_be_resumed(world: World) -> None:
    streaming, token = Streaming(world, WATCH_RUN), await key_of(world)
    async with streaming.opened(token) as stream:
        world.mesh.remove("/remit.api.policy.v1.PolicyService/")
        seconds, error = await streaming.ending(stream)
    assert seconds <= 30
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.retryable


async def test_streams_ask_no_oftener_than_they_must(world: World) -> None:
    streaming, token = Streaming(world, WATCH_RUN), await key_of(world)
    asked: list[float] = []
    fences = world.runs.fences

    async def counted(*about: Any) -> Any:
        asked.append(world.clock.monotonic())
        return await fences(*about)

    world.runs.fences = counted  # type: ignore[assignment, method-assign]
    async with streaming.opened(token) as stream:
        await streaming.lasts(stream, 200)
    assert len(asked) == 10


def test_heartbeats_are_no_rarer_than_the_bound_needs() -> None:
    for settings in (AgentSettings, AuditSettings):
        longest = [m.le for m in settings.model_fields["heartbeat_s"].metadata if hasattr(m, "le")]
        assert longest == [heartbeat_s(WATCH_RUN)]


class TestClient:
    """What the Python client makes of it."""

    def followed(self, streaming: Streaming, token: Callable[[], str]) -> RunStream:
        stub = streaming.world.mesh.as_caller(options_pb2.CALLER_PUBLIC).stub(
            agent_service_pb2_grpc.AgentServiceStub
        )

        def opened(after: int) -> AsyncIterator[agent_service_pb2.WatchRunResponse]:
            request = agent_service_pb2.WatchRunRequest(name=RUN, after_sequence=after)
            return aiter(stub.WatchRun(request, metadata=((REMIT_KEY, token()),)))

        return RunStream(opened, StillClock().resumption())

    def sent(self, streaming: Streaming, sequence: int, *, ended: bool = False) -> None:
        event = run_pb2.RunEvent(sequence=sequence, run=RUN)
        if ended:
            event.ended.run.name = RUN
        response = agent_service_pb2.WatchRunResponse(event=event, sequence=sequence)
        streaming.beats.due.put_nowait(response)

    async def test_it_raises_when_the_key_was_revoked(self, world: World) -> None:
        streaming, token = Streaming(world, WATCH_RUN), await key_of(world)
        async with self.followed(streaming, lambda: token) as events:
            self.sent(streaming, 1)
            assert (await in_time(anext(events), 10)).sequence == 1
            await world.database.execute(REVOKE)
            world.clock.move(21)
            self.sent(streaming, 2)
            with pytest.raises(RemitError, match="was revoked") as raised:
                await in_time(anext(events), 10)
        assert raised.value.code is grpc.StatusCode.PERMISSION_DENIED
        assert streaming.beats.begun == 1

    async def test_it_resumes_with_a_new_remit_when_the_old_one_ended(
        self, world: World, clock: MovedClock
    ) -> None:
        secret = await world.admin_secret()
        tokens = [(await world.credentials.session(secret)).token(WATCH_RUN.permission)]
        streaming = Streaming(world, WATCH_RUN)
        async with self.followed(streaming, lambda: tokens[-1]) as events:
            self.sent(streaming, 1)
            assert (await in_time(anext(events), 10)).sequence == 1
            clock.move(LIFETIME_S - 1)
            tokens.append((await world.credentials.session(secret)).token(WATCH_RUN.permission))
            self.sent(streaming, 2)  # read by the stream whose remit has ended, and not sent
            self.sent(streaming, 2)
            self.sent(streaming, 3, ended=True)
            assert [event.sequence async for event in events] == [2, 3]
        assert streaming.beats.begun == 2
