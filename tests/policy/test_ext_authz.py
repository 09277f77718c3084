"""Envoy's authorisation service: which call enters, as whom, and what a refused client reads."""

from __future__ import annotations

import base64
import json

import pytest
from google.rpc import status_pb2
from structlog.testing import capture_logs

from remit.api.errors.v1 import error_reason_pb2
from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.api.gateway.v1 import authorization_pb2
from remit.api.options.v1 import options_pb2
from remit.policy.epochs import Policies
from remit.policy.ext_authz import refused
from remit.policy.rule_sets import PolicySource
from remit.postgres import Database
from remit.rpc.contracts import STANDARD_CONTRACTS, all_contracts
from remit.rpc.envoy import AuthorizationStub
from remit.rpc.errors import RemitError, reason_contract
from tests.monitoring.values import gained
from tests.policy.world import ALICE, CACHE_S, MovedClock, World

LIST_AGENTS = "/remit.api.agent.v1.AgentCatalogService/ListAgents"
CREATE_KEY = "/remit.api.policy.v1.PolicyAdminService/CreateApiKey"


async def check(
    world: World, path: str = LIST_AGENTS, *, peer: str = "", **headers: str
) -> authorization_pb2.CheckResponse:
    request = authorization_pb2.CheckRequest()
    http = request.attributes.request.http
    http.path = path
    request.attributes.source.address.socket_address.address = peer
    http.headers["content-type"] = "application/grpc"
    for name, value in headers.items():
        http.headers[name.replace("_", "-")] = value
    edge = world.mesh.as_caller(options_pb2.CALLER_PUBLIC)
    stub = edge.stub(AuthorizationStub)
    response: authorization_pb2.CheckResponse = await stub.Check(request)
    return response


def error_of(response: authorization_pb2.CheckResponse) -> RemitError:
    """Read a refusal as a gRPC client does: from the headers that Envoy passes on."""
    assert response.WhichOneof("http_response") == "denied_response"
    headers = headers_of(response)
    packed = headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4)))
    assert headers["grpc-status"] == str(status.code) == str(response.status.code)
    return RemitError.from_status(status)


def headers_of(response: authorization_pb2.CheckResponse) -> dict[str, str]:
    options = (
        response.denied_response.headers
        if response.HasField("denied_response")
        else response.ok_response.headers
    )
    return {option.header.key: option.header.value for option in options}


@pytest.mark.parametrize("header", ["authorization", "x_api_key"])
async def test_a_key_is_exchanged_for_a_remit_and_removed(world: World, header: str) -> None:
    secret = await world.admin_secret()
    value = f"Bearer {secret}" if header == "authorization" else secret
    response = await check(world, **{header: value, "remit_token": "forged"})
    assert response.status.code == 0
    token = headers_of(response)["remit-token"]
    remit = await world.verifier.verify(
        token, audience=options_pb2.CALLER_AGENT, presenter=options_pb2.CALLER_PUBLIC
    )
    assert (remit.subject, remit.roles) == (ALICE, frozenset({"admin"}))
    assert set(response.ok_response.headers_to_remove) == {"authorization", "x-api-key"}
    (option,) = response.ok_response.headers
    assert option.append_action == option.HEADER_APPEND_ACTION_OVERWRITE_IF_EXISTS_OR_ADD


BAD_CREDENTIALS: list[tuple[dict[str, str], str]] = [
    ({}, "CREDENTIAL_MISSING"),
    ({"authorization": ""}, "CREDENTIAL_MISSING"),
    ({"authorization": "Basic YWxpY2U6eA=="}, "CREDENTIAL_INVALID"),
    ({"authorization": "Bearer"}, "CREDENTIAL_INVALID"),
    ({"authorization": "Bearer "}, "CREDENTIAL_INVALID"),
    ({"authorization": "Bearer nonsense"}, "CREDENTIAL_INVALID"),
    ({"authorization": "Bearer x", "x_api_key": "y"}, "CREDENTIAL_INVALID"),
    ({"x_api_key": "nonsense"}, "CREDENTIAL_INVALID"),
    ({"remit_token": "forged"}, "CREDENTIAL_MISSING"),
    ({"x_forwarded_user": ALICE, "x_user": ALICE}, "CREDENTIAL_MISSING"),
]


async def test_without_a_good_key_nothing_enters(world: World) -> None:
    for headers, reason in BAD_CREDENTIALS:
        error = error_of(await check(world, **headers))
        assert (headers, error.reason_name) == (headers, reason)
        assert error.next_step


async def test_a_remit_is_no_credential(world: World) -> None:
    token = world.client_token(roles=("admin",))
    assert error_of(await check(world, authorization=f"Bearer {token}")).reason_name == (
        "CREDENTIAL_INVALID"
    )


NOT_FOR_CLIENTS = [
    ("/remit.api.agent.v1.AgentService/Fly", "METHOD_UNKNOWN"),
    ("/", "METHOD_UNKNOWN"),
    ("", "METHOD_UNKNOWN"),
    ("/remit.api.policy.v1.PolicyService/IssueRemit", "CALLER_NOT_ALLOWED"),
    ("/remit.api.cost.v1.CostService/ReserveBudget", "CALLER_NOT_ALLOWED"),
    ("/envoy.service.auth.v3.Authorization/Check", "CALLER_NOT_ALLOWED"),
]


