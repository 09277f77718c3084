"""A stream that its caller leaves while a message is on its way is CANCELLED, and no defect.

gRPC then closes the generator from a task of its own, with a context of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from structlog.testing import capture_logs

from remit.api.inference.v1 import inference_service_pb2
from remit.api.options.v1 import options_pb2
from remit.rpc import metrics
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import permissions
from remit.rpc.guard import Guard
from remit.rpc.remits import RemitVerifier
from remit.rpc.rest import TRANSCODED_KEY
from remit.rpc.server import ContractInterceptor

PATH = "/remit.api.inference.v1.InferenceService/StreamGenerateText"
ENDS = {code: metrics.RPC_REQUESTS.labels(PATH, code)._value for code in ("CANCELLED", "INTERNAL")}
REST = ((TRANSCODED_KEY, "POST"),)


class AnyRemit:
    async def verify(self, _token: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(run="", permissions=permissions())


class Context:
    """As much of a call's context as is asked for."""

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata

    def time_remaining(self) -> float:
        return 60.0

    async def send_initial_metadata(self, _metadata: Any) -> None:
        pass


async def guarded(method: Callable[..., Any], metadata: Any) -> AsyncGenerator[Any, None]:
    """The method as gRPC gets it, and called."""
    guard = Guard(
        audience=options_pb2.CALLER_INFERENCE,
        verifier=cast("RemitVerifier", AnyRemit()),
        clock=SystemClock(),
        max_in_flight=10,
    )
    request = inference_service_pb2.StreamGenerateTextRequest

    async def found(_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_stream_rpc_method_handler(
            method, request.FromString, lambda response: response.SerializeToString()
        )

    interceptor = ContractInterceptor(guard, lambda _context: options_pb2.CALLER_PUBLIC)
    details: Any = SimpleNamespace(method=PATH, invocation_metadata=metadata)
    handler: Any = await interceptor.intercept_service(found, details)
    received = handler.request_deserializer(b"")
    made: AsyncGenerator[Any, None] = handler.unary_stream(received, Context(metadata))
    return made


async def speaks(_request: Any, _context: Any) -> AsyncIterator[Any]:
    while True:
        yield inference_service_pb2.StreamGenerateTextResponse(sequence=1, text_delta="a")


async def fails_on_its_way_out(_request: Any, _context: Any) -> AsyncIterator[Any]:
    try:
        yield inference_service_pb2.StreamGenerateTextResponse(sequence=1, text_delta="a")
    finally:
        message = "cannot be closed"
        raise OSError(message)


@pytest.mark.parametrize("metadata", [(), REST], ids=["grpc", "rest"])
async def test_a_stream_left_at_a_message_is_cancelled(metadata: Any) -> None:
    before = {code: count.get() for code, count in ENDS.items()}
    stream = await guarded(speaks, metadata)
    with capture_logs() as logs:
        await asyncio.create_task(cast("Any", anext(stream)))
        await asyncio.create_task(cast("Any", stream.aclose()))
    assert ENDS["CANCELLED"].get() == before["CANCELLED"] + 1
    assert ENDS["INTERNAL"].get() == before["INTERNAL"]
    assert not [line for line in logs if line["log_level"] == "error"]


@pytest.mark.parametrize("metadata", [(), REST], ids=["grpc", "rest"])
async def test_what_fails_behind_a_caller_who_left_is_logged_and_not_sent(metadata: Any) -> None:
    stream = await guarded(fails_on_its_way_out, metadata)
    with capture_logs() as logs:
        await asyncio.create_task(cast("Any", anext(stream)))
        await asyncio.create_task(cast("Any", stream.aclose()))
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["event"] == "rpc_failed"
