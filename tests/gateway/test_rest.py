"""REST at the edge: every RPC has its verb and path, and every fault a JSON answer."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format, message

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.gateway.transcoder import MAX_BODY_BYTES
from remit.policy.ext_authz import EdgeAuthorization
from remit.rpc import metrics
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import MethodContract, all_contracts
from remit.rpc.errors import RemitError, reason_contract
from remit.rpc.rest import BODY_FIELD_NUMBER
from tests.contracts.test_method_contracts import METHODS
from tests.gateway.services import Context, Services, running_services

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = {path: c for path, c in all_contracts().items() if c.is_public}
AGENTS = "/remit.api.agent.v1.AgentService"
RUN = "/v1/runs/01980000-0000-7000-8000-000000000000"
VARIABLE = re.compile(r"\{([a-z_.]+)(?:=([^}]*))?\}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    async with running_services(tmp_path_factory.mktemp("rest")) as made:
        yield made


@pytest.fixture
def services(running: Services) -> Services:
    running.forget()
    return running


@dataclass(frozen=True)
class RestCall:
    """A call of one RPC as its annotation asks for it."""

    verb: str
    path: str
    body: Any
    bound: dict[str, str] = field(default_factory=dict)


def rest_call(contract: MethodContract) -> RestCall:
    """Every `*` of the path becomes a word; a body is an empty object."""
    assert contract.http is not None
    bound: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        pattern = match[2] or "*"
        bound[match[1]] = pattern.replace("**", "some/file.txt").replace("*", "word")
        return bound[match[1]]

    path = VARIABLE.sub(fill, contract.http.path)
    return RestCall(contract.http.verb, path, {} if contract.http.body else None, bound)


@pytest.mark.parametrize("contract", PUBLIC.values(), ids=lambda c: c.path)
async def test_every_public_rpc_has_its_verb_and_path(
    services: Services, contract: MethodContract
) -> None:
    call = rest_call(contract)
    answer = await services.client.call(call.verb, call.path, call.body)
    assert answer.status == 200, answer
    (seen,) = services.world.seen
    assert (seen.path, seen.area) == (contract.path, contract.area)
    assert seen.peer == [b"spiffe://remit.internal/edge"]
    for name, value in call.bound.items():
        assert at(services.requests[0], name) == value
    if contract.stream is None:
        assert set(answer.json()) == printed_fields(contract)


WITH_VARIABLES = {path: c for path, c in PUBLIC.items() if rest_call(c).bound}


@pytest.mark.parametrize("contract", WITH_VARIABLES.values(), ids=lambda c: c.path)
async def test_a_query_cannot_name_another_than_the_path(
    services: Services, contract: MethodContract
) -> None:
    call = rest_call(contract)
    for bound in call.bound:
        camel = re.sub("_(.)", lambda m: m[1].upper(), bound)
        for name in {bound, camel, f"%{ord(bound[0]):x}{bound[1:]}"}:
            for body in (call.body, None):
                path = f"{call.path}?{name}=another"
                answer = await services.client.call(call.verb, path, body)
                assert answer.status == 400, answer
                assert answer.error().violations[0].field in {bound, "url"}
    assert not services.requests


def at(request: message.Message, path: str) -> Any:
    value: Any = request
    for part in path.split("."):
        value = getattr(value, part)
    return value


def printed_fields(contract: MethodContract) -> set[str]:
    """Fields of an empty answer that are there all the same: what has no presence."""
    fields = METHODS[contract.path].output_type.fields
    return {f.camelcase_name for f in fields if f.is_repeated or not f.has_presence}


async def test_every_rpc_is_authorised_by_its_own_path(services: Services) -> None:
    for contract in PUBLIC.values():
        call = rest_call(contract)
        await services.client.call(call.verb, call.path, call.body)
    asked = [check.attributes.request.http.path for check in services.world.checks]
    assert asked == list(PUBLIC)
    assert len(services.world.seen) == len(PUBLIC)


async def test_a_request_arrives_as_it_was_meant(services: Services) -> None:
    body: dict[str, Any] = {
        "agent": "agents/assistant",
        "task": "Zähle \u2028 bis drei 🦉",
        "context": {"a": "b"},
        "limits": {"maxSteps": 3, "maxDuration": "1.500s", "maxCostNanos": "9007199254740993"},
        "requestId": "r-1",
    }
    answer = await services.client.post("/v1/runs", body)
    assert answer.status == 200
    assert json_format.MessageToDict(services.requests[0]) == body


async def test_an_answer_is_camel_case_with_its_zeroes(services: Services) -> None:
    async def get(_request: Any, _context: Context) -> message.Message:
        run = run_pb2.Run(name="runs/1", cost_nanos=2**60, result="Grüße")
        run.limits.max_steps = 3
        return agent_service_pb2.GetRunResponse(run=run)

    services.methods[f"{AGENTS}/GetRun"] = get
    run = (await services.client.get(RUN)).json()["run"]
    assert run["costNanos"] == str(2**60)  # 64 bits are a string, or JavaScript rounds them
    assert run["result"] == "Grüße"
    assert run["limits"] == {"maxSteps": 3}, "an absent limit is no limit of zero"
    assert run["state"] == "RUN_STATE_UNSPECIFIED"
    assert run["lastSequence"] == "0"
    assert "error" not in run, "what has presence is absent"


async def test_a_query_is_read_by_type_and_unescaped(services: Services) -> None:
    await services.client.get("/v1/runs?pageSize=7&agent=agents%2Fa+b&state=RUN_STATE_FAILED")
    assert services.requests[0] == agent_service_pb2.ListRunsRequest(
        page_size=7, agent="agents/a b", state=run_pb2.RUN_STATE_FAILED
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"grpc-encoding": "bogus"},
        {"grpc-encoding": "gzip"},
        {"x-trace-bin": "%%%"},
        {"X-Trace-Bin": "!"},
        {"cookie": "a=b"},
        {"x-large": "x" * 9_000},
    ],
    ids=str,
)
async def test_headers_that_nobody_reads_do_no_harm(
    services: Services, headers: dict[str, str]
) -> None:
    answer = await services.client.call("POST", "/v1/runs", {"task": "t"}, headers=headers)
    assert answer.status == 200, answer
    (seen,) = services.world.seen
    passed = {key for key, _ in seen.metadata}
    assert not {"cookie", "x-trace-bin"} & passed
    assert services.requests == [agent_service_pb2.CreateRunRequest(task="t")]


async def test_grpc_may_compress(services: Services) -> None:
    async with grpc.aio.insecure_channel(str(services.world.topology.edge)) as channel:
        create: Any = channel.unary_unary(f"{AGENTS}/CreateRun")
        request = agent_service_pb2.CreateRunRequest(task="t" * 5_000)
        data = request.SerializeToString()
        await create(data, timeout=10, compression=grpc.Compression.Gzip)
    assert services.requests == [request]


async def test_no_answer_is_kept_on_the_way(services: Services) -> None:
    for path in (RUN, "/v1/nothing", "/v1/runs?nope=1", f"{RUN}/events"):
        answer = await services.client.get(path)
        assert answer.headers["cache-control"] == "no-store", path
        assert "vary" not in answer.headers, "no page may call, so none is told apart"


@pytest.mark.parametrize("name", ["Q&A: #1?.txt", "a+b@c=d;e$f!.txt", "50%.txt", "n/Grüße x.txt"])
async def test_an_artifact_is_found_whatever_it_is_called(services: Services, name: str) -> None:
    answer = await services.client.get(f"{RUN}/artifacts/{quote(name)}")
    assert answer.status == 200, answer
    assert at(services.requests[0], "artifact") == name


async def test_a_colon_in_a_name_may_stand_as_it_is(services: Services) -> None:
    await services.client.get(f"{RUN}/artifacts/a:b.txt")
    assert at(services.requests[0], "artifact") == "a:b.txt"


async def test_an_answer_as_large_as_a_contract_allows_arrives(services: Services) -> None:
    content = b"\x00" * (4 * 1024 * 1024 - 1024)

    async def get(_request: Any, _context: Context) -> message.Message:
        return agent_service_pb2.GetArtifactResponse(content=content)

    services.methods[f"{AGENTS}/GetArtifact"] = get
    answer = await services.client.get(f"{RUN}/artifacts/zeroes.bin")
    assert answer.status == 200
    assert len(answer.json()["content"]) == -(-len(content) // 3) * 4


@dataclass(frozen=True)
class Fault:
    """One wrong request and its answer."""

    verb: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 400
    reason: reasons.ErrorReason.ValueType = reasons.ERROR_REASON_INVALID_REQUEST
    names: str = ""


def post(body: Any, names: str, path: str = "/v1/runs", **headers: str) -> Fault:
    return Fault(
        "POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()}, names=names
    )


def nothing(verb: str, path: str) -> Fault:
    body: Any = {} if verb in {"POST", "PUT", "PATCH"} else None
    return Fault(verb, path, body, status=404, reason=reasons.ERROR_REASON_METHOD_UNKNOWN)


def too_long(path: str, **headers: str) -> Fault:
    reason = reasons.ERROR_REASON_TOO_LARGE
    return Fault("GET", path, None, headers, status=431, reason=reason, names="12 KiB")


FAULTS = {
    "no JSON": post(b'{"agent": ', "body"),
    "no UTF-8": post(b'{"task": "\xff"}', "body"),
    "no object": post([], "body"),
    "null": post(b"null", "body"),
    "two documents": post(b"{}{}", "body"),
    "one key twice": post(b'{"task": "a", "task": "b"}', "body"),
    "one field by both names": post({"request_id": "a", "requestId": "b"}, "requestId"),
    "not a number": post(b'{"limits": {"maxSteps": NaN}}', "body"),
    "a number of 5,000 digits": post(b'{"limits": {"maxSteps": ' + b"9" * 5000 + b"}}", "body"),
    "nested 100,000 deep": post(b"[" * 100_000, "body"),
    "an unknown field": post({"limit": {"maxSteps": 3}}, "limit"),
    "an unknown field inside": post({"limits": {"maxCost": 3}}, "limits.maxCost"),
    "a number for a string": post({"agent": 3}, "agent"),
    "a word for a number": post({"limits": {"maxSteps": "many"}}, "limits.maxSteps"),
    "a number too large": post({"limits": {"maxSteps": 2**40}}, "limits.maxSteps"),
    "a list for an object": post({"limits": []}, "limits"),
    "half a surrogate pair for a name": post(b'{"\\ud800": 1}', "?"),
    "no UTF-8 in the path": Fault("GET", "/v1/agents/%FF", names="UTF-8"),
    "no UTF-8 in the path of a stream": Fault("GET", "/v1/runs/%FF/events", names="UTF-8"),
    "no UTF-8 in the path before a body": post({}, "UTF-8", "/v1/runs/%FF:cancel"),
    "no UTF-8 in the query": Fault("GET", "/v1/runs?agent=%FF", names="UTF-8"),
    "half a surrogate pair": post(b'{"task": "\\ud800"}', "task"),
    "another content type": post({}, "content-type", content_type="text/plain"),
    "a form": post({}, "content-type", content_type="application/x-www-form-urlencoded"),
    "another charset": post({}, "content-type", content_type="application/json; charset=utf-16"),
    "a query beside the body": post({}, "agent", "/v1/runs?agent=agents/a"),
    "another run in the body": post({"name": "runs/other"}, "name", f"{RUN}:cancel"),
    "a body where there is none": Fault("GET", "/v1/runs", {"pageSize": 1}, names="body"),
    "a body for the path": Fault("GET", RUN, {"name": "runs/other"}, names="body"),
    "a body for a stream": Fault("GET", f"{RUN}/events", {"afterSequence": "7"}, names="body"),
    "a form where there is no body": Fault(
        "GET",
        "/v1/runs",
        b"pageSize=1",
        {"content-type": "application/x-www-form-urlencoded"},
        names="body",
    ),
    "a body in the query": Fault("GET", "/v1/runs?httpBody.data=eA==", names="http_body"),
    "an unknown query parameter": Fault("GET", "/v1/runs?nope=3", names="nope"),
    "a word for a number in the query": Fault("GET", "/v1/runs?pageSize=x", names="page_size"),
    "a slash that hides": Fault("GET", f"{RUN}/artifacts/a%2Fb", names="%2F"),
    "a zero byte that hides": Fault("GET", f"{RUN}/artifacts/a%00b", names="%00"),
    "a zero byte": Fault("GET", f"{RUN}/artifacts/a\0b", names="url"),
    "a URL too large": too_long(f"/v1/runs?agent={'a' * 13_000}"),
    "a URL too large with what the edge adds": too_long(f"/v1/runs?agent={'a' * 12_000}"),
    "a URL of 64 KiB": too_long(f"/v1/runs?agent={'a' * 65_536}"),
    "a header too large": too_long("/v1/runs", authorization=f"Bearer {'k' * 20_000}"),
    "another verb": nothing("DELETE", RUN),
    "another verb with a body": nothing("PUT", "/v1/runs"),
    "another path": nothing("GET", "/v1/nothing"),
    "another version": nothing("GET", "/v2/runs"),
    "no path": nothing("GET", "/"),
    "a custom verb that is none": nothing("POST", f"{RUN}:explode"),
    "the path of the RPC without gRPC": nothing("POST", f"{AGENTS}/CreateRun"),
    "the path of a mesh's RPC": nothing("POST", "/remit.api.cost.v1.CostService/ReserveBudget"),
    "too large for the gateway": Fault(
        "POST",
        "/v1/runs",
        b'{"task": "' + b"x" * MAX_BODY_BYTES + b'"}',
        status=413,
        reason=reasons.ERROR_REASON_TOO_LARGE,
    ),
    "too large for the contract": Fault(
        "POST",
        "/v1/runs",
        b'{"task": "' + b"x" * 262_144 + b'"}',
        reason=reasons.ERROR_REASON_TOO_LARGE,
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_is_answered_with_its_name_and_does_nothing(
    services: Services, fault: Fault
) -> None:
    answer = await services.client.call(fault.verb, fault.path, fault.body, headers=fault.headers)
    assert answer.status == fault.status, answer
    error = answer.error()
    assert error.reason == fault.reason
    assert not services.requests
    assert all(v.field and v.description for v in error.violations)
    told = [f"{v.field} {v.description}" for v in error.violations] or [error.message]
    assert any(fault.names in text for text in told)


@pytest.mark.parametrize("body", [None, {"task": "mine"}], ids=["none", "one"])
async def test_a_body_in_the_query_is_none(services: Services, body: Any) -> None:
    theirs = base64.b64encode(b'{"agent": "agents/theirs"}').decode()
    query = f"http_body.content_type=application%2Fjson&http_body.data={quote(theirs, safe='')}"
    answer = await services.client.call("POST", f"/v1/runs?{query}", body)
    assert answer.status == 400, answer
    assert not services.requests


async def test_every_unknown_field_is_named_at_once(services: Services) -> None:
    answer = await services.client.post("/v1/runs", {"a": 1, "limits": {"b": 1}, "c": 1})
    assert [v.field for v in answer.error().violations] == ["a", "limits.b", "c"]


async def test_a_fault_tells_no_value(services: Services) -> None:
    answer = await services.client.post("/v1/runs", {"context": {"k": 3}, "task": ["top secret"]})
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    "reason", sorted(reasons.ErrorReason.values())[1:], ids=reasons.ErrorReason.Name
)
async def test_an_error_of_a_service_is_json_with_its_status(
    services: Services, reason: reasons.ErrorReason.ValueType
) -> None:
    retry_after_s = 2.5 if reason_contract(reason).retryable else None
    raised = RemitError(
        reason, 'it "failed" at ½', metadata={"id": "x"}, retry_after_s=retry_after_s
    )

    async def fail(_request: Any, _context: Context) -> message.Message:
        raise raised

    services.methods[f"{AGENTS}/GetRun"] = fail
    answer = await services.client.get(RUN)
    error = answer.error()
    assert answer.status == HTTP[raised.code]
    assert (error.reason, error.message, error.metadata) == (reason, raised.message, {"id": "x"})
    assert error.retry_after_s == raised.retry_after_s
    assert answer.headers.get("retry-after") == ("3" if raised.retryable else None)


# google/rpc/code.proto, written out: the table of the code is what is tested.
HTTP = {
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}


async def test_a_refusal_of_policy_is_json(services: Services) -> None:
    nobody: Any = SimpleNamespace(
        session=None, deny=lambda *_: None
    )  # no key is looked up, no policy asked
    real = EdgeAuthorization(nobody, nobody, nobody, SystemClock())
    services.world.judge = real.Check
    answer = await services.client.get(RUN, authorization="Basic abc")
    assert answer.status == 401
    assert answer.error().reason == reasons.ERROR_REASON_CREDENTIAL_INVALID
    assert not services.requests


async def test_the_callers_deadline_is_kept(services: Services) -> None:
    async def hang(_request: Any, _context: Context) -> message.Message:
        await asyncio.Event().wait()
        raise AssertionError

    services.methods[f"{AGENTS}/GetRun"] = hang
    # So long that a busy service still ends the call before gRPC does, which says less.
    answer = await services.client.get(RUN, grpc_timeout="2S")
    assert answer.status == 504
    assert answer.error().reason == reasons.ERROR_REASON_DEADLINE_EXCEEDED


async def test_a_body_that_never_comes_ends_with_the_deadline(services: Services) -> None:
    headers = {"content-length": "100", "grpc-timeout": "300m"}
    answer = await services.client.call("POST", "/v1/runs", b'{"task": "', headers=headers)
    assert answer.status == 408
    assert answer.error().reason == reasons.ERROR_REASON_DEADLINE_EXCEEDED
    assert not services.requests


async def test_a_client_cannot_say_who_it_is(services: Services) -> None:
    forged = {
        "remit-token": "forged",
        "Remit-Token": "forged",
        "x-remit-user": "orgs/acme/users/root",
        "X-REMIT-ORG": "orgs/acme",
        "x-forwarded-client-cert": "URI=spiffe://remit.internal/tools",
        "x-envoy-original-method": "POST",
        "x-envoy-original-path": "/v1/apiKeys",
    }
    answer = await services.client.call("GET", RUN, headers=forged)
    assert answer.status == 200
    headers = services.world.checks[0].attributes.request.http.headers
    assert headers["x-envoy-original-method"] == "GET"
    assert headers["x-envoy-original-path"] == RUN
    assert not {"remit-token", "x-remit-user", "x-remit-org", "x-forwarded-client-cert"} & set(
        headers
    )
    metadata = services.world.seen[0].metadata
    assert [value for key, value in metadata if key == "remit-token"] == ["remit-of-alice"]
    assert not {key for key, _ in metadata if key.startswith(("x-remit-", "x-forwarded-client"))}


async def test_no_web_page_may_call_unless_the_topology_says_so(services: Services) -> None:
    headers = {"origin": "https://console.example.com", "access-control-request-method": "POST"}
    for verb in ("OPTIONS", "GET"):
        answer = await services.client.call(verb, "/v1/runs", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_grpc_cannot_pass_for_rest(services: Services) -> None:
    """A gRPC client that claims to be transcoded still gets gRPC, and its unknown field nothing."""
    request = agent_service_pb2.CreateRunRequest(task="mine")
    smuggled = request.SerializeToString() + _length_delimited(
        BODY_FIELD_NUMBER, _length_delimited(2, b'{"task": "theirs"}')
    )
    async with grpc.aio.insecure_channel(str(services.world.topology.edge)) as channel:
        create: Any = channel.unary_unary(f"{AGENTS}/CreateRun")
        await create(smuggled, metadata=[("x-envoy-original-method", "POST")], timeout=10)
    (received,) = services.requests
    assert isinstance(received, agent_service_pb2.CreateRunRequest)
    assert received.task == "mine"


async def test_bytes_that_are_no_message_are_refused_and_counted(services: Services) -> None:
    refused = metrics.RPC_REQUESTS.labels(f"{AGENTS}/CreateRun", "INVALID_ARGUMENT")._value
    before = refused.get()
    async with grpc.aio.insecure_channel(str(services.world.topology.edge)) as channel:
        create: Any = channel.unary_unary(f"{AGENTS}/CreateRun")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(b"\xff\xff\xff", timeout=10)
    assert RemitError.from_rpc(caught.value).reason == reasons.ERROR_REASON_INVALID_REQUEST
    await services.client.post("/v1/runs", {"nope": 1})
    assert refused.get() == before + 2
    assert not services.requests


def _length_delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


async def test_grpc_errors_have_no_http_extras(services: Services) -> None:
    async def fail(_request: Any, _context: Context) -> message.Message:
        raise RemitError(reasons.ERROR_REASON_OVERLOADED, "full")

    services.methods[f"{AGENTS}/GetRun"] = fail
    async with grpc.aio.insecure_channel(str(services.world.topology.edge)) as channel:
        get: Any = channel.unary_unary(f"{AGENTS}/GetRun")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(b"", timeout=10)
    assert RemitError.from_rpc(caught.value).reason == reasons.ERROR_REASON_OVERLOADED
    keys = {key for key, _ in caught.value.trailing_metadata() or ()}
    assert "grpc-status-details-bin" in keys
    assert "retry-after" not in keys


async def test_what_is_down_is_said_in_json(tmp_path: Path) -> None:
    async with running_services(tmp_path) as services:
        await services.world.upstreams["audit", 0].stop()
        audit = await services.client.get("/v1/audit/checkpoint")
        await services.world.upstreams["policy", 0].stop()
        policy = await services.client.get(RUN)
    for answer, word in ((audit, "replica"), (policy, "policy")):
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.error().reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        assert word in answer.error().message