async def test_what_is_not_for_clients_does_not_enter(world: World) -> None:
    secret = await world.admin_secret()
    for path, reason in NOT_FOR_CLIENTS:
        error = error_of(await check(world, path, authorization=f"Bearer {secret}"))
        assert (path, error.reason_name) == (path, reason)


async def test_every_method_enters_for_an_admin_exactly_if_it_is_public(world: World) -> None:
    secret = await world.admin_secret()
    for path, contract in all_contracts().items():
        response = await check(world, path, authorization=f"Bearer {secret}")
        assert (path, response.status.code == 0) == (path, contract.is_public)


async def test_health_and_reflection_enter_without_a_key_and_without_a_remit(
    world: World,
) -> None:
    open_to_all = [p for p, c in STANDARD_CONTRACTS.items() if c.auth == options_pb2.AUTH_NONE]
    assert open_to_all
    for path in open_to_all:
        response = await check(world, path, remit_token="forged")
        assert response.status.code == 0
        assert headers_of(response) == {}
        assert "remit-token" in response.ok_response.headers_to_remove


async def test_a_member_is_told_what_is_missing(world: World) -> None:
    secret = await member_secret(world)
    assert (await check(world, authorization=f"Bearer {secret}")).status.code == 0
    error = error_of(await check(world, CREATE_KEY, authorization=f"Bearer {secret}"))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert error.metadata["permission"] == "keys.create"


async def test_a_query_string_changes_no_path(world: World) -> None:
    secret = await world.admin_secret()
    response = await check(world, f"{LIST_AGENTS}?x=1", authorization=f"Bearer {secret}")
    assert response.status.code == 0


async def test_new_policies_hold_at_the_edge_within_the_cache_s_time(
    world: World, clock: MovedClock
) -> None:
    secret = await world.admin_secret()
    assert (await check(world, authorization=f"Bearer {secret}")).status.code == 0
    source = world.policies.book.source
    stop = '@id("stop") forbid(principal, action, resource);'
    await Policies.open(
        world.sets, PolicySource({**source.files, "stop.cedar": stop}, source.schema), world.clock
    )
    clock.move(CACHE_S)
    error = error_of(await check(world, authorization=f"Bearer {secret}"))
    assert error.metadata["policy_ids"] == "stop"


async def test_what_no_policy_could_decide_at_the_edge_is_refused_and_counted(
    world: World, clock: MovedClock
) -> None:
    secret = await world.admin_secret()
    source = world.policies.book.source
    fails = "9223372036854775807 + 1 > 0"
    broken = f'@id("broken") forbid(principal, action, resource) when {{ {fails} }};'
    await Policies.open(
        world.sets,
        PolicySource({**source.files, "broken.cedar": broken}, source.schema),
        world.clock,
    )
    clock.move(CACHE_S)
    undecided = gained("remit_policy_decisions_total", kind="other", decision="UNDECIDED")
    with capture_logs() as logs:
        error = error_of(await check(world, authorization=f"Bearer {secret}"))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert undecided() == 1
    (failure,) = [line for line in logs if line["event"] == "decision_failed"]
    assert (failure["policies"], failure["action"]) == (["broken"], "agents.list")


async def test_without_its_database_the_edge_admits_nobody_and_says_why(
    world: World, policy_database: Database
) -> None:
    secret = await world.admin_secret()
    await policy_database._pool.close()
    response = await check(world, authorization=f"Bearer {secret}")
    assert error_of(response).reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert response.denied_response.status.code == 503
    assert headers_of(response)["retry-after"] == "1"


async def test_only_the_edge_may_ask(world: World) -> None:
    agent = world.mesh.as_caller(options_pb2.CALLER_AGENT)
    stub = agent.stub(AuthorizationStub)
    with pytest.raises(RemitError) as caught:
        await stub.Check(authorization_pb2.CheckRequest())
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


async def test_a_client_of_plain_http_reads_json(world: World) -> None:
    response = await check(world, content_type="application/json")
    assert response.denied_response.status.code == 401
    body = json.loads(response.denied_response.body)
    assert body["code"] == 16
    assert body["details"][0]["reason"] == "CREDENTIAL_MISSING"
    assert headers_of(response)["content-type"] == "application/json"


@pytest.mark.parametrize(
    "reason", [r for r in ErrorReason.values() if r != error_reason_pb2.ERROR_REASON_UNSPECIFIED]
)
def test_every_reason_can_be_told_to_a_client(reason: ErrorReason.ValueType) -> None:
    error = RemitError(reason, "fünf Grüße\nand a second line %41")
    response = refused(error, is_grpc=True)
    assert error_of(response).reason == reason
    assert response.status.code == reason_contract(reason).code.value[0]
    assert headers_of(response)["grpc-message"].isascii()
    assert "\n" not in headers_of(response)["grpc-message"]
    assert response.denied_response.status.code >= 400


async def member_secret(world: World) -> str:
    key = world.pepper.derive(b"member")
    await world.admin_secret()
    await world.database.execute(
        "INSERT INTO api_keys (key_id, org, subject, display_name, roles, digest, pepper_id)"
        " VALUES ($1, 'orgs/acme', $2, 'm', '{member}', $3, $4)",
        key.key_id,
        ALICE,
        world.pepper.digest(key),
        world.pepper.fingerprint,
    )
    return key.text
