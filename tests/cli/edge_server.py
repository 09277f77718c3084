"""A gRPC server with scripted answers: what a client of the edge sees, and nothing behind it.

It speaks the real protocol on loopback, from the descriptors of the contracts. What the services
really answer is tested with the real mesh in tests/integration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_status import rpc_status

from remit.rpc.errors import RemitError

Answer = Callable[[Any], Any]
"""Takes the request; returns the response, or yields responses. May raise RemitError."""


@dataclass(frozen=True)
class Call:
    """One call as it arrived."""

    method: str
    request: Any
    metadata: dict[str, str]


class EdgeServer(grpc.GenericRpcHandler):
    """Answers methods by their short name; a method without an answer is UNIMPLEMENTED."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[Call] = []
        self.address = ""

    def requests(self, method: str) -> list[Any]:
        """The requests that a method got, in order."""
        return [call.request for call in self.calls if call.method == method]

    @contextlib.contextmanager
    def serving(self, options: Sequence[tuple[str, int]] = ()) -> Iterator[EdgeServer]:
        """Serves on a free port of loopback for the body."""
        pool = futures.ThreadPoolExecutor(max_workers=8)
        server = grpc.server(pool, handlers=[self], options=options)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield self
        finally:
            server.stop(None).wait()

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call."""
        service, _, name = handler_call_details.method.removeprefix("/").partition("/")
        if name not in self.answers:
            return None
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        request_class = message_factory.GetMessageClass(method.input_type)
        make = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        respond = self._stream if method.server_streaming else self._unary

        def handle(request: Any, context: Any) -> Any:
            metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
            self.calls.append(Call(name, request, metadata))
            return respond(self.answers[name], request, context)

        return make(
            handle,
            request_deserializer=request_class.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    def _unary(self, answer: Answer, request: Any, context: Any) -> Any:
        try:
            return answer(request)
        except RemitError as error:
            context.abort_with_status(rpc_status.to_status(error.to_status()))

    def _stream(self, answer: Answer, request: Any, context: Any) -> Iterator[Any]:
        try:
            yield from answer(request)
        except RemitError as error:
            context.abort_with_status(rpc_status.to_status(error.to_status()))
