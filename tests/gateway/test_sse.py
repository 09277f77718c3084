"""Streams at the edge as server-sent events: at once, resumable, honest about their end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import json_format

from remit.api.agent.v1 import agent_service_pb2
from remit.api.audit.v1 import audit_query_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2
from remit.rpc.contracts import all_contracts
from remit.rpc.errors import RemitError
from tests.gateway.services import Context, Services, running_services
from tests.rest import Event, error_of
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

WATCH = "/remit.api.agent.v1.AgentService/WatchRun"
STREAM = "/remit.api.agent.v1.AgentService/StreamRun"
EXPORT = "/remit.api.audit.v1.AuditQueryService/ExportLog"
GENERATE = "/remit.api.inference.v1.InferenceService/StreamGenerateText"
EVENTS = "/v1/runs/r/events"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    async with running_services(tmp_path_factory.mktemp("sse")) as made:
        yield made


@pytest.fixture
def services(running: Services) -> Services:
    running.forget()
    return running


def progress(sequence: int, text: str = "") -> agent_service_pb2.WatchRunResponse:
    message = agent_service_pb2.WatchRunResponse(sequence=sequence)
    message.event.sequence = sequence
    message.event.text_delta.text = text
    return message


def heartbeat(sequence: int) -> agent_service_pb2.WatchRunResponse:
    return agent_service_pb2.WatchRunResponse(sequence=sequence)


async def three(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
    for sequence in (1, 2, 3):
        yield progress(sequence, f"line {sequence}\nZähle 🦉")
        yield heartbeat(sequence)


async def events(services: Services, path: str, **headers: str) -> list[Event]:
    async with services.client.stream("GET", path, headers=headers) as stream:
        assert stream.answer.status == 200
        async with asyncio.timeout(20):
            return [event async for event in stream.events()]


async def test_a_stream_is_events_heartbeats_and_an_end(services: Services) -> None:
    services.streams[WATCH] = three
    async with services.client.stream("GET", EVENTS) as stream:
        assert stream.answer.headers["content-type"] == "text/event-stream"
        assert stream.answer.headers["cache-control"] == "no-store"
        got = [event async for event in stream.events()]
    assert [event.comment for event in got[1::2]] == ["heartbeat"] * 3
    messages, end = got[0:6:2], got[6]
    assert [event.id for event in messages] == ["1", "2", "3"]
    assert {event.name for event in messages} == {"message"}
    read = agent_service_pb2.WatchRunResponse()
    json_format.ParseDict(messages[1].json(), read)
    assert read == progress(2, "line 2\nZähle 🦉")
    assert (end.name, end.json(), end.id) == ("end", {}, "")
    assert len(got) == 7


async def test_a_stream_without_messages_ends_as_such(services: Services) -> None:
    assert [event.name for event in await events(services, EVENTS)] == ["end"]


async def test_a_run_is_created_and_followed_in_one_call(services: Services) -> None:
    async def follow(
        request: agent_service_pb2.StreamRunRequest, _context: Context
    ) -> AsyncGenerator[Any, None]:
        assert (request.request.task, request.after_sequence) == ("hello", 4)
        yield agent_service_pb2.StreamRunResponse(sequence=5, event=progress(5).event)

    services.streams[STREAM] = follow
    async with services.client.stream(
        "POST", "/v1/runs:stream?afterSequence=4", {"task": "hello", "requestId": "r"}
    ) as stream:
        got = [event async for event in stream.events()]
    assert [(event.name, event.id) for event in got] == [("message", "5"), ("end", "")]


async def test_every_event_arrives_at_once(services: Services) -> None:
    go_on = asyncio.Event()

    async def one_by_one(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        for sequence in (1, 2, 3):
            yield progress(sequence)
            await go_on.wait()
            go_on.clear()

    services.streams[WATCH] = one_by_one
    async with services.client.stream("GET", EVENTS) as stream, asyncio.timeout(20):
        async for event in stream.events():
            # The next is not made before this one was read.
            go_on.set()
            if event.name == "end":
                break


async def test_an_event_of_any_size_arrives_whole(services: Services) -> None:
    leaves = [bytes([n]) * 60_000 for n in range(60)]

    async def export(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        yield audit_query_service_pb2.ExportLogResponse(sequence=7, leaves=leaves)

    services.streams[EXPORT] = export
    first, end = await events(services, "/v1/audit/log")
    read = audit_query_service_pb2.ExportLogResponse()
    json_format.ParseDict(first.json(), read)
    assert list(read.leaves) == leaves
    assert end.name == "end"


async def test_an_error_before_the_first_event_is_an_http_error(services: Services) -> None:
    async def missing(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        raise RemitError(reasons.ERROR_REASON_RUN_NOT_FOUND, "no such run")
        yield

    services.streams[WATCH] = missing
    answer = await services.client.get(EVENTS)
    assert answer.status == 404
    assert answer.error().reason == reasons.ERROR_REASON_RUN_NOT_FOUND


@pytest.mark.parametrize(
    "reason",
    [reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, reasons.ERROR_REASON_INTERNAL],
    ids=["retryable", "final"],
)
async def test_an_error_later_is_the_last_event(
    services: Services, reason: reasons.ErrorReason.ValueType
) -> None:
    raised = RemitError(reason, "it broke\nin the middle")

    async def breaks(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        yield progress(1)
        raise raised

    services.streams[WATCH] = breaks
    first, last = await events(services, EVENTS)
    assert first.id == "1"
    assert last.name == "error"
    assert error_of(last.json()).reason == reason
    assert last.retry == ("1000" if raised.retryable else "")


async def test_a_deadline_is_told_in_the_stream(services: Services) -> None:
    async def endless(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        yield progress(1)
        await asyncio.Event().wait()

    services.streams[WATCH] = endless
    # The service ends it a twentieth before its limit, at which the gateway cuts it without a word.
    first, last = await events(services, EVENTS, grpc_timeout="4S")
    assert first.id == "1"
    assert error_of(last.json()).reason == reasons.ERROR_REASON_DEADLINE_EXCEEDED


async def test_a_stream_whose_server_goes_away_has_no_end(tmp_path: Path) -> None:
    """Without `event: end` or `event: error` a client knows that there is more."""

    async def endless(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        yield progress(1)
        await asyncio.Event().wait()

    got: list[Event] = []
    async with running_services(tmp_path) as services:
        services.streams[WATCH] = endless
        async with services.client.stream("GET", EVENTS) as stream:
            # A connection that breaks breaks the body; a server that stops ends it.
            with contextlib.suppress(asyncio.IncompleteReadError):
                async for event in stream.events():
                    got.append(event)
                    await services.world.upstreams["agent", 0].stop()
    assert [event.name for event in got] == ["message"]


@pytest.mark.parametrize(
    ("path", "header", "after"),
    [
        (EVENTS, None, 0),
        (EVENTS, "", 0),
        (EVENTS, "0", 0),
        (EVENTS, "17", 17),
        (EVENTS, str(2**63 - 1), 2**63 - 1),
        (f"{EVENTS}?afterSequence=5", None, 5),
        (f"{EVENTS}?after_sequence=5", "17", 17),
        (f"{EVENTS}?afterSequence=17", "5", 5),
    ],
    ids=["none", "empty", "zero", "some", "most", "query", "both", "both, query ahead"],
)
async def test_last_event_id_resumes(
    services: Services, path: str, header: str | None, after: int
) -> None:
    headers = {} if header is None else {"last-event-id": header}
    await events(services, path, **headers)
    (request,) = services.requests
    assert isinstance(request, agent_service_pb2.WatchRunRequest)
    assert request.after_sequence == after


@pytest.mark.parametrize(
    "garbage",
    ["x", "-1", "1.5", "0x10", "1 2", "9" * 19, "9" * 5000, "\u0661"],
    ids=["word", "negative", "fraction", "hex", "two", "over", "long", "arabic"],
)
async def test_another_last_event_id_is_refused(services: Services, garbage: str) -> None:
    answer = await services.client.call("GET", EVENTS, headers={"last-event-id": garbage})
    assert answer.status == 400
    assert answer.error().violations[0].field == "last-event-id"
    assert not services.requests


async def generate(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
    yield inference_service_pb2.StreamGenerateTextResponse(sequence=1, text_delta="a")


async def export(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
    yield audit_query_service_pb2.ExportLogResponse(sequence=0, leaves=[b"x"])


async def test_streams_that_no_id_resumes_have_none(services: Services) -> None:
    services.streams |= {GENERATE: generate, EXPORT: export}
    for verb, path, body in (
        ("POST", "/v1/models/m:streamGenerateText", {"requestId": "1"}),
        ("GET", "/v1/audit/log", None),
    ):
        async with services.client.stream(verb, path, body) as stream:
            first = await anext(stream.events())
        assert first.id == ""
        answer = await services.client.call(verb, path, body, headers={"last-event-id": "1"})
        assert answer.status == 400
        assert answer.error().violations[0].field == "last-event-id"


async def test_a_cut_connection_ends_the_work(services: Services) -> None:
    ended = asyncio.Event()

    async def endless(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        try:
            for sequence in range(1, 10**9):
                yield progress(sequence)
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    services.streams[WATCH] = endless
    async with services.client.stream("GET", EVENTS) as stream:
        assert (await anext(stream.events())).id == "1"
    async with asyncio.timeout(10):
        await ended.wait()


async def test_a_client_that_does_not_read_stops_the_service(services: Services) -> None:
    sent = 0
    text = "x" * 100_000

    async def flood(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        nonlocal sent
        for sequence in range(1, 10_000):
            yield progress(sequence, text)
            sent = sequence

    services.streams[WATCH] = flood
    async with services.client.stream("GET", EVENTS) as stream:
        stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await eventually(lambda: _still(lambda: sent), timeout_s=20)
        # Windows and buffers of the sockets, of Envoy and of gRPC: some 10 MB, and not a gigabyte.
        assert 0 < sent < 400


async def _still(count: Any) -> bool:
    before = count()
    await asyncio.sleep(0.5)
    return bool(before and count() == before)


async def test_one_stream_too_many_is_told_when_to_come_again(services: Services) -> None:
    contract = all_contracts()[EXPORT]
    release = asyncio.Event()

    async def slow(_request: Any, _context: Context) -> AsyncGenerator[Any, None]:
        yield audit_query_service_pb2.ExportLogResponse(sequence=0, leaves=[b"x"])
        await release.wait()

    services.streams[EXPORT] = slow
    following = [
        asyncio.create_task(events(services, "/v1/audit/log"))
        for _ in range(contract.max_in_flight)
    ]
    await eventually(lambda: len(services.requests) == contract.max_in_flight, timeout_s=20)
    answer = await services.client.get("/v1/audit/log")
    release.set()
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.error().reason == reasons.ERROR_REASON_OVERLOADED
    assert all(len(got) == 2 for got in await asyncio.gather(*following))
