"""Served and made calls over a real gRPC server: which spans there are, and why so.

Served calls are instrumented by opentelemetry-instrumentation-grpc. Made calls are not, and the
last test shows why: when it fails, the instrumentation has learnt to end its spans.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import pytest
from google.rpc import status_pb2
from opentelemetry.instrumentation.grpc import aio_client_interceptors
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import STATUS_DETAILS_KEY, RemitError
from remit.rpc.forms import GRPC, REST, Form
from remit.rpc.rest import retry_after
from remit.telemetry import call_failed, parse, table
from remit.telemetry.spans import served
from tests.telemetry.tracing import Recorder, recorded
from tests.waiting import PATIENCE, eventually

PATH = "/remit.api.cost.v1.CostService/ReserveBudget"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
Method = Callable[[bytes, Any], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def serving(recorder: Recorder, method: Method) -> AsyncIterator[str]:
    """A server with one method behind the instrumentation; gives its address."""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            del details
            handler: Any = method
            return grpc.unary_unary_rpc_method_handler(handler)

    interceptor: Any = recorder.tracer.server_interceptor(lambda _: True)
    server = grpc.aio.server(interceptors=[interceptor])
    server.add_generic_rpc_handlers([Handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def call(address: str, *metadata: tuple[str, str]) -> bytes:
    async with grpc.aio.insecure_channel(address) as channel:
        ask: Any = channel.unary_unary(PATH)
        answer: bytes = await ask(b"", metadata=metadata, timeout=10 * PATIENCE)
        return answer


async def test_a_served_call_goes_on_in_its_callers_trace() -> None:
    places = []

    async def method(_request: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        places.append(served(metadata["traceparent"], ""))
        return b""

    traceparent = f"00-{TRACE}-{PARENT}-01"
    with recorded() as recorder:
        async with serving(recorder, method) as address:
            await call(address, ("traceparent", traceparent), ("baggage", ",;="))
        made = await recorder.span(PATH)
    (place,) = places
    assert (place.trace_id, place.sampled, place.remote) == (TRACE, True, traceparent)
    assert place.span_id != PARENT
    assert made.parent is not None
    assert f"{made.parent.span_id:016x}" == PARENT
    assert made.kind is SpanKind.SERVER
    assert set(made.attributes or {}) <= set(table.MEANINGS)


@pytest.mark.parametrize("garbage", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", "x" * 2000])
async def test_garbage_begins_a_new_trace(garbage: str) -> None:
    async def method(_request: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        assert served(metadata["traceparent"], "").remote == ""
        return b"done"

    with recorded() as recorder:
        async with serving(recorder, method) as address:
            headers = (("traceparent", garbage), ("tracestate", "=,;=" * 200))
            assert await call(address, *headers) == b"done"
        made = await recorder.span(PATH)
    assert made.parent is None
    assert parse(garbage) is None


@pytest.mark.parametrize("state", ["=,;=,secret" * 20, "secret=1"], ids=["garbage", "valid"])
async def test_a_tracestate_is_not_read(state: str, caplog: pytest.LogCaptureFixture) -> None:
    async def method(_request: bytes, _context: Any) -> bytes:
        return b"done"

    with recorded() as recorder:
        async with serving(recorder, method) as address:
            headers = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", state))
            assert await call(address, *headers) == b"done"
        made = await recorder.span(PATH)
    assert made.parent is not None
    assert f"{made.parent.trace_id:032x}" == TRACE
    assert not made.context.trace_state
    assert not made.parent.trace_state
    assert not caplog.records


@pytest.mark.parametrize("form", [GRPC, REST], ids=["grpc", "rest"])
@pytest.mark.parametrize(
    "reason",
    [
        error_reason_pb2.ERROR_REASON_INTERNAL,
        error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
    ],
)
async def test_a_failure_is_marked_and_its_text_is_not_kept(
    form: Form, reason: error_reason_pb2.ErrorReason.ValueType
) -> None:
    text = "a text that quotes the request"
    error = RemitError(reason, text)

    async def method(_request: bytes, context: Any) -> bytes:
        call_failed(error)
        await form.abort(context, error)
        raise AssertionError

    with recorded() as recorder:
        async with serving(recorder, method) as address:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await call(address)
        made = await recorder.span(PATH)
    assert made.status.status_code is StatusCode.ERROR
    assert made.status.description is None
    assert dict(made.attributes or {})[table.ERROR_TYPE] == error.reason_name
    assert text not in made.to_json()
    assert (failure.value.code(), failure.value.details()) == (error.code, error.plain_message)
    trailers = dict(failure.value.trailing_metadata() or ())
    details = status_pb2.Status.FromString(cast("bytes", trailers[STATUS_DETAILS_KEY]))
    told = RemitError.from_status(details)
    assert (told.reason, told.message, told.code) == (reason, text, error.code)
    assert trailers.get("retry-after") == (retry_after(error) if form is REST else None)
    assert (details.message == text) is (form is REST or not error.quotes), "a body says it all"


async def test_the_instrumentation_loses_the_span_of_a_call_that_is_cancelled() -> None:
    begun = asyncio.Event()

    async def method(_request: bytes, _context: Any) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    with recorded() as recorder:
        make: Any = aio_client_interceptors
        interceptors = make(tracer_provider=recorder.tracer._provider)
        async with serving(recorder, method) as address:
            channel = grpc.aio.insecure_channel(address, interceptors=interceptors)
            async with channel:
                ask: Any = channel.unary_unary(PATH)
                calling: Any = asyncio.ensure_future(ask(b"", timeout=10 * PATIENCE))
                await begun.wait()
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
            await eventually(lambda: PATH in recorder.spans())
        kinds = [span.kind for span in recorder.all_spans()]
    assert kinds == [SpanKind.SERVER], "the span of the client's side is lost: an orphan is left"
