"""The two forms of a call on the wire: gRPC, and REST as the gateway's transcoder passes it on.

A method is written once, for gRPC. What differs for a transcoded call stands here: how its request
is read, how its stream is written, and how its error ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
from google.api import httpbody_pb2
from grpc_status import rpc_status

from remit.rpc import rest, sse
from remit.rpc.contracts import MethodContract
from remit.rpc.errors import STATUS_DETAILS_KEY, RemitError

Context = grpc.aio.ServicerContext[Any, Any]
Serializer = Callable[[Any], bytes] | None
Headers = tuple[tuple[str, str], ...]
Trailers = tuple[tuple[str, str | bytes], ...]

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic in its stubs alone


class Writer(Protocol):
    """Turns the messages of one stream into those that are sent."""

    @property
    def begun(self) -> bool:
        """Whether something was sent after which an error must be written into the stream."""
        ...

    def message(self, content: Any) -> Iterable[Any]:  # noqa: ANN401 - any message
        """What is sent for one message."""
        ...

    def end(self) -> Iterable[Any]:
        """What is sent after the last one."""
        ...

    def error(self, error: RemitError) -> Iterable[Any]:
        """What is sent for an error, once the stream has begun."""
        ...


class Form(Protocol):
    """How a call is read and answered."""

    def read(self, contract: MethodContract, received: Any, context: Context) -> Any:  # noqa: ANN401
        """The request. Raises INVALID_REQUEST."""
        ...

    def writer(self, contract: MethodContract) -> Writer:
        """What writes one stream."""
        ...

    @property
    def stream_headers(self) -> Headers:
        """Sent before the first message of a stream."""
        ...

    def stream_serializer(self, handler: Handler) -> Serializer:
        """Turns what the writer makes into bytes."""
        ...

    async def abort(self, context: Context, error: RemitError) -> None:
        """Ends a call that has answered nothing yet; raises what ends it."""
        ...


class _Grpc:
    """Messages are sent as they are, errors as status and details."""

    def read(self, _contract: MethodContract, received: Any, _context: Context) -> Any:  # noqa: ANN401
        """The request as it came."""
        return received

    stream_headers: Headers = ()

    def writer(self, _contract: MethodContract) -> Writer:
        """Writes messages as they are."""
        return _AS_IT_IS

    def stream_serializer(self, handler: Handler) -> Serializer:
        """The method's own."""
        return handler.response_serializer

    async def abort(self, context: Context, error: RemitError) -> None:
        """Status and details."""
        await context.abort_with_status(rpc_status.to_status(error.to_trailers()))


class _Rest:
    """Bodies are JSON, streams are server-sent events, errors bring HTTP's headers."""

    def read(self, contract: MethodContract, received: Any, context: Context) -> Any:  # noqa: ANN401
        """The request with its body, after `Last-Event-ID` for a stream."""
        metadata = context.invocation_metadata() or ()
        rest.check_query(contract, metadata)
        request = rest.read_body(contract, received)
        if contract.stream is not None:
            sse.resume(contract, request, metadata)
        return request

    # Neither kept nor gathered on the way; the second is what nginx asks for.
    stream_headers: Headers = (("cache-control", "no-store"), ("x-accel-buffering", "no"))

    def writer(self, contract: MethodContract) -> Writer:
        """Writes server-sent events."""
        return sse.Events(contract)

    def stream_serializer(self, _handler: Handler) -> Serializer:
        """Of the google.api.HttpBody that the gateway writes out."""
        return httpbody_pb2.HttpBody.SerializeToString

    async def abort(self, context: Context, error: RemitError) -> None:
        """Status and details, and `retry-after` among the trailers, which become headers.

        The body is made of the details, where no proxy looks: they hold the whole message.
        """
        status = error.to_status()
        trailers: list[tuple[str, str | bytes]] = [(STATUS_DETAILS_KEY, status.SerializeToString())]
        delay = rest.retry_after(error)
        if delay is not None:
            trailers.append(("retry-after", delay))
        # `abort` is the instrumentation's, which would put the message on the call's span.
        await context.abort_with_status(_Status(error.code, error.plain_message, tuple(trailers)))


@dataclass(frozen=True)
class _Status(grpc.Status):
    """A status with trailers of its own."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Trailers


class _AsItIs:
    begun = False  # the status says how the stream ended

    def message(self, content: Any) -> Iterable[Any]:  # noqa: ANN401 - any message
        return (content,)

    def end(self) -> Iterable[Any]:
        return ()

    def error(self, _error: RemitError) -> Iterable[Any]:
        return ()


_AS_IT_IS: Final = _AsItIs()
GRPC: Final[Form] = _Grpc()
REST: Final[Form] = _Rest()


def form_of(contract: MethodContract, metadata: rest.Metadata) -> Form:
    """The form in which a call came."""
    transcoded = contract.http is not None and rest.is_transcoded(metadata)
    return REST if transcoded else GRPC
