"""The one server builder: every service gets mTLS, health, reflection, tracing and the guard.

A method is written once, for gRPC; calls that the gateway transcoded from REST have another form
(`remit.rpc.forms`).
"""

from __future__ import annotations

import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import grpc
from google.protobuf import message
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from remit import telemetry
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.rpc.calls import TRACE_KEY
from remit.rpc.contracts import (
    MAX_MESSAGE_BYTES,
    MethodContract,
    contract_of,
    method_unknown,
    public_services,
)
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.forms import GRPC, Form, form_of
from remit.rpc.guard import Guard, check_message, check_request_size, check_response_size
from remit.rpc.identity import caller_of
from remit.rpc.permission import StreamPermission

if TYPE_CHECKING:
    from remit.telemetry.export import Tracer  # loads the SDK

AddToServer = Callable[[Any, grpc.aio.Server], None]
Context = grpc.aio.ServicerContext[Any, Any]

SERVER_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # What the edge takes from a client and what it adds: by default gRPC refuses some calls whose
    # headers have more than 8 KiB, by lot.
    ("grpc.max_metadata_size", 24 * 1024),
    ("grpc.max_concurrent_streams", 2048),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two processes on one port would share its connections silently.
    ("grpc.so_reuseport", 0),
)


class CallerOf(Protocol):
    """Tells who makes a call; the default reads the certificate."""

    def __call__(self, context: Context) -> Caller.ValueType:
        """The caller. Raises CALLER_NOT_ALLOWED."""
        ...


def caller_by_certificate(context: Context) -> Caller.ValueType:
    """The caller that the peer's certificate names."""
    return caller_of(context.auth_context(), context.invocation_metadata() or ())


