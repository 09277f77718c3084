"""What becomes of the edge's access log: mapped, bounded, taken from the edge alone, recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.access import FOLDED, OPERATOR, UNVERIFIED, Tally
from remit.access_recorder import AccessRecorder
from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.gateway.v1 import access_log_pb2
from remit.audit.admission import Limits, check_event
from remit.audit.edge_entries import REFUSE, asked_for, read_entry
from remit.audit.edge_log import REPORTER, EdgeLog, by_log
from remit.audit.filters import EventFilter, Walk
from remit.audit.leaf import Leaf
from remit.audit.sealing import Pseudonyms
from remit.local.certificates import ensure_certificates
from remit.local.state import StateDirectory
from remit.rpc import host
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import STANDARD_CONTRACTS
from remit.rpc.envoy import STREAM_ACCESS_LOGS, AccessLogStub, add_access_log_servicer
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity, dns_name
from remit.rpc.ids import SystemIds
from remit.rpc.remits import RemitVerifier
from remit.settings import ServiceSettings
from tests.audit.events import ALICE, NOW, ORG, FakeClock, Log
from tests.monitoring.values import gained
from tests.rpc.test_server import NoKeys
from tests.waiting import eventually, in_time

Request = access_log_pb2.StreamAccessLogsRequest
LIMITS = Limits(max_entries=256, max_detail_bytes=16_384, max_text_chars=512, max_future_s=300)
PSEUDONYMS = Pseudonyms(b"p" * 32)
CHECKED = {"user": ALICE.encode(), "org": ORG.encode(), "api_key": f"{ORG}/apiKeys/k1".encode()}
CREATE = "/remit.api.agent.v1.AgentService/CreateRun"
MAX_BYTES = STANDARD_CONTRACTS[STREAM_ACCESS_LOGS].max_request_bytes


def entry(
    path: bytes = CREATE.encode(),
    *,
    cause: bytes = b"request_rate_limited",
    status: int = 200,
    address: str = "192.0.2.7",
    tags: Mapping[str, bytes] = MappingProxyType({}),
) -> access_log_pb2.HttpAccessLogEntry:
    told = access_log_pb2.HttpAccessLogEntry()
    told.common_properties.start_time.FromDatetime(NOW)
    told.common_properties.downstream_remote_address.socket_address.address = address
    for name, value in tags.items():
        told.common_properties.custom_tags[name] = value
    told.request.request_method = 3
    told.request.path = path
    told.request.request_id = b"0198c0de-0000-7000-8000-00000000abcd"
    told.response.response_code.value = status
    told.response.response_code_details = cause
    return told


def event_of(told: access_log_pb2.HttpAccessLogEntry) -> tuple[event_pb2.Event, dict[str, Any]]:
    access, occasion = read_entry(told, PSEUDONYMS.of_client, NOW)
    tally = Tally(access, 0.0)
    tally.add(occasion, NOW)
    event = tally.event("access-1")
    return event, json.loads(event.detail_json)


def test_an_entry_of_a_checked_caller_says_all_that_is_known() -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    more = {"flags": b"RL", "grpc_status": b"8", "traceparent": trace}
    told = entry(b"%b?token=hidden" % CREATE.encode(), tags={**CHECKED, **more})
    event, detail = event_of(told)
    assert (event.org, event.subject, event.resource) == (ORG, ALICE, ORG)
    assert event.kind == event_pb2.EVENT_KIND_ACCESS
    assert event.outcome == event_pb2.OUTCOME_REFUSED
    assert event.event_time.ToDatetime(tzinfo=UTC) == NOW
    assert event.trace_id == "0af7651916cd43dd8448eb211c80319c"
    client = detail.pop("client")
    assert client == PSEUDONYMS.of_client("192.0.2.7")
    assert detail == {
        "asked_by": "edge",
        "best_effort": True,
        "count": 1,
        "flags": "RL",
        "grpc_status": "RESOURCE_EXHAUSTED",
        "http_status": 200,
        "key": f"{ORG}/apiKeys/k1",
        "last_time": NOW.isoformat(),
        "methods": [CREATE[1:]],
        "reason": "request_rate_limited",
        "request": "0198c0de-0000-7000-8000-00000000abcd",
    }


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"user": b"-", "org": b"-", "api_key": b"-"},
        {**CHECKED, "org": b"orgs/other"},
        {**CHECKED, "user": b"orgs/acme/users/alice/../bob"},
        {"org": ORG.encode()},
    ],
)
def test_nobody_is_believed_who_was_not_checked(tags: dict[str, bytes]) -> None:
    event, detail = event_of(entry(tags=tags))
    assert (event.org, event.subject) == (OPERATOR, UNVERIFIED)
    assert "key" not in detail


def test_an_address_stands_as_a_hash_under_a_key() -> None:
    _, one = event_of(entry(address="2001:db8::1"))
    _, same = event_of(entry(address="2001:db8::ffff"))
    _, other = event_of(entry(address="2001:db8:1::1"))
    assert one["client"] == same["client"] != other["client"]
    assert Pseudonyms(b"q" * 32).of_client("192.0.2.7") != PSEUDONYMS.of_client("192.0.2.7")
    _, unknown = event_of(entry(address="/var/run/socket"))
    assert "client" not in unknown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/v1/no?key=hidden", "POST /v1/no"),
        (b"/v1/no#hidden", "POST /v1/no"),
        (b"/v1/" + b"k" * 49, "POST /v1/kkkkkkkk..."),
        (b"/" + b"a/" * 4000, "POST /" + "a/" * 80),
        (b"/\xff\x00\n", "POST /\\\\xff\\x00\\n"),
        (b"", "POST"),
    ],
)
def test_a_path_is_short_and_printable(path: bytes, shown: str) -> None:
    found = asked_for(entry(path).request)
    assert found == shown[:160]
    assert found.isprintable()


def test_a_time_that_cannot_be_is_now() -> None:
    for moved in (timedelta(hours=2), timedelta(seconds=-1), timedelta(days=365 * 50)):
        told = entry()
        told.common_properties.start_time.FromDatetime(NOW - moved)
        event, _ = event_of(told)
        assert event.event_time.ToDatetime(tzinfo=UTC) == NOW
    told = entry()
    told.common_properties.start_time.seconds = 1 << 60
    event, _ = event_of(told)
    assert event.event_time.ToDatetime(tzinfo=UTC) == NOW


@given(data=st.data())
def test_whatever_is_told_makes_an_event_that_the_log_takes(data: st.DataObject) -> None:
    anything = st.binary(max_size=3000)
    told = entry(data.draw(anything), cause=data.draw(anything))
    told.request.request_method = data.draw(st.integers(-(2**31), 2**31 - 1))
    told.request.request_id = data.draw(anything)
    told.response.response_code.value = data.draw(st.integers(0, 2**32 - 1))
    names = st.sampled_from(["user", "org", "api_key", "flags", "grpc_status", "traceparent", "x"])
    for name, value in data.draw(st.dictionaries(names, anything)).items():
        told.common_properties.custom_tags[name] = value
    event, _ = event_of(told)
    assert check_event(event, NOW, LIMITS) == []
    assert len(event.detail_json) < 2000
    empty, _ = event_of(access_log_pb2.HttpAccessLogEntry())
    assert check_event(empty, NOW, LIMITS) == []


class Sink:
    """A log that can be away."""

    def __init__(self) -> None:
        self.events: list[event_pb2.Event] = []
        self.is_away = False

    async def append(self, events: Sequence[event_pb2.Event]) -> Sequence[RemitError | None]:
        if self.is_away:
            raise RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
        self.events.extend(events)
        return [None] * len(events)


def recorder_to(append: Any, clock: FakeClock | SystemClock, entries: int = 64) -> AccessRecorder:
    return AccessRecorder(
        append,
        clock,
        SystemIds(),
        reporter=REPORTER,
        flush_s=0.01,
        interval_s=60,
        max_entries=entries,
    )


async def told_to(log: EdgeLog, *entries: access_log_pb2.HttpAccessLogEntry) -> None:
    async def messages() -> AsyncIterator[Request]:
        yield Request(http_logs=Request.HttpAccessLogEntries(log_entry=entries))

    await log.StreamAccessLogs(messages(), None)  # type: ignore[arg-type]


async def test_a_flood_is_counted_in_bounded_memory() -> None:
    sink, clock = Sink(), FakeClock()
    recorder = recorder_to(sink.append, clock)
    came = gained("remit_edge_log_entries_total")
    folded = gained("remit_accesses_total", reporter=REPORTER, result="FOLDED")
    flood = [entry(address=f"192.0.{n // 250}.{n % 250}") for n in range(5000)]
    await told_to(EdgeLog(recorder, PSEUDONYMS, clock), *flood)
    await recorder.flush()
    assert came() == 5000
    assert len(sink.events) == 33
    details = [json.loads(event.detail_json) for event in sink.events]
    assert sum(detail["count"] for detail in details) == 5000
    (rest,) = (event for event in sink.events if event.action == FOLDED)
    assert json.loads(rest.detail_json)["count"] == folded() == 5000 - 32
    assert json.loads(rest.detail_json)["best_effort"] is True


async def test_while_the_log_takes_nothing_the_edge_goes_on_and_nothing_is_doubled() -> None:
    sink, clock = Sink(), FakeClock()
    recorder = recorder_to(sink.append, clock)
    edge = EdgeLog(recorder, PSEUDONYMS, clock)
    sink.is_away = True
    await told_to(edge, entry())
    for _ in range(3):
        with pytest.raises(RemitError):
            await recorder.flush()
        await told_to(edge, entry())
    sink.is_away = False
    await recorder.flush(whole=True)
    assert sum(json.loads(event.detail_json)["count"] for event in sink.events) == 4


async def test_refusals_are_in_the_log_and_sealed(log: Log) -> None:
    recorder = recorder_to(by_log(log.log, REPORTER), log.clock)
    await told_to(
        EdgeLog(recorder, PSEUDONYMS, log.clock), entry(tags=CHECKED), entry(tags=CHECKED)
    )
    await recorder.flush(whole=True)
    wanted = EventFilter(ORG, action=REFUSE)
    (found,) = await log.log.list_events(wanted, Walk(1, 1), limit=10)
    assert found.event.subject == ALICE
    assert json.loads(found.event.detail_json)["count"] == 2
    (stored,) = await log.store.leaves(0, 1)
    leaf = Leaf.decode(stored)
    assert (leaf.reporter, leaf.action, leaf.kind) == (REPORTER, REFUSE, "ACCESS")
    assert b"alice" not in stored


@pytest.fixture
def parties(tmp_path: Path) -> Callable[[str], Path]:
    state = StateDirectory.open(tmp_path / "state")
    ensure_certificates(state, SystemClock())
    return state.tls_folder


class Served:
    """The access-log service as audit serves it, and what came of what it was told."""

    def __init__(self, parties: Callable[[str], Path]) -> None:
        clock = SystemClock()
        self.sink = Sink()
        self.recorder = recorder_to(self.sink.append, clock)
        self.log = EdgeLog(self.recorder, PSEUDONYMS, clock)
        self.parties = parties
        self.port = 0
        self.stop = asyncio.Event()

    def started(self, port: int, _: int) -> None:
        self.port = port

    @contextlib.asynccontextmanager
    async def told_by(self, party: str) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.secure_channel(
            f"127.0.0.1:{self.port}",
            TlsIdentity.load(self.parties(party)).channel_credentials(),
            [("grpc.ssl_target_name_override", dns_name("audit"))],
        ) as channel:
            yield channel


@pytest.fixture
async def served(parties: Callable[[str], Path]) -> AsyncIterator[Served]:
    made = Served(parties)
    service = host.Service(
        area="audit",
        servicers=[(add_access_log_servicer, made.log)],
        verifier=RemitVerifier(NoKeys(), SystemClock()),
        background=[made.recorder.run],
        drain=[made.log.close],
    )
    settings = ServiceSettings.load(tls_dir=parties("audit"), drain_s=300.0)
    opening = contextlib.nullcontext(service)
    task = asyncio.create_task(host.run(opening, settings, stop=made.stop, started=made.started))
    try:
        await eventually(lambda: made.port or task.done())
        yield made
    finally:
        made.stop.set()
        await in_time(task, 30)


def one(told: access_log_pb2.HttpAccessLogEntry) -> Request:
    return Request(http_logs=Request.HttpAccessLogEntries(log_entry=[told]))


async def test_a_drain_does_not_wait_for_a_stream_that_never_ends(served: Served) -> None:
    async def messages() -> AsyncIterator[Request]:
        yield one(entry())
        await asyncio.Event().wait()

    async with served.told_by("edge") as channel:
        telling = asyncio.ensure_future(AccessLogStub(channel).StreamAccessLogs(messages()))
        await eventually(lambda: served.sink.events)
        assert served.log.streams == 1
        served.stop.set()
        await in_time(telling, 30)
    assert served.log.streams == 0


@pytest.mark.parametrize("party", ["agent", "policy", "audit", "mesh"])
async def test_nobody_but_the_edge_is_listened_to(served: Served, party: str) -> None:
    async def messages() -> AsyncIterator[Request]:
        yield one(entry())

    async with served.told_by(party) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await AccessLogStub(channel).StreamAccessLogs(messages())
    assert RemitError.from_rpc(refused.value).reason == reasons.ERROR_REASON_CALLER_NOT_ALLOWED
    assert not served.sink.events


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff\xff\xff", reasons.ERROR_REASON_INVALID_REQUEST),
        (one(entry(b"/" * MAX_BYTES)).SerializeToString(), reasons.ERROR_REASON_TOO_LARGE),
    ],
)
async def test_a_bad_message_ends_its_stream_and_no_other(
    served: Served, message: bytes, reason: int
) -> None:
    async def messages() -> AsyncIterator[bytes]:
        yield one(entry()).SerializeToString()
        yield message

    async with served.told_by("edge") as channel:
        call: Any = channel.stream_unary(STREAM_ACCESS_LOGS)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(messages())
        assert RemitError.from_rpc(refused.value).reason == reason
        await eventually(lambda: served.sink.events)

        async def more() -> AsyncIterator[bytes]:
            yield one(entry(b"/other")).SerializeToString()
            yield b"\x1a\x02ab"  # fields that nobody declared

        await call(more())
    assert not served.log.streams
