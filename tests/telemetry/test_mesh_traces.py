"""One trace from the client through Envoy and every service to the tool, and its ids in every log.

The mesh is real, and so is the collector: it listens on a port and keeps what arrives.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from remit.api.agent.v1 import (
    agent_catalog_service_pb2,
    agent_catalog_service_pb2_grpc,
    agent_service_pb2,
    agent_service_pb2_grpc,
    run_pb2,
)
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.gateway.tracing import COLLECTOR
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError
from remit.telemetry import table
from remit.telemetry.export import SEND_EVERY_S
from tests import rest
from tests.integration.clients import a_run, bearer, channel, followed, result_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.telemetry.collector import Collector, Seen, above, orphans, running_collector
from tests.waiting import PATIENCE, eventually, in_time

# Short enough to outwait one, long enough that no stall of a busy machine costs it: what a worker
# was doing then would have no span.
LEASE_S = "8"
SETTINGS = {
    "REMIT_AGENT_LEASE_S": LEASE_S,
    "REMIT_INFERENCE_EFFECT_LEASE_S": LEASE_S,
    "REMIT_TOOLS_EFFECT_LEASE_S": LEASE_S,
    # Without tools no offer of theirs can be asked for.
    "REMIT_AGENT_OFFER_CACHE_S": "3600",
    "REMIT_AGENT_LOG_LEVEL": "debug",
}
SERVICES = {"remit-gateway", *(f"remit-{area}" for area in AREAS)}
TOOL_FAILED = "TOOL_FAILED"
ARRIVAL_S = 60.0
"""Spans are sent once a second; a busy machine may need several of gRPC's attempts to connect."""
CLOSING = {"remit-inference", "remit-tools", "remit-gateway", "remit-audit"}
"""Whoever records outcomes, the way to the log, and the log."""
ENVOYS_NAMES = {
    "component",
    "downstream_cluster",
    "grpc.authority",
    "grpc.content_type",
    "grpc.message",
    "grpc.path",
    "grpc.status_code",
    "grpc.timeout",
    "guid:x-request-id",
    "error",
    "ext_authz_status",
    "http.method",
    "http.protocol",
    "http.status_code",
    "http.url",
    "node_id",
    "peer.address",
    "ratelimit_status",
    "request_size",
    "response_flags",
    "response_size",
    "retry.count",
    "status",
    "upstream_address",
    "upstream_cluster",
    "upstream_cluster.name",
    "user_agent",
    "zone",
}
GARBAGE = [
    (("traceparent", "garbage"),),
    (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),),
    (("traceparent", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01"),),
    (("traceparent", "00-" + "1" * 33 + "-" + "1" * 15 + "-01"),),
    (("traceparent", "x" * 4000),),
    (("baggage", ",,;;=%zz" + "a" * 4000), ("tracestate", "=,=,;;" * 100)),
]
STATES = ["=,=,statecanary;;" * 100, "statecanary=1"]
"""One that the W3C calls invalid, and a valid one."""


@dataclass(frozen=True)
class Traced:
    """A mesh and the collector that its spans go to."""

    mesh: RunningMesh
    collector: Collector


@dataclass(frozen=True)
class Client:
    """A client that begins a trace of its own."""

    trace_id: str
    span_id: str

    @classmethod
    def new(cls) -> Client:
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    def metadata(self, mesh: RunningMesh, flags: str = "01") -> Any:
        traceparent = f"00-{self.trace_id}-{self.span_id}-{flags}"
        return (*bearer(mesh.api_key), ("traceparent", traceparent))


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with (
        running_collector() as collector,
        started_mesh(
            environment=SETTINGS, options=("--trace-endpoint", collector.endpoint)
        ) as mesh,
    ):
        yield Traced(mesh, collector)


async def run_in(traced: Traced, client: Client, task: str = "What is 17 * 23?") -> run_pb2.Run:
    async with channel(traced.mesh.address) as edge:
        stub = agent_service_pb2_grpc.AgentServiceStub(edge)
        request = agent_service_pb2.StreamRunRequest(request=a_run(task))
        stream = stub.StreamRun(
            request, metadata=client.metadata(traced.mesh), timeout=60 * PATIENCE
        )
        events = [answer.event async for answer in stream if answer.HasField("event")]
    return result_of(events)


async def whole(traced: Traced, client: Client) -> list[Seen]:
    """The trace of a client, once its run has ended and closed and every span has its parent.

    Effects of one service may close in one RPC.
    """
    newest = 0, time.monotonic()

    def settled(count: int) -> bool:
        """Whether nothing came for longer than a service waits before it sends."""
        nonlocal newest
        if count != newest[0]:
            newest = count, time.monotonic()
        return time.monotonic() - newest[1] > 1.5 * SEND_EVERY_S

    def arrived() -> list[Seen]:
        spans = traced.collector.trace(client.trace_id)
        if not settled(len(spans)):
            return []
        closed = {s.service for s in spans if s.name.endswith("/AppendOutcomes")}
        done = {s.service for s in spans} == SERVICES and closed == CLOSING
        ended = any(s.name.startswith(table.INVOKE_AGENT) for s in spans)
        edge = any(s.parent_id == client.span_id for s in spans)
        return spans if done and ended and edge and not missing(spans, client) else []

    try:
        return await eventually(arrived, ARRIVAL_S)
    except AssertionError:
        spans = traced.collector.trace(client.trace_id)
        said = [x for area in AREAS for x in log_lines(traced.mesh, area) if "spans_" in x["event"]]
        raise AssertionError(sorted((s.service, s.name) for s in spans), said) from None


def missing(spans: list[Seen], client: Client) -> list[Seen]:
    return orphans(spans, outside=(client.span_id,))


def only(spans: list[Seen], name: str, service: str) -> Seen:
    found = [span for span in spans if span.name == name and span.service == service]
    assert len(found) == 1, [(s.service, s.name) for s in spans]
    return found[0]


def log_lines(mesh: RunningMesh, area: str) -> list[dict[str, Any]]:
    """Our own lines; gRPC's library writes some of its own kind when a connection breaks."""
    lines = mesh.log(f"{area}-0").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


async def test_a_run_is_one_trace_from_the_client_to_the_tool(traced: Traced) -> None:
    client = Client.new()
    run = await run_in(traced, client)
    spans = await whole(traced, client)
    (edge,) = [span for span in spans if span.parent_id == client.span_id]
    assert (edge.service, edge.name) == (
        "remit-gateway",
        "/remit.api.agent.v1.AgentService/StreamRun",
    )
    invoked = only(spans, "invoke_agent assistant", "remit-agent")
    assert invoked.attributes[table.RUN] == run.name
    assert invoked.attributes[table.TOOL_CALLS] == 1
    assert invoked.attributes[table.MODEL_CALLS] == 2
    assert invoked.attributes[table.OUTPUT_TOKENS] == run.usage.output_tokens
    assert invoked.attributes[table.TASK_BYTES] == len("What is 17 * 23?")
    tool = only(spans, "execute_tool calculator", "remit-tools")
    assert [(s.service, s.name.rpartition("/")[2]) for s in above(tool, spans)] == [
        ("remit-tools", "effect tools.call"),
        ("remit-tools", "CallTool"),
        ("remit-gateway", "CallTool"),
        ("remit-agent", "CallTool"),
        ("remit-agent", "stage using tools"),
        ("remit-agent", "invoke_agent assistant"),
        ("remit-gateway", "StreamRun"),
    ]
    chats = [span for span in spans if span.name == "chat builtin-rules"]
    assert len(chats) == 2
    used = sum(chat.attributes[table.GEN_AI_OUTPUT_TOKENS] for chat in chats)
    assert used == run.usage.output_tokens
    stages = [s.attributes[table.STAGE] for s in spans if s.name.startswith("stage ")]
    assert sorted(stages) == ["answering", "thinking", "thinking", "using tools"]
    for name in ("BatchCheckPermissions", "BatchReserveBudgets", "AppendEvents"):
        served = [s for s in spans if s.name.endswith(f"/{name}") and s.service != "remit-gateway"]
        assert len(served) == 6, "one made and one served for each of three effects"
    assert not [span for span in spans if span.failed or span.events]
    assert all(span.start_ns <= span.end_ns for span in spans)


async def test_a_run_over_rest_is_one_trace_and_a_query_is_not_kept(traced: Traced) -> None:
    client, key = Client.new(), "query-" + secrets.token_hex(8)
    lines = (
        f"POST /v1/runs?{key}=1 HTTP/1.1",
        f"host: {traced.mesh.address}",
        f"authorization: Bearer {traced.mesh.api_key}",
        f"traceparent: 00-{client.trace_id}-{client.span_id}-01",
        "content-type: application/json",
        "content-length: 2",
        "connection: close",
        "",
        "{}",
    )
    host, port = traced.mesh.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write("\r\n".join(lines).encode())
    assert b" 400 " in await in_time(reader.readline(), 20)
    writer.close()
    spans = await eventually(lambda: traced.collector.trace(client.trace_id), 20)
    assert not [span for span in spans if key in span.text]
    assert "/v1/runs" in {span.name for span in spans if span.parent_id == client.span_id}


async def test_every_service_writes_the_ids_of_the_trace_and_the_run(traced: Traced) -> None:
    client = Client.new()
    run = await run_in(traced, client)
    await whole(traced, client)

    def unknown() -> set[str]:
        """Span ids in the logs that no span bears, or not yet."""
        lines = [x for area in AREAS for x in log_lines(traced.mesh, area)]
        ids = {x["span_id"] for x in lines if x.get("trace_id") == client.trace_id}
        return ids - {span.span_id for span in traced.collector.trace(client.trace_id)}

    await eventually(lambda: not unknown(), 20)
    for area in AREAS:
        lines = [x for x in log_lines(traced.mesh, area) if x.get("trace_id") == client.trace_id]
        assert [x for x in lines if x.get("run") == run.name], area
        assert all({"level", "logger", "timestamp", "event", "service"} <= set(x) for x in lines)
    events = {x["event"]: x for x in log_lines(traced.mesh, "agent") if x.get("run") == run.name}
    started, completed = events["agent_execution_started"], events["agent_execution_completed"]
    assert (started["task_type"], started["user"]) == ("assistant", run.subject)
    assert (completed["tool_calls"], completed["success"]) == (1, True)
    assert completed["output_tokens"] == run.usage.output_tokens
    assert completed["duration_s"] > 0


async def test_runs_side_by_side_share_rpcs_and_leave_no_orphan(traced: Traced) -> None:
    # Effects share an RPC where they wait for it together, which a busy machine may delay.
    for _ in range(5):
        if await _shared_by_eight_runs(traced):
            return
    raise AssertionError("no RPC of eight runs side by side served two of them, five times")


async def _shared_by_eight_runs(traced: Traced) -> list[Seen]:
    """The RPCs that served several of eight runs, which must be well linked.

    None if a span is missing because an export failed, which its service, or Envoy, must tell.
    """
    clients = [Client.new() for _ in range(8)]
    await asyncio.gather(*(run_in(traced, c, f"What is {n} * 7?") for n, c in enumerate(clients)))
    outside = {client.span_id for client in clients}
    traces = {client.trace_id for client in clients}

    def arrived() -> list[Seen]:
        spans = [s for s in traced.collector.everything() if s.trace_id in traces]
        runs = [s for s in spans if s.name.startswith(table.INVOKE_AGENT)]
        return spans if len(runs) == 8 and not orphans(spans, outside=(*outside,)) else []

    try:
        spans = await eventually(arrived, 20)
    except AssertionError:
        assert _told_of_loss(traced), "nothing is lost without a word"
        return []
    by_place = {(span.trace_id, span.span_id): span for span in spans}
    assert {link for span in spans for link in span.links} <= by_place.keys()
    shared = [s for s in spans if s.links and s.name.startswith("/remit.api.")]
    others = [by_place[link] for rpc in shared for link in rpc.links]
    assert not [span for span in others if not span.name.startswith("effect ")]
    return [rpc for rpc in shared if {trace for trace, _ in rpc.links} - {rpc.trace_id}]


async def test_spans_bear_names_of_the_table_alone(traced: Traced) -> None:
    client = Client.new()
    await run_in(traced, client)
    for span in await whole(traced, client):
        known = ENVOYS_NAMES if span.service == "remit-gateway" else set(table.MEANINGS)
        assert set(span.attributes) <= known, span.name


async def test_what_users_send_is_in_no_log_and_on_no_span(traced: Traced) -> None:
    client, canary = Client.new(), "canary" + secrets.token_hex(8)
    mesh = traced.mesh
    await run_in(traced, client, f"What is 2 + 3? {canary}")
    await run_in(traced, client, f"Write a file {canary}.txt with the text {canary}")
    await run_in(traced, client, f"Read the file {canary}-2.txt")
    await a_tool_quotes(traced, client, canary)
    async with channel(mesh.address) as edge:
        stub = agent_service_pb2_grpc.AgentServiceStub(edge)
        for request, metadata in (
            (a_run("Hello", context={canary: canary}), client.metadata(mesh)),
            (a_run(f"<script>{canary}</script>"), client.metadata(mesh)),
            (a_run(), (("authorization", f"Bearer remit_{canary}"),)),
            (a_run(), (*client.metadata(mesh)[1:], ("authorization", canary))),
        ):
            asked = agent_service_pb2.CreateRunRequest.FromString(request.SerializeToString())
            try:
                await stub.CreateRun(asked, metadata=metadata, timeout=20 * PATIENCE)
            except grpc.aio.AioRpcError as error:
                assert error.code() is not grpc.StatusCode.INTERNAL  # noqa: PT017
    await whole(traced, client)

    def all_runs() -> bool:
        spans = traced.collector.trace(client.trace_id)
        runs = [s for s in spans if s.name.startswith(table.INVOKE_AGENT)]
        return len(runs) == 4 and not missing(spans, client)

    await eventually(all_runs, 20)
    failed = [s for s in traced.collector.trace(client.trace_id) if TOOL_FAILED in s.text]
    assert {s.service for s in failed} >= {"remit-gateway", "remit-tools", "remit-agent"}
    secret = mesh.api_key
    for part in (*(f"{area}-0" for area in AREAS), "envoy", "postgres"):
        assert canary not in mesh.log(part), part
        assert secret not in mesh.log(part), part
    for span in traced.collector.everything():
        assert canary not in span.text, span.name
        assert secret not in span.text, span.name


async def a_tool_quotes(traced: Traced, client: Client, canary: str) -> None:
    """Has a tool fail with the canary in its words, which the caller is told in either form."""
    mesh = traced.mesh
    arguments = {"path": f"{canary}-3.txt"}
    request = tool_service_pb2.CallToolRequest(tool="tools/read_file", request_id="quoting-1")
    request.arguments.update(arguments)
    async with channel(mesh.address) as edge:
        stub = tool_service_pb2_grpc.ToolServiceStub(edge)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.CallTool(request, metadata=client.metadata(mesh), timeout=20 * PATIENCE)
    assert canary not in (failure.value.details() or "")
    answer = await rest.Client(mesh.address, dict(client.metadata(mesh))).post(
        "/v1/tools/read_file:call", {"arguments": arguments, "requestId": "quoting-2"}
    )
    for told in (RemitError.from_rpc(failure.value), answer.error()):
        assert told.reason_name == TOOL_FAILED
        assert told.message == f"tools/read_file: {canary}-3.txt does not exist"
    assert canary in answer.json()["message"]


async def test_a_trace_that_is_not_sampled_is_in_the_logs_and_nowhere_else(traced: Traced) -> None:
    client = Client.new()
    async with channel(traced.mesh.address) as edge:
        stub = agent_service_pb2_grpc.AgentServiceStub(edge)
        metadata = client.metadata(traced.mesh, flags="00")
        stream = stub.StreamRun(
            agent_service_pb2.StreamRunRequest(request=a_run()),
            metadata=metadata,
            timeout=60 * PATIENCE,
        )
        run = result_of([answer.event async for answer in stream if answer.HasField("event")])
    after = Client.new()
    await run_in(traced, after)
    await whole(traced, after)
    assert traced.collector.trace(client.trace_id) == []
    lines = [x for x in log_lines(traced.mesh, "agent") if x.get("run") == run.name]
    assert {x["trace_id"] for x in lines} == {client.trace_id}


@pytest.mark.parametrize("headers", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_begins_a_new_trace_and_changes_nothing_else(
    traced: Traced, headers: tuple[tuple[str, str], ...]
) -> None:
    before = {span.trace_id for span in traced.collector.everything()}
    async with channel(traced.mesh.address) as edge:
        stub = agent_catalog_service_pb2_grpc.AgentCatalogServiceStub(edge)
        request = agent_catalog_service_pb2.ListAgentsRequest()
        metadata = (*bearer(traced.mesh.api_key), *headers)
        answer = await stub.ListAgents(request, metadata=metadata, timeout=20 * PATIENCE)
    assert answer.agents

    def arrived() -> list[Seen]:
        spans = [s for s in traced.collector.everything() if s.trace_id not in before]
        found = [s for s in spans if s.name.endswith("/ListAgents")]
        return spans if {s.service for s in found} == {"remit-gateway", "remit-agent"} else []

    spans = await eventually(arrived, 20)
    listed = {s.service: s for s in spans if s.name.endswith("/ListAgents")}
    assert listed["remit-gateway"].parent_id == ""
    assert listed["remit-agent"].parent_id == listed["remit-gateway"].span_id


@pytest.mark.parametrize("state", STATES, ids=["invalid", "valid"])
async def test_a_tracestate_beside_a_valid_traceparent_is_not_read(
    traced: Traced, state: str
) -> None:
    client = Client.new()
    async with channel(traced.mesh.address) as edge:
        stub = agent_catalog_service_pb2_grpc.AgentCatalogServiceStub(edge)
        request = agent_catalog_service_pb2.ListAgentsRequest()
        metadata = (*client.metadata(traced.mesh), ("tracestate", state))
        await stub.ListAgents(request, metadata=metadata, timeout=20 * PATIENCE)

    def arrived() -> list[Seen]:
        spans = traced.collector.trace(client.trace_id)
        return spans if {"remit-gateway", "remit-agent"} <= {s.service for s in spans} else []

    spans = await eventually(arrived, 20)
    assert not [span for span in spans if "statecanary" in span.text]
    for part in (*(f"{area}-0" for area in AREAS), "envoy"):
        assert "statecanary" not in traced.mesh.log(part), part
    lines = [x for area in AREAS for x in log_lines(traced.mesh, area)]
    assert not [x for x in lines if x["logger"].startswith("opentelemetry.trace")]


async def test_a_run_goes_on_in_its_trace_after_its_worker_died(traced: Traced) -> None:
    client, mesh = Client.new(), traced.mesh
    await run_in(traced, Client.new())  # from here on the agent knows what tools offers
    tools, restarts = mesh.pid("tools-0"), mesh.restarts("agent-0")
    os.kill(tools, signal.SIGSTOP)
    try:
        request = a_run("What is 6 * 7?")
        async with channel(mesh.address) as edge:
            stub = agent_service_pb2_grpc.AgentServiceStub(edge)
            created = await stub.CreateRun(
                request, metadata=client.metadata(mesh), timeout=20 * PATIENCE
            )
        await eventually(lambda: _thought(traced, client), ARRIVAL_S)
        mesh.kill("agent-0")
    finally:
        os.kill(tools, signal.SIGCONT)
    await eventually(lambda: mesh.restarts("agent-0") > restarts, 30)
    run = result_of(await followed(mesh.address, mesh.api_key, request))
    assert (run.name, run.state) == (created.run.name, run_pb2.RUN_STATE_SUCCEEDED)

    def arrived() -> list[Seen]:
        spans = traced.collector.trace(client.trace_id)
        return spans if any(s.name.startswith(table.INVOKE_AGENT) for s in spans) else []

    await eventually(arrived, 20)
    spans = await eventually(lambda: _tool_ran(traced, client), 20)
    invoked = only(spans, "invoke_agent assistant", "remit-agent")
    stages = [s for s in spans if s.name.startswith("stage ")]
    assert {s.parent_id for s in stages if s.name != "stage answering"} == {invoked.span_id}
    assert {s.attributes[table.FENCING_TOKEN] for s in stages if table.REPLICA in s.attributes} == {
        1,
        2,
    }
    # What the dead process had not ended or not sent is lost, and nothing else: the call that it
    # made, and perhaps that its model's answer is in the journal, which it told a moment before.

    def lost() -> set[str]:
        spans = traced.collector.trace(client.trace_id)
        return {s.name.rpartition("/")[2] for s in missing(spans, client)}

    await eventually(lambda: lost() <= {"CallTool", "AcknowledgeResults"}, 20)
    adopted = [x for x in log_lines(mesh, "agent") if x["event"] == "agent_execution_adopted"]
    assert {x["trace_id"] for x in adopted if x["run"] == run.name} == {client.trace_id}


async def test_a_collector_that_dies_under_load_costs_nothing_but_spans(traced: Traced) -> None:
    tasks = [f"What is {n} * 3?" for n in range(12)]
    running = [asyncio.create_task(run_in(traced, Client.new(), task)) for task in tasks]
    traced.collector.stop()
    try:
        running += [asyncio.create_task(run_in(traced, Client.new(), task)) for task in tasks]
        runs = await asyncio.gather(*running)
        assert {run.state for run in runs} == {run_pb2.RUN_STATE_SUCCEEDED}
        await eventually(lambda: all(_said_lost(traced.mesh, area) for area in AREAS), 20)
        await eventually(lambda: _envoy_failed(traced), 20)
    finally:
        traced.collector.listen()
    for area in AREAS:
        assert len(_said_lost(traced.mesh, area)) == 1, "once a minute, not once a span"
    assert not {part for part in AREAS if traced.mesh.restarts(f"{part}-0") > (part == "agent")}

    async def arrives_again() -> bool:
        client = Client.new()
        await run_in(traced, client)
        await whole(traced, client)
        return True

    assert await arrives_again()


def _said_lost(mesh: RunningMesh, area: str) -> list[dict[str, Any]]:
    return [x for x in log_lines(mesh, area) if x["event"] == "spans_lost"]


def _told_of_loss(traced: Traced) -> bool:
    """Whether a service said that it lost spans, or Envoy counted calls that did not arrive."""
    return any(_said_lost(traced.mesh, area) for area in AREAS) or _envoy_failed(traced)


def _envoy_failed(traced: Traced) -> bool:
    counted = rf"^cluster\.{COLLECTOR}\.upstream_(rq_timeout|rq_tx_reset|cx_connect_fail)$"
    url = f"http://{traced.mesh.topology.admin}/stats?filter={urllib.parse.quote(counted)}"
    with urllib.request.urlopen(url, timeout=10 * PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    assert len(lines) == 3, lines
    return any(int(line.rpartition(": ")[2]) for line in lines)


def _thought(traced: Traced, client: Client) -> bool:
    names = {s.name for s in traced.collector.trace(client.trace_id)}
    return {"stage thinking", "chat builtin-rules"} <= names


def _tool_ran(traced: Traced, client: Client) -> list[Seen]:
    spans = traced.collector.trace(client.trace_id)
    return spans if any(s.name == "execute_tool calculator" for s in spans) else []
