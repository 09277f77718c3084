"""What a web page may do: gRPC-Web and REST for the origins of the topology, nothing for others."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import message
from google.rpc import status_pb2

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.gateway.cors import REQUEST_HEADERS
from remit.policy.ext_authz import EdgeAuthorization
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from tests.gateway.services import Context, Services, running_services
from tests.rest import Answer, Client

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENTS = "/remit.api.agent.v1.AgentService"
OURS = "https://console.example.com"
RUN = "/v1/runs/r"
WEB = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    origins = {"origins": [OURS, "http://localhost:3000", "https://*.example.org"], "max_age_s": 60}
    async with running_services(tmp_path_factory.mktemp("browser"), cors=origins) as made:
        yield made


@pytest.fixture
def services(running: Services) -> Services:
    running.forget()
    return running


@pytest.fixture
def refusing(services: Services) -> Services:
    """The edge asks policy's own code, which knows no key here."""
    nobody: Any = SimpleNamespace(session=None, deny=lambda *_: None)
    services.world.judge = EdgeAuthorization(nobody, nobody, nobody, SystemClock()).Check
    return services


def anonymous(services: Services) -> Client:
    return Client(str(services.world.topology.edge))


def preflight(origin: str) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-grpc-web",
    }


def cors_headers(answer: Answer) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


@pytest.mark.parametrize("path", ["/v1/runs", f"{AGENTS}/CreateRun", "/v1/runs:stream"])
async def test_a_preflight_is_answered_without_a_credential(services: Services, path: str) -> None:
    answer = await anonymous(services).call("OPTIONS", path, headers=preflight(OURS))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == OURS
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert answer.headers["access-control-max-age"] == "60"
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert tuple(allowed) == REQUEST_HEADERS
    assert "access-control-allow-credentials" not in answer.headers
    assert not services.world.checks
    assert not services.world.seen


ALLOWED = [OURS, "http://localhost:3000", "https://a.example.org", "https://a.b-c.example.org"]
FOREIGN = [
    "https://evil.example.net",
    "http://console.example.com",
    "https://console.example.com:8443",
    "https://console.example.com.evil.net",
    "https://xconsole.example.com",
    "https://example.org",
    "https://evilexample.org",
    "https://a.example.org.evil.net",
    "https://evil.net/.example.org",
    "https://evil.net?.example.org",
    "http://a.example.org",
    "https://.example.org",
    "null",
    "*",
    "",
]


@pytest.mark.parametrize("origin", ALLOWED)
async def test_a_listed_origin_reads_every_answer(services: Services, origin: str) -> None:
    async def fail(_request: Any, _context: Context) -> message.Message:
        raise RemitError(reasons.ERROR_REASON_OVERLOADED, "full")

    services.methods[f"{AGENTS}/GetRun"] = fail
    paths = {"/v1/runs": 200, RUN: 429, "/v1/nothing": 404, f"{RUN}/events": 200}
    for path, status in paths.items():
        answer = await services.client.call("GET", path, headers={"origin": origin})
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == origin
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"grpc-status", "grpc-message", "grpc-status-details-bin"} <= set(exposed)


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_foreign_origin_gets_no_permission(services: Services, origin: str) -> None:
    asked = await anonymous(services).call("OPTIONS", "/v1/runs", headers=preflight(origin))
    assert asked.status == 404
    assert not cors_headers(asked)
    for path in ("/v1/runs", "/v1/nothing", f"{RUN}/events"):
        answer = await services.client.call("GET", path, headers={"origin": origin})
        assert not cors_headers(answer)