def build_server(
    guard: Guard,
    servicers: Sequence[tuple[AddToServer, object]],
    *,
    tracer: Tracer | None = None,
    identify: CallerOf = caller_by_certificate,
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """A server with all that every service has; the caller binds its port and starts it.

    `servicers` pairs each generated `add_XServicer_to_server` with its object.
    """
    interceptors: list[grpc.aio.ServerInterceptor] = [ContractInterceptor(guard, identify)]
    if tracer is not None:
        traced = cast("grpc.aio.ServerInterceptor", tracer.server_interceptor(_is_recorded))
        interceptors.insert(0, traced)
    server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
    for add_to_server, servicer in servicers:
        add_to_server(servicer, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        [*public_services(), health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    return server, health_servicer


def _is_recorded(details: Any) -> bool:  # noqa: ANN401 - untyped in the instrumentation
    """Whether a call may get a span: one of ours, that nobody before decided not to record."""
    contract = contract_of(details.method)
    if contract is None or not contract.area:
        return False
    place = telemetry.parse(_value(details.invocation_metadata or (), TRACE_KEY))
    return place is None or place.sampled


def _value(metadata: Iterable[tuple[str, str | bytes]], key: str) -> str:
    return next((str(value) for name, value in metadata if name == key), "")


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """Puts the guard around every method; a method without a contract does not exist."""

    def __init__(self, guard: Guard, identify: CallerOf) -> None:
        self._guard = guard
        self._identify = identify

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler with the guard around it."""
        path = handler_call_details.method
        contract = contract_of(path)
        handler = await continuation(handler_call_details)
        if handler is None or contract is None:
            return grpc.unary_unary_rpc_method_handler(_unknown(path))
        form = form_of(contract, handler_call_details.invocation_metadata or ())
        if handler.unary_unary is not None:
            return self._unary(contract, handler, form)
        if handler.unary_stream is not None and contract.area:
            return self._stream(contract, handler, form)
        if handler.stream_unary is not None and contract.area:
            return self._client_stream(contract, handler)
        # Streams of the standard services, health and reflection, are written in another style
        # and tell nothing but what is public.
        return handler

    def _unary(
        self, contract: MethodContract, handler: grpc.RpcMethodHandler[Any, Any], form: Form
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = cast("Callable[[Any, Context], Awaitable[Any]]", handler.unary_unary)

        async def guarded(received: Any, context: Context) -> Any:  # noqa: ANN401 - any message
            try:
                async with self._serve(contract, context):
                    request = _read(contract, form, received, context)
                    response = await method(request, context)
                    check_response_size(contract, response.ByteSize())
                    return response
            except RemitError as error:
                telemetry.call_failed(error)
                await form.abort(context, error)

        return grpc.unary_unary_rpc_method_handler(
            guarded, _decoder(handler), handler.response_serializer
        )

    def _stream(
        self, contract: MethodContract, handler: grpc.RpcMethodHandler[Any, Any], form: Form
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = cast("Callable[[Any, Context], AsyncGenerator[Any, None]]", handler.unary_stream)

        async def guarded(received: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            writer = form.writer(contract)
            suspended = False
            try:
                async with self._serve(contract, context) as permission:
                    request = _read(contract, form, received, context)
                    # Ends the method with the call, not when it is next collected.
                    async with contextlib.aclosing(method(request, context)) as responses:
                        async for response in responses:
                            await check_message(contract, permission, response.ByteSize())
                            if form.stream_headers and not writer.begun:
                                await context.send_initial_metadata(form.stream_headers)
                            for part in writer.message(response):
                                suspended = True
                                yield part
                                suspended = False
                for part in writer.end():
                    yield part
            except RemitError as error:
                telemetry.call_failed(error)
                if suspended:
                    return  # the caller left, and the method failed on its way out
                if not writer.begun:
                    await form.abort(context, error)
                for part in writer.error(error):
                    yield part

        return grpc.unary_stream_rpc_method_handler(
            guarded, _decoder(handler), form.stream_serializer(handler)
        )

    def _client_stream(
        self, contract: MethodContract, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Each message is read and bounded as a request is; a bad one ends the stream."""
        method = cast("Callable[[Any, Context], Awaitable[Any]]", handler.stream_unary)

        async def guarded(received: AsyncIterator[Any], context: Context) -> Any:  # noqa: ANN401
            async def messages() -> AsyncIterator[Any]:
                async for each in received:
                    yield _read(contract, GRPC, each, context)

            try:
                async with self._serve(contract, context):
                    response = await method(messages(), context)
                    check_response_size(contract, response.ByteSize())
                    return response
            except RemitError as error:
                telemetry.call_failed(error)
                await GRPC.abort(context, error)

        return grpc.stream_unary_rpc_method_handler(
            guarded, _decoder(handler), handler.response_serializer
        )

    def _serve(
        self, contract: MethodContract, context: Context
    ) -> contextlib.AbstractAsyncContextManager[StreamPermission | None]:
        return self._guard.serve(
            contract,
            self._caller(contract, context),
            context.invocation_metadata() or (),
            context.time_remaining(),
        )

    def _caller(self, contract: MethodContract, context: Context) -> Caller.ValueType:
        # Health checks and reflection ask for nobody: the gateway's own probes carry no caller.
        if contract.auth == options_pb2.AUTH_NONE:
            return options_pb2.CALLER_PUBLIC
        return self._identify(context)


class _Undecodable:
    """Stands for a request that is no message of its type."""


def _decoder(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[bytes], Any]:
    """Decodes a request without raising: gRPC would tell clients what Python says of it."""
    decode = cast("Callable[[bytes], Any]", handler.request_deserializer)

    def decoded(data: bytes) -> Any:  # noqa: ANN401 - any message
        try:
            return decode(data)
        except message.DecodeError:
            return _Undecodable()

    return decoded


def _read(contract: MethodContract, form: Form, received: Any, context: Context) -> Any:  # noqa: ANN401
    """The request, for within the guard: what is refused here is counted as well."""
    if isinstance(received, _Undecodable):
        raise invalid_request(
            [Violation("request", "is no message of this method, or holds a text not in UTF-8")]
        )
    request = form.read(contract, received, context)
    check_request_size(contract, request.ByteSize())
    return request


def _unknown(path: str) -> Callable[[Any, Context], Awaitable[None]]:
    async def refuse(_request: Any, context: Context) -> None:  # noqa: ANN401 - any message
        await GRPC.abort(context, method_unknown(path))

    return refuse
