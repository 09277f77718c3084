"""A mesh inside one process, for tests: the client interface over the service objects.

Messages are serialised, the guard stands before every method and errors travel as
google.rpc.Status, so that what works here works over the wire; only sockets and certificates are
missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import grpc

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.rpc.contracts import MethodContract
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard, check_message, check_request_size, check_response_size
from remit.rpc.mesh import StubFactory, known_contract, outgoing_metadata, timeout_s
from remit.telemetry.trace import current

StubT = TypeVar("StubT")


class MemoryMesh:
    """Services by their paths; `as_caller` gives a client with an identity.

    `patience` lengthens the deadlines of the contracts, for a machine that is slow.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self._patience = patience
        self._handlers: dict[str, tuple[Guard, grpc.RpcMethodHandler[Any, Any]]] = {}

    def add(
        self, guard: Guard, add_to_server: Callable[[Any, Any], None], servicer: object
    ) -> None:
        """Adds a service behind its guard; a service added again replaces the first."""
        recorder = _Recorder()
        add_to_server(servicer, recorder)
        for path, handler in recorder.handlers.items():
            self._handlers[path] = (guard, handler)

    def remove(self, prefix: str) -> None:
        """Takes services away, as a crash does; their calls answer UNAVAILABLE."""
        self._handlers = {p: h for p, h in self._handlers.items() if not p.startswith(prefix)}

    def as_caller(self, caller: Caller.ValueType) -> MemoryClient:
        """A client that is known as `caller`."""
        return MemoryClient(self._handlers_of, caller, self._patience)

    def _handlers_of(self, path: str) -> tuple[Guard, grpc.RpcMethodHandler[Any, Any]] | None:
        return self._handlers.get(path)


class MemoryClient:
    """Makes stubs, like `Mesh`."""

    def __init__(
        self,
        find: Callable[[str], tuple[Guard, grpc.RpcMethodHandler[Any, Any]] | None],
        caller: Caller.ValueType,
        patience: float,
    ) -> None:
        self._channel = cast("grpc.aio.Channel", _MemoryChannel(find, caller, patience))

    def stub(self, factory: StubFactory[StubT]) -> StubT:
        """The stub of a service."""
        return factory(self._channel)


class _Recorder:
    """Stands for a server while generated code registers its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """The same handlers come by name as well."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Keeps each handler by its path."""
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class _MemoryChannel:
    def __init__(
        self,
        find: Callable[[str], tuple[Guard, grpc.RpcMethodHandler[Any, Any]] | None],
        caller: Caller.ValueType,
        patience: float,
    ) -> None:
        self._find = find
        self._caller = caller
        self._patience = patience

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        contract = self._contract(path)

        async def call(
            request: Any,  # noqa: ANN401 - any message
            *,
            timeout: float | None = None,  # noqa: ASYNC109 - the generated stubs' parameter
            metadata: Sequence[tuple[str, str]] = (),
        ) -> Any:  # noqa: ANN401
            guard, handler = self._found(contract)
            try:
                async with self._serve(guard, contract, request, timeout, metadata):
                    received = _deserialized(handler, request_serializer(request))
                    response = await handler.unary_unary(received, _NoContext())
                    check_response_size(contract, response.ByteSize())
            except RemitError as error:
                raise RemitError.from_status(error.to_trailers()) from error
            return response_deserializer(_serialized(handler, response))

        return call

    def unary_stream(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        contract = self._contract(path)

        async def call(
            request: Any,  # noqa: ANN401 - any message
            *,
            timeout: float | None = None,  # noqa: ASYNC109 - the generated stubs' parameter
            metadata: Sequence[tuple[str, str]] = (),
        ) -> AsyncIterator[Any]:
            guard, handler = self._found(contract)
            sent: asyncio.Queue[bytes | RemitError | None] = asyncio.Queue(maxsize=1)

            async def serve() -> None:
                """Runs in a task of its own, as on a server: its context is not the reader's."""
                end = None
                try:
                    serving = self._serve(guard, contract, request, timeout, metadata)
                    async with serving as permission:
                        received = _deserialized(handler, request_serializer(request))
                        async for response in handler.unary_stream(received, _NoContext()):
                            await check_message(contract, permission, response.ByteSize())
                            await sent.put(_serialized(handler, response))
                except RemitError as error:
                    end = RemitError.from_status(error.to_trailers())
                await sent.put(end)

            task = asyncio.create_task(serve(), name=f"memory-{contract.path}")
            try:
                while (message := await sent.get()) is not None:
                    if isinstance(message, RemitError):
                        raise message
                    yield response_deserializer(message)
            finally:
                task.cancel()

        return call

    def _contract(self, path: str) -> MethodContract:
        contract = known_contract(path)
        return replace(contract, deadline_s=contract.deadline_s * self._patience)

    def _found(self, contract: MethodContract) -> tuple[Guard, Any]:
        found = self._find(contract.path)
        if found is None:
            raise _unavailable(contract.area)
        return found

    def _serve(
        self,
        guard: Guard,
        contract: MethodContract,
        request: Any,  # noqa: ANN401 - any message
        timeout: float | None,
        metadata: Sequence[tuple[str, str]],
    ) -> Any:  # noqa: ANN401
        check_request_size(contract, request.ByteSize())
        return guard.serve(
            contract,
            self._caller,
            outgoing_metadata(metadata, current()),
            timeout_s(contract, timeout),
        )


class _NoContext:
    """Service objects take what they need from `current_call`, not from the transport."""


def _deserialized(handler: grpc.RpcMethodHandler[Any, Any], data: bytes) -> Any:  # noqa: ANN401
    return handler.request_deserializer(data) if handler.request_deserializer else data


def _serialized(handler: grpc.RpcMethodHandler[Any, Any], message: Any) -> bytes:  # noqa: ANN401
    return handler.response_serializer(message) if handler.response_serializer else message


def _unavailable(area: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"the {area} service cannot be reached",
    )
