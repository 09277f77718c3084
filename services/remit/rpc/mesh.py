"""Clients: typed stubs whose deadlines, metadata and errors follow the contracts.

`mesh.stub(CostServiceStub)` returns the generated stub over a channel that sets, for every call,
the contract's deadline (or what is left of the call being served, for anything but closing calls),
the trace and the remit; failures are raised as RemitError. There is no retry here: retries are
the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol, Self, TypeVar, cast

import grpc

from remit.api.options.v1 import options_pb2
from remit.rpc.calls import (
    REMIT_KEY,
    RUNS_KEY,
    TRACE_KEY,
    current_call_or_none,
    outgoing_remit_token,
)
from remit.rpc.contracts import MAX_MESSAGE_BYTES, MethodContract, contract_of, method_unknown
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity, dns_name
from remit.telemetry.spans import client_span
from remit.telemetry.trace import Trace, fresh

Message = TypeVar("Message")
Stub = TypeVar("Stub")
Stub_co = TypeVar("Stub_co", covariant=True)
Metadata = tuple[tuple[str, str], ...]

CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long gRPC waits for a connection to stand, handshakes included: less than a slow
    # machine or a distant client needs would give up good ones. A refused one is told at once.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The gateway retries, by the contracts; a second layer would multiply.
    ("grpc.enable_retries", 0),
    # A proxy that the environment names for web pages knows nothing of loopback or of a mesh.
    ("grpc.enable_http_proxy", 0),
)
_LEAST_TIMEOUT_S: Final = 0.001


class StubFactory(Protocol[Stub_co]):
    """A generated stub class."""

    def __call__(self, channel: grpc.aio.Channel) -> Stub_co:
        """The stub over a channel."""
        ...


class Mesh:
    """A connection to the mesh, or to one server, under this process's identity."""

    def __init__(self, channel: grpc.aio.Channel, *, is_service: bool = True) -> None:
        self._transport = channel
        contracts = ContractChannel(channel, is_service=is_service)
        self._channel = cast("grpc.aio.Channel", contracts)

    @classmethod
    def connect(
        cls,
        address: str,
        identity: TlsIdentity | None,
        *,
        party: str = "mesh",
    ) -> Self:
        """Connects lazily to `host:port`; the peer must hold the certificate of `party`.

        Without an identity the channel is plain text, as the gateway's local edge is.
        """
        options: list[tuple[str, int | str]] = [*CHANNEL_OPTIONS]
        if identity is None:
            channel = grpc.aio.insecure_channel(address, options)
            return cls(channel, is_service=False)
        options.append(("grpc.ssl_target_name_override", dns_name(party)))
        return cls(grpc.aio.secure_channel(address, identity.channel_credentials(), options))

    def stub(self, factory: StubFactory[Stub]) -> Stub:
        """The stub of a service."""
        return factory(self._channel)

    async def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class ContractChannel:
    """The part of a channel that stubs use, with the contract around every call."""

    def __init__(self, channel: grpc.aio.Channel, *, is_service: bool = True) -> None:
        self._channel = channel
        self._is_service = is_service

    def unary_unary(self, path: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:  # noqa: ANN401
        """A unary call."""
        contract = known_contract(path)
        call = self._channel.unary_unary(path, *args, **kwargs)

        async def guarded(
            request: Any,  # noqa: ANN401 - any message
            *,
            timeout: float | None = None,  # noqa: ASYNC109 - the generated stubs' parameter
            metadata: Sequence[tuple[str, str]] = (),
        ) -> Any:  # noqa: ANN401
            with client_span(path) as place:
                try:
                    return await call(
                        request,
                        timeout=timeout_s(contract, timeout),
                        metadata=self._metadata(metadata, place),
                    )
                except grpc.aio.AioRpcError as error:
                    raise RemitError.from_rpc(error) from error

        return guarded

    def _metadata(self, given: Sequence[tuple[str, str]], place: Trace | None) -> Metadata:
        # Background work is in no trace, and nobody on the way shall begin one for it. A client's
        # call is in no trace either, and the gateway decides.
        return outgoing_metadata(given, place or (fresh() if self._is_service else None))

    def unary_stream(self, path: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:  # noqa: ANN401
        """A server stream."""
        contract = known_contract(path)
        call = self._channel.unary_stream(path, *args, **kwargs)

        async def guarded(
            request: Any,  # noqa: ANN401 - any message
            *,
            timeout: float | None = None,  # noqa: ASYNC109 - the generated stubs' parameter
            metadata: Sequence[tuple[str, str]] = (),
        ) -> AsyncIterator[Any]:
            with client_span(path) as place:
                stream = call(
                    request,
                    timeout=timeout_s(contract, timeout),
                    metadata=self._metadata(metadata, place),
                )
                try:
                    async for response in stream:
                        yield response
                except grpc.aio.AioRpcError as error:
                    raise RemitError.from_rpc(error) from error
                finally:
                    stream.cancel()

        return guarded


def remit_metadata(token: str) -> Metadata:
    """Metadata that carries a remit."""
    return ((REMIT_KEY, token),)


def timeout_s(contract: MethodContract, asked_s: float | None) -> float:
    """Seconds that a call may take: the least of what was asked, stated and left.

    A closing call does not inherit the deadline of the call that caused it: what was begun is
    settled even when its caller's time is over.
    """
    limit_s = contract.stream.max_life_s if contract.stream else contract.deadline_s
    if asked_s is not None:
        limit_s = min(limit_s, asked_s)
    serving = current_call_or_none()
    if serving is not None and contract.phase != options_pb2.PHASE_CLOSE:
        limit_s = min(limit_s, serving.left_s)
    return max(limit_s, _LEAST_TIMEOUT_S)


def outgoing_metadata(given: Sequence[tuple[str, str]], place: Trace | None) -> Metadata:
    """The metadata of a call: what was given, the remit in force, the trace and its runs."""
    metadata = list(given)
    keys = {key for key, _ in metadata}
    token = outgoing_remit_token()
    if token and REMIT_KEY not in keys:
        metadata.append((REMIT_KEY, token))
    if place is not None and TRACE_KEY not in keys:
        metadata.append((TRACE_KEY, place.traceparent))
    if place is not None and place.runs:
        metadata.append((RUNS_KEY, ",".join(place.runs)))
    return tuple(metadata)


@contextlib.asynccontextmanager
async def reading(stream: AsyncIterable[Message]) -> AsyncIterator[AsyncIterable[Message]]:
    """Cancels the stream at the server when the body ends, however it ends."""
    try:
        yield stream
    finally:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            with contextlib.suppress(asyncio.CancelledError, RemitError):
                await aclose()


def known_contract(path: str) -> MethodContract:
    """The contract of a path. Raises METHOD_UNKNOWN."""
    contract = contract_of(path)
    if contract is None:
        raise method_unknown(path)
    return contract
