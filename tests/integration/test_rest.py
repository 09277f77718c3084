"""REST and server-sent events through the whole mesh, with `curl` and a plain HTTP client."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.contracts import all_contracts
from tests.gateway.test_rest import rest_call
from tests.integration.conftest import RunningMesh
from tests.programs import program
from tests.rest import Answer, Client, Event, event_of
from tests.waiting import eventually

NO_RUN = "/v1/runs/01980000-0000-7000-8000-000000000000"


@pytest.fixture
def client(mesh: RunningMesh) -> Client:
    return Client(mesh.address, {"authorization": f"Bearer {mesh.api_key}"})


def a_run(task: str = "What is 17 * 23?", **fields: Any) -> dict[str, Any]:
    return {"agent": "agents/assistant", "task": task, "requestId": str(uuid.uuid4())} | fields


def curl(mesh: RunningMesh, path: str, *arguments: str, timeout_s: float = 60) -> str:
    """What curl prints, as a person types it."""
    command = [
        str(program("curl", package="curl")),
        *("--silent", "--show-error", "--fail-with-body", "--no-buffer"),
        *("--header", f"authorization: Bearer {mesh.api_key}"),
        *arguments,
        f"http://{mesh.address}{path}",
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=True
    ).stdout


async def test_curl_runs_an_agent(mesh: RunningMesh) -> None:
    body = ("--header", "content-type: application/json", "--data", json.dumps(a_run()))
    created = json.loads(await asyncio.to_thread(curl, mesh, "/v1/runs", *body))["run"]
    assert created["name"].startswith("runs/")

    async def ended() -> Any:
        run = json.loads(await asyncio.to_thread(curl, mesh, f"/v1/{created['name']}"))["run"]
        return run if run["state"] not in {"RUN_STATE_QUEUED", "RUN_STATE_RUNNING"} else None

    run = await eventually(ended, timeout_s=30)
    assert run["state"] == "RUN_STATE_SUCCEEDED"
    assert "391" in run["result"]
    assert int(run["costNanos"]) > 0
    # The same id and body are the same run, as over gRPC.
    again = json.loads(await asyncio.to_thread(curl, mesh, "/v1/runs", *body))["run"]
    assert again["name"] == run["name"]


async def test_curl_streams_a_run_and_goes_on_where_it_was_cut(mesh: RunningMesh) -> None:
    body = json.dumps(a_run("What is 19 * 21?"))
    arguments = ("--header", "content-type: application/json", "--data", body)
    first = await asyncio.to_thread(curl_until, mesh, "/v1/runs:stream", "id: 2", *arguments)
    cut_at = first[-1]
    assert cut_at.id == "2"
    resumed = ("--header", f"last-event-id: {cut_at.id}")
    whole = await asyncio.to_thread(curl, mesh, "/v1/runs:stream", *arguments, *resumed)
    rest = parsed(whole)
    assert rest[-1].name == "end"
    messages = [event for event in (*first, *rest) if event.name == "message" and event.data]
    sequences = [int(event.json()["event"]["sequence"]) for event in messages]
    assert sequences == list(range(1, len(sequences) + 1)), "nothing lost, nothing doubled"
    assert [int(event.id) for event in messages] == sequences
    ended = messages[-1].json()["event"]["ended"]["run"]
    assert ended["state"] == "RUN_STATE_SUCCEEDED"
    assert "399" in ended["result"]


def curl_until(mesh: RunningMesh, path: str, line: str, *arguments: str) -> list[Event]:
    """Ends curl at the event that begins with a line, as a broken connection would."""
    command = [
        str(program("curl", package="curl")),
        *("--silent", "--no-buffer", "--max-time", "30"),
        *("--header", f"authorization: Bearer {mesh.api_key}", *arguments),
        f"http://{mesh.address}{path}",
    ]
    text, reached = "", False
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for read in process.stdout:
            text += read
            reached = reached or read.strip() == line
            if reached and read == "\n":
                process.kill()
                break
    return parsed(text)


def parsed(text: str) -> list[Event]:
    return [event_of(block) for block in text.split("\n\n") if block]


async def test_a_watcher_resumes_at_every_event(client: Client) -> None:
    run = await started(client, a_run("What is 3 * 5?"))
    whole = await followed(client, f"/v1/{run}/events")
    for after in range(len(whole) - 1):
        rest = await followed(client, f"/v1/{run}/events", last_event_id=str(after))
        assert told(rest) == told(whole[after:])


async def started(client: Client, body: Mapping[str, Any]) -> str:
    answer = await client.post("/v1/runs", body)
    assert answer.status == 200, answer
    name = answer.json()["run"]["name"]
    assert isinstance(name, str)
    return name


def told(events: list[Event]) -> list[tuple[str, str, Any]]:
    """What events say; the members of an object in JSON have no order (RFC 8259)."""
    return [(event.id, event.name, event.json()) for event in events]


async def followed(client: Client, path: str, **headers: str) -> list[Event]:
    async with client.stream("GET", path, headers=headers) as stream, asyncio.timeout(30):
        assert stream.answer.status == 200, stream.answer
        return [event async for event in stream.events() if not event.comment]


async def test_a_browser_reconnects_with_id_and_query(client: Client) -> None:
    run = await started(client, a_run("What is 6 * 7?"))
    whole = await followed(client, f"/v1/{run}/events?afterSequence=1")
    assert whole[0].id == "2"
    rest = await followed(client, f"/v1/{run}/events?afterSequence=1", last_event_id="3")
    assert told(rest) == told(whole[2:])


async def test_every_get_answers_by_rest(client: Client) -> None:
    """A name of nothing is NOT_FOUND or INVALID_REQUEST, never an error of the server."""
    for contract in all_contracts().values():
        if contract.is_public and contract.http and contract.http.verb == "GET":
            answer = await first_of(client, rest_call(contract).path)
            assert answer.status in {200, 400, 404}, (contract.path, answer)
            if answer.status != 200:
                assert answer.error().next_step


async def first_of(client: Client, path: str) -> Answer:
    """The answer, of a stream its head alone."""
    async with client.stream("GET", path) as stream:
        if stream.answer.headers["content-type"] == "text/event-stream":
            return stream.answer
    return await client.get(path)


async def test_lists_and_reports_are_json(client: Client) -> None:
    agents = (await client.get("/v1/agents")).json()["agents"]
    assert "agents/assistant" in {agent["name"] for agent in agents}
    spend = (await client.get("/v1/spend?groupBy=DIMENSION_ITEM&pageSize=5")).json()
    assert all(row["postedNanos"].isdigit() for row in spend["rows"])
    checkpoint = (await client.get("/v1/audit/checkpoint")).json()["checkpoint"]
    assert int(checkpoint["treeSize"]) > 0


async def test_a_tool_is_called_with_its_key_in_the_body(client: Client) -> None:
    body = {"arguments": {"expression": "6 * 7"}, "requestId": str(uuid.uuid4())}
    first = await client.post("/v1/tools/calculator:call", body)
    assert first.status == 200, first
    again = await client.post("/v1/tools/calculator:call", body)
    assert again.json()["claim"] == first.json()["claim"], "the same effect"
    other = await client.post(
        "/v1/tools/calculator:call", body | {"arguments": {"expression": "1"}}
    )
    assert other.status == 409


async def test_what_is_not_there_is_404_with_details(client: Client) -> None:
    for path in (NO_RUN, f"{NO_RUN}/events"):
        answer = await client.get(path)
        assert answer.status == 404
        assert answer.error().reason == reasons.ERROR_REASON_RUN_NOT_FOUND


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, reasons.ERROR_REASON_CREDENTIAL_MISSING),
        ({"authorization": "Bearer nonsense"}, reasons.ERROR_REASON_CREDENTIAL_INVALID),
        ({"authorization": "Basic eDp5"}, reasons.ERROR_REASON_CREDENTIAL_INVALID),
        ({"remit-token": "forged"}, reasons.ERROR_REASON_CREDENTIAL_MISSING),
        (
            {"x-forwarded-client-cert": "URI=spiffe://remit.internal/agent", "x-remit-user": "x"},
            reasons.ERROR_REASON_CREDENTIAL_MISSING,
        ),
    ],
    ids=["none", "no key", "another scheme", "a remit", "an identity"],
)
async def test_without_a_key_nothing_is_done(
    mesh: RunningMesh, headers: dict[str, str], reason: reasons.ErrorReason.ValueType
) -> None:
    nobody = Client(mesh.address, headers)
    for answer in (await nobody.post("/v1/runs", a_run()), await nobody.get("/v1/runs")):
        assert answer.status == 401
        assert answer.error().reason == reason


async def test_the_key_may_stand_in_a_header_of_its_own(mesh: RunningMesh) -> None:
    forged = {"remit-token": "forged", "x-remit-user": "orgs/acme/users/root"}
    client = Client(mesh.address, {"x-api-key": mesh.api_key} | forged)
    assert (await client.get("/v1/runs")).status == 200


@pytest.mark.parametrize("last", ["99999", "9223372036854775807", "-1", "latest", "1e3"])
async def test_an_id_that_no_event_has_is_refused(client: Client, last: str) -> None:
    run = await started(client, a_run("What is 1 + 1?"))
    answer = await client.get(f"/v1/{run}/events", last_event_id=last)
    assert answer.status == 400
    assert answer.error().reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_a_misspelt_limit_starts_no_run(client: Client) -> None:
    before = (await client.get("/v1/runs?pageSize=200")).json()["runs"]
    answer = await client.post("/v1/runs", a_run("What is 2 + 2?", limit={"maxSteps": 1}))
    assert answer.status == 400
    assert answer.error().violations[0].field == "limit"
    after = (await client.get("/v1/runs?pageSize=200")).json()["runs"]
    assert {run["name"] for run in after} == {run["name"] for run in before}


async def test_a_bad_request_names_every_field(client: Client) -> None:
    answer = await client.post("/v1/runs", {"agent": "nobody", "task": ""})
    assert answer.status == 400
    assert {v.field for v in answer.error().violations} >= {"agent", "task", "request_id"}


async def test_a_cut_stream_leaves_the_run_alone(client: Client) -> None:
    body = a_run("What is 8 * 8?")
    async with client.stream("POST", "/v1/runs:stream", body) as stream:
        first = await anext(stream.events())
    run = first.json()["event"]["run"]
    whole = await followed(client, f"/v1/{run}/events")
    assert whole[-2].json()["event"]["ended"]["run"]["state"] == "RUN_STATE_SUCCEEDED"


async def test_the_stats_port_serves_prometheus(mesh: RunningMesh) -> None:
    stats = Client(str(mesh.topology.stats))
    await Client(mesh.address).get("/v1/runs")
    text = (await stats.get("/stats/prometheus")).body.decode()
    assert 'envoy_http_conn_manager_prefix="edge"' in text
    assert (await stats.get("/quitquitquit")).status == 404