async def test_a_page_has_no_authority_of_its_visitor(refusing: Services) -> None:
    """What a browser sends without a preflight brings no key, and cookies are none."""
    simple = {"origin": "https://evil.example.net", "cookie": "authorization=Bearer k; session=1"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = await anonymous(refusing).call(
            "POST", "/v1/runs", b'{"task": "x"}', headers=simple | {"content-type": kind}
        )
        assert answer.status == 401
        assert answer.error().reason == reasons.ERROR_REASON_CREDENTIAL_MISSING
        assert not cors_headers(answer)
    assert not refusing.world.seen


def frame(request: message.Message) -> bytes:
    data = request.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def frames(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """Messages and trailers of a gRPC-Web body."""
    messages, trailers = [], {}
    while body:
        size = int.from_bytes(body[1:5], "big")
        content, kind, body = body[5 : 5 + size], body[0], body[5 + size :]
        if kind & 0x80:
            lines = content.decode().strip().split("\r\n")
            trailers = dict(line.split(":", 1) for line in lines)
        else:
            messages.append(content)
    return messages, trailers


async def web_call(client: Client, path: str, request: message.Message, **headers: str) -> Answer:
    given = WEB | {"origin": OURS} | headers
    return await client.call("POST", path, frame(request), headers=given)


async def test_grpc_web_calls(services: Services) -> None:
    async def get(request: Any, _context: Context) -> message.Message:
        return agent_service_pb2.GetRunResponse(run=run_pb2.Run(name=request.name))

    services.methods[f"{AGENTS}/GetRun"] = get
    request = agent_service_pb2.GetRunRequest(name="runs/r")
    answer = await web_call(services.client, f"{AGENTS}/GetRun", request)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == OURS
    assert answer.headers["vary"] == "origin"
    (content,), trailers = frames(answer.body)
    assert agent_service_pb2.GetRunResponse.FromString(content).run.name == "runs/r"
    assert trailers["grpc-status"].strip() == "0"
    assert services.world.checks[0].attributes.request.http.path == f"{AGENTS}/GetRun"


async def test_grpc_web_streams_messages_not_events(services: Services) -> None:
    async def watch(_request: Any, _context: Context) -> Any:
        for sequence in (1, 2):
            yield agent_service_pb2.WatchRunResponse(sequence=sequence)

    services.streams[f"{AGENTS}/WatchRun"] = watch
    answer = await web_call(
        services.client, f"{AGENTS}/WatchRun", agent_service_pb2.WatchRunRequest()
    )
    messages, trailers = frames(answer.body)
    read = [agent_service_pb2.WatchRunResponse.FromString(one).sequence for one in messages]
    assert read == [1, 2]
    assert trailers["grpc-status"].strip() == "0"


async def test_grpc_web_as_text(services: Services) -> None:
    request = agent_service_pb2.ListRunsRequest(page_size=3)
    body = base64.b64encode(frame(request))
    answer = await services.client.call(
        "POST",
        f"{AGENTS}/ListRuns",
        body,
        headers={"content-type": "application/grpc-web-text", "x-grpc-web": "1"},
    )
    assert answer.status == 200
    assert services.requests == [request]


async def test_grpc_web_errors_have_their_details(services: Services) -> None:
    async def fail(_request: Any, _context: Context) -> message.Message:
        raise RemitError(reasons.ERROR_REASON_RUN_NOT_FOUND, "no such run")

    services.methods[f"{AGENTS}/GetRun"] = fail
    request = agent_service_pb2.GetRunRequest()
    answer = await web_call(services.client, f"{AGENTS}/GetRun", request)
    assert web_error(answer).reason == reasons.ERROR_REASON_RUN_NOT_FOUND


async def test_grpc_web_needs_the_key_as_well(refusing: Services) -> None:
    request = agent_service_pb2.GetRunRequest()
    answer = await web_call(anonymous(refusing), f"{AGENTS}/GetRun", request)
    assert web_error(answer).reason == reasons.ERROR_REASON_CREDENTIAL_MISSING
    assert answer.headers["access-control-allow-origin"] == OURS
    assert not refusing.world.seen


@pytest.mark.parametrize("path", [f"{AGENTS}/Nope", "/remit.api.cost.v1.CostService/ReserveBudget"])
async def test_grpc_web_reaches_public_methods_only(services: Services, path: str) -> None:
    answer = await web_call(services.client, path, agent_service_pb2.GetRunRequest())
    assert web_error(answer).reason == reasons.ERROR_REASON_METHOD_UNKNOWN
    assert answer.headers["access-control-allow-origin"] == OURS
    assert not services.world.checks
    assert not services.world.seen


def web_error(answer: Answer) -> RemitError:
    """The error of an answer without a body: headers alone say it."""
    details = answer.headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    assert int(answer.headers["grpc-status"]) == status.code
    error = RemitError.from_status(status)
    assert answer.body == b""
    return error
