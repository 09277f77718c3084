"""Services behind the edge as they really are: the guard, the forms and the methods of a test.

Where `conftest.Upstream` answers bytes for bytes, these know the messages of their contracts.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import grpc
from google.protobuf import descriptor, message, message_factory

from remit.api.options.v1 import options_pb2
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import permissions
from remit.rpc.guard import Guard
from remit.rpc.remits import RemitVerifier
from remit.rpc.server import ContractInterceptor, caller_by_certificate
from tests.contracts.test_method_contracts import METHODS
from tests.gateway.conftest import Seen, Upstream, World, allow, running_world
from tests.permissions import PERMITTED
from tests.rest import Client

REMIT_OF_ALICE: Final = "remit-of-alice"

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Context], Awaitable[message.Message]]
StreamMethod = Callable[[Any, Context], AsyncGenerator[message.Message, None]]


class AnyRemit:
    """Takes every remit; the edge alone is tested here."""

    async def verify(self, token: str, **_: Any) -> SimpleNamespace:
        assert token == REMIT_OF_ALICE, "the edge must exchange the credential"
        return SimpleNamespace(run="", permissions=permissions())


class Services:
    """Methods by path; one that a test leaves out answers with an empty message."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.methods: dict[str, Method] = {}
        self.streams: dict[str, StreamMethod] = {}
        self.requests: list[message.Message] = []

    @property
    def client(self) -> Client:
        """A client of the edge with a key."""
        return Client(str(self.world.topology.edge), {"authorization": "Bearer k"})

    def forget(self) -> None:
        """As after the start."""
        self.methods.clear()
        self.streams.clear()
        self.requests.clear()
        self.world.seen.clear()
        self.world.checks.clear()
        self.world.verdict = allow(REMIT_OF_ALICE)
        self.world.judge = None
        self.world.counting.clear()
        self.world.limits = None

    def interceptors(self, _area: str) -> list[grpc.aio.ServerInterceptor]:
        guard = Guard(
            audience=options_pb2.CALLER_AGENT,
            verifier=cast("RemitVerifier", AnyRemit()),
            clock=SystemClock(),
            max_in_flight=100_000,
            permissions=PERMITTED,
        )
        return [ContractInterceptor(guard, caller_by_certificate)]

    def handler(self, upstream: Upstream) -> grpc.GenericRpcHandler:
        return _Typed(self, upstream)


class _Typed(grpc.GenericRpcHandler):
    def __init__(self, services: Services, upstream: Upstream) -> None:
        self._services = services
        self._upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = METHODS.get(str(details.method))
        if method is None:
            return None
        request, response = (_class(kind) for kind in (method.input_type, method.output_type))
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                cast("Any", self._stream(str(details.method))),
                request.FromString,
                response.SerializeToString,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(str(details.method), response),
            request.FromString,
            response.SerializeToString,
        )

    def _unary(self, path: str, response: Any) -> Any:
        async def answer(request: message.Message, context: Context) -> message.Message:
            self._saw(path, request, context)
            method = self._services.methods.get(path)
            return response() if method is None else await method(request, context)

        return answer

    def _stream(self, path: str) -> Any:
        async def answer(request: message.Message, context: Context) -> AsyncGenerator[Any, None]:
            self._saw(path, request, context)
            method = self._services.streams.get(path)
            if method is None:
                return
            async with contextlib.aclosing(method(request, context)) as messages:
                async for one in messages:
                    yield one

        return answer

    def _saw(self, path: str, request: message.Message, context: Context) -> None:
        upstream = self._upstream
        metadata = list(context.invocation_metadata() or ())
        peer = list(context.auth_context().get("peer_spiffe_id", ()))
        remaining = context.time_remaining()
        self._services.requests.append(request)
        self._services.world.seen.append(
            Seen(upstream.area, upstream.index, path, metadata, peer, remaining)
        )


def _class(kind: descriptor.Descriptor) -> Any:
    return message_factory.GetMessageClass(kind)


@contextlib.asynccontextmanager
async def running_services(folder: Path, **topology: Any) -> AsyncIterator[Services]:
    """A world of such services."""
    async with running_world(folder, {}, serve=Services, **topology) as world:
        assert isinstance(world.services, Services)
        yield world.services
