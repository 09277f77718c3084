"""Clients: how long a call may take, and what a broken stream means."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.mesh import Mesh, known_contract, timeout_s
from remit.rpc.remits import RemitVerifier
from tests.rpc.test_remits import Keys

SERVED = known_contract("/remit.api.cost.v1.CostService/ReserveBudget")
CALLED = known_contract("/remit.api.audit.v1.AuditService/AppendEvents")
CLOSING = known_contract("/remit.api.audit.v1.AuditService/AppendOutcomes")


class BootClock:
    """A clock that began a second ago, unlike the machine's."""

    seconds = 1.0

    def now(self) -> datetime:
        return datetime(2026, 11, 23, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds


async def test_a_call_gets_what_is_left_of_the_call_being_served_by_its_own_clock() -> None:
    clock = BootClock()
    guard = Guard(
        audience=options_pb2.CALLER_COST,
        verifier=RemitVerifier(Keys(), clock),
        clock=clock,
        max_in_flight=10,
    )
    async with guard.serve(SERVED, options_pb2.CALLER_TOOLS, (), 1.0):
        assert timeout_s(CALLED, None) == pytest.approx(0.95)
        clock.seconds += 0.5
        assert timeout_s(CALLED, None) == pytest.approx(0.45)
        assert timeout_s(CALLED, 0.1) == pytest.approx(0.1)
        assert timeout_s(CLOSING, None) == CLOSING.deadline_s
    assert timeout_s(CALLED, None) == CALLED.deadline_s


HEADERS, RST_STREAM, SETTINGS = 1, 3, 4
PREFACE_BYTES = 24
SLOW_S = 0.5
# HPACK (RFC 7541): ":status: 200" from the static table, and a literal header.
RESPONSE = b"\x88\x00\x0ccontent-type\x10application/grpc"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begins to answer, and ends the stream as a gateway does whose service died."""
    await reader.readexactly(PREFACE_BYTES)
    await _answer_with_a_reset(reader, writer)


async def _answer_with_a_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(frame(SETTINGS, 0, 0))
        kind, stream = SETTINGS, 0
        while kind != HEADERS:
            head = await reader.readexactly(9)
            kind, stream = head[3], int.from_bytes(head[5:], "big")
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if kind == SETTINGS and not head[4]:
                writer.write(frame(SETTINGS, 1, 0))
        writer.write(frame(HEADERS, 4, stream, RESPONSE))
        writer.write(frame(RST_STREAM, 0, stream, (2).to_bytes(4, "big")))
        await writer.drain()
    finally:
        # Here and not when the client leaves: nobody would wait for that.
        writer.close()
        await writer.wait_closed()


async def test_a_stream_that_is_reset_is_an_outage() -> None:
    async with await asyncio.start_server(resets, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Mesh.connect(f"127.0.0.1:{port}", None) as mesh:
            inference = mesh.stub(inference_service_pb2_grpc.InferenceServiceStub)
            request = inference_service_pb2.StreamGenerateTextRequest()
            with pytest.raises(RemitError, match="RST_STREAM") as caught:
                async for _ in inference.StreamGenerateText(request):
                    pass
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert caught.value.retryable


async def test_a_connection_that_is_slow_to_stand_is_not_given_up() -> None:
    """As over a long way, or on a machine that has no time for the handshake."""
    connections = 0

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readexactly(PREFACE_BYTES)
        with contextlib.suppress(TimeoutError):
            while await asyncio.wait_for(reader.read(4096), SLOW_S):
                pass
        await _answer_with_a_reset(reader, writer)

    async with await asyncio.start_server(slowly, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Mesh.connect(f"127.0.0.1:{port}", None) as mesh:
            inference = mesh.stub(inference_service_pb2_grpc.InferenceServiceStub)
            request = inference_service_pb2.StreamGenerateTextRequest()
            with pytest.raises(RemitError, match="RST_STREAM"):
                async for _ in inference.StreamGenerateText(request):
                    pass
    assert connections == 1
