"""Who may do what, asked through the gateway and past it: the answers are the same.

Past it means: straight at a service, with the edge's own certificate and a remit that policy gave
the edge for the same caller. Where the caller may not do what is asked, that is a remit for
something that the caller may do. Without certificate or remit nothing is answered at all.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
import pytest
from aiosmtpd.controller import Controller
from google.protobuf import json_format

from remit.api.gateway.v1 import authorization_pb2
from remit.local.state import StateDirectory
from remit.policy.schema import SHIPPED_POLICIES
from remit.rpc.calls import REMIT_KEY
from remit.rpc.contracts import AREAS, MethodContract, all_contracts
from remit.rpc.envoy import AUTHORIZATION_CHECK
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity, dns_name
from remit.rpc.parties import caller_label
from tests.integration.by_contract import answer_of, has_field, request_of, serialized
from tests.integration.clients import Metadata, bearer
from tests.integration.conftest import RunningMesh, started_mesh
from tests.ports import free_ports
from tests.tools.smtp_server import Mailbox
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.timeout(300)

POLICIES: Final = """
@id("auditors-read")
@reason("auditors read the policies")
permit (
  principal in Team::"orgs/local/teams/auditors", action == Action::"policies.read", resource
);

@id("auditors-read-only")
@reason("auditors read the record and nothing else")
forbid (principal in Team::"orgs/local/teams/auditors", action, resource)
unless {
  action in [
    Action::"audit.read", Action::"audit.checkpoint", Action::"spend.read", Action::"policies.read"
  ]
};

@id("viewers-look")
@reason("viewers look on")
forbid (principal in Team::"orgs/local/teams/viewers", action, resource)
unless { action in [Action::"agents.list", Action::"runs.read"] };

@id("mail-stays-home")
@reason("mail goes to our own domain alone")
forbid (principal, action == Action::"tools.call", resource == Tool::"tools/send_email")
unless {
  context has tool_call && ["acme.example"].containsAll(context.tool_call.facts.mail_domains)
};
"""

SUBJECTS: Final = ("admin", "member", "auditor", "viewer", "scoped")
TEAMS: Final = {"auditor": "auditors", "viewer": "viewers"}
SCOPES: Final = {"scoped": ["runs.read", "tools"]}
DENIED: Final = "PERMISSION_DENIED"
ALLOWED: Final = "OK"
MALFORMED: Final = "INVALID_TOOL_ARGUMENTS"

FIELDS: Final[dict[str, dict[str, Any]]] = {
    "CreateRun": {"agent": "agents/assistant", "task": "What is 17 * 23?"},
    "GenerateText": {
        "model": "models/builtin-rules",
        "messages": [{"role": "ROLE_USER", "text": "What is 17 * 23?"}],
    },
    "SetBudget": {
        "account": "orgs/local/users/member",
        "period": "PERIOD_DAY",
        "limitNanos": str(10**15),
    },
    "GrantToolAccess": {"principal": "orgs/local/users/granted", "tool": "tools/send_email"},
    "CreateApiKey": {
        "displayName": "another",
        "user": "orgs/local/users/another",
        "roles": ["member"],
    },
    "DisablePrincipal": {"name": "orgs/local/users/nobody"},
}
"""What a method is asked, where an empty message asks for nothing."""

# Which of SUBJECTS may use a method, in their order.
MAY_USE: Final = {
    "AgentCatalogService/ListAgents": "yynyn",
    "AgentService/ListRuns": "yynyy",
    "AgentService/CreateRun": "yynnn",
    "ConversationService/ListConversations": "yynnn",
    "AuditQueryService/ListEvents": "yyynn",
    "AuditQueryService/GetCheckpoint": "yyynn",
    "CostReportService/ListSpend": "yyynn",
    "CostReportService/ListBudgets": "yynnn",
    "CostReportService/SetBudget": "ynnnn",
    "PriceService/ListPrices": "yynnn",
    "PriceService/ListPriceChanges": "yynnn",
    "InferenceService/GenerateText": "yynnn",
    "ModelService/ListModels": "yynnn",
    "ApprovalService/ListApprovals": "yynnn",
    "GrantService/ListToolGrants": "ynnnn",
    "GrantService/GrantToolAccess": "ynnnn",
    "PolicyAdminService/CreateApiKey": "ynnnn",
    "PolicyAdminService/ListApiKeys": "ynnnn",
    "PolicySetService/ListPolicySets": "ynynn",
    "RateLimitService/ListRateLimits": "ynnnn",
    "PrincipalService/DisablePrincipal": "ynnnn",
    "ToolService/ListTools": "yynny",
}


def a_call(tool: str, **arguments: object) -> dict[str, Any]:
    return {"tool": f"tools/{tool}", "arguments": arguments}


def mail_to(domain: str) -> dict[str, Any]:
    return a_call("send_email", to=[f"eve@{domain}"], subject="s", body="b")


# Who calls a tool with what, and what is answered.
CALLS: Final = (
    ("admin", a_call("calculator", expression="2*3"), ALLOWED),
    ("member", a_call("calculator", expression="2*3"), ALLOWED),
    ("scoped", a_call("calculator", expression="2*3"), ALLOWED),
    ("auditor", a_call("calculator", expression="2*3"), DENIED),
    ("viewer", a_call("calculator", expression="2*3"), DENIED),
    ("member", a_call("read_file", path="here.txt"), ALLOWED),
    ("scoped", a_call("read_file", path="here.txt"), ALLOWED),
    ("member", a_call("read_file", path="../here.txt"), MALFORMED),
    ("admin", a_call("read_file", path="../here.txt"), MALFORMED),
    ("member", a_call("read_file", path="a/../../here.txt"), MALFORMED),
    ("member", a_call("read_file", path="..%2fhere.txt"), DENIED),
    ("member", a_call("read_file", path="%252e%252e/here.txt"), DENIED),
    ("member", a_call("read_file", path="..\\here.txt"), DENIED),
    ("member", a_call("read_file", path="\uff0e\uff0e/here.txt"), DENIED),
    ("member", a_call("read_file", path="here.txt\x00"), MALFORMED),
    ("member", a_call("write_file", path="there.txt", content="x"), ALLOWED),
    ("member", a_call("write_file", path="../there.txt", content="x"), MALFORMED),
    ("viewer", a_call("write_file", path="there.txt", content="x"), DENIED),
    ("member", mail_to("acme.example"), DENIED),  # of class execute, and not granted
    ("granted", mail_to("acme.example"), ALLOWED),
    ("granted", mail_to("elsewhere.example"), DENIED),
    ("granted", mail_to("acme.example.elsewhere.example"), DENIED),
    ("admin", mail_to("acme.example"), ALLOWED),
    ("admin", mail_to("elsewhere.example"), DENIED),
    ("member", a_call("no_such_tool"), "TOOL_NOT_FOUND"),
    ("viewer", a_call("no_such_tool"), DENIED),
)

CONTRACTS: Final = {
    contract.path.rpartition(".")[2]: contract
    for contract in all_contracts().values()
    if contract.is_public
}
CALL_TOOL: Final = CONTRACTS["ToolService/CallTool"]
FORGED: Final = {
    "x-remit-subject": "orgs/local/users/root",
    "x-remit-roles": "admin",
    "x-forwarded-user": "root",
    "x-forwarded-client-cert": "URI=spiffe://remit.internal/policy",
    "x-envoy-internal": "true",
}
"""What a client may send to look like somebody else."""


@dataclass
class Access:
    """The running mesh, keys of all subjects, and connections to all ends."""

    mesh: RunningMesh
    edge: grpc.aio.Channel
    services: dict[str, grpc.aio.Channel]
    keys: dict[str, str] = field(default_factory=dict)

    async def through(self, who: str, contract: MethodContract, fields: Mapping[str, Any]) -> Any:
        """The answer through the gateway."""
        return await called(self.edge, contract, fields, bearer(self.keys[who]))

    async def past(self, who: str, contract: MethodContract, fields: Mapping[str, Any]) -> Any:
        """The answer of the service itself, with the best remit that the edge can get."""
        token = await self.remit(who, contract) or await self.other_remit(who, contract)
        return await called(self.services[contract.area], contract, fields, ((REMIT_KEY, token),))

    async def remit(self, who: str, contract: MethodContract) -> str:
        """What policy gives the edge for a call; empty if it refuses it."""
        request = authorization_pb2.CheckRequest()
        http = request.attributes.request.http
        http.path = contract.path
        http.headers["authorization"] = f"Bearer {self.keys[who]}"
        check = self.services["policy"].unary_unary(
            AUTHORIZATION_CHECK,
            request_serializer=authorization_pb2.CheckRequest.SerializeToString,
            response_deserializer=authorization_pb2.CheckResponse.FromString,
        )
        answer = await check(request, timeout=10 * PATIENCE)
        headers = answer.ok_response.headers
        return next((h.header.value for h in headers if h.header.key == REMIT_KEY), "")

    async def other_remit(self, who: str, contract: MethodContract) -> str:
        """A remit of theirs for something that they may do."""
        for other in CONTRACTS.values():
            if other.permission != contract.permission and (token := await self.remit(who, other)):
                return token
        pytest.fail(f"{who} may do nothing at all")


async def called(
    channel: grpc.aio.Channel,
    contract: MethodContract,
    fields: Mapping[str, Any],
    metadata: tuple[tuple[str, str], ...],
) -> Any:
    """What a unary method answers. Raises RemitError."""
    own = {"request_id": str(uuid.uuid4())} if has_field(contract, "request_id") else {}
    request = json_format.ParseDict({**own, **fields}, request_of(contract)())
    method = channel.unary_unary(contract.path, serialized, answer_of(contract).FromString)
    try:
        return await method(request, metadata=metadata, timeout=30 * PATIENCE)
    except grpc.aio.AioRpcError as error:
        raise RemitError.from_rpc(error) from error


async def outcome(answer: Awaitable[Any]) -> str:
    """`OK`, or the reason of the refusal."""
    try:
        await answer
    except RemitError as error:
        return error.reason_name
    return ALLOWED


async def both(access: Access, who: str, path: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    """The outcomes through the gateway and past it."""
    contract = CONTRACTS[path]
    return (
        await outcome(access.through(who, contract, fields)),
        await outcome(access.past(who, contract, fields)),
    )


@pytest.fixture(scope="module")
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    """What arrives by mail, and the port of the server that takes it."""
    (port,), mailbox = free_ports(1), Mailbox()
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    yield mailbox, port
    server.stop()


@pytest.fixture(scope="module")
def mesh_of_table(
    tmp_path_factory: pytest.TempPathFactory, mailbox: tuple[Mailbox, int]
) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("policies")
    folder.chmod(0o755)
    (folder / "default.cedar").write_text((SHIPPED_POLICIES / "default.cedar").read_text("utf-8"))
    (folder / "table.cedar").write_text(POLICIES)
    environment = {
        "REMIT_POLICY_POLICIES_DIR": str(folder),
        "REMIT_TOOLS_SMTP_PORT": str(mailbox[1]),
        "REMIT_TOOLS_SMTP_SECURITY": "none",
        "REMIT_TOOLS_SMTP_FROM": "remit@acme.example",
    }
    with started_mesh(environment=environment) as mesh:
        yield mesh


@pytest.fixture
async def access(mesh_of_table: RunningMesh) -> AsyncIterator[Access]:
    """A connection to each end; the subjects' keys are made once."""
    identity = identity_of(mesh_of_table, "edge")
    async with contextlib.AsyncExitStack() as stack:
        edge = await stack.enter_async_context(grpc.aio.insecure_channel(mesh_of_table.address))
        services = {
            area: await stack.enter_async_context(to_service(mesh_of_table, area, identity))
            for area in AREAS
        }
        access = Access(mesh_of_table, edge, services, {"admin": mesh_of_table.api_key})
        for who in (*SUBJECTS[1:], "granted"):
            access.keys[who] = await a_key(access, who)
        # What a key of theirs may do, and what is there to be read.
        grant = CONTRACTS["GrantService/GrantToolAccess"]
        fields = FIELDS["GrantToolAccess"] | {"request_id": "grant"}
        await access.through("admin", grant, fields)
        file = a_call("write_file", path="here.txt", content="here") | {"request_id": "here"}
        for who in ("member", "scoped"):
            await access.through(who, CALL_TOOL, file)
        yield access


async def a_key(access: Access, who: str, role: str = "member") -> str:
    """A new key of theirs; what is made twice is the same."""
    fields = {
        "displayName": who,
        "user": f"orgs/local/users/{who}",
        "roles": [role],
        "team": f"orgs/local/teams/{TEAMS[who]}" if who in TEAMS else "",
        "scopes": SCOPES.get(who, []),
        "request_id": who,
    }
    made = await access.through("admin", CONTRACTS["PolicyAdminService/CreateApiKey"], fields)
    return str(made.secret)


def identity_of(mesh: RunningMesh, party: str) -> TlsIdentity:
    return TlsIdentity.load(StateDirectory.existing(mesh.state).tls_folder(party))


def to_service(mesh: RunningMesh, area: str, identity: TlsIdentity | None) -> grpc.aio.Channel:
    """A connection straight to a service, without a certificate of one's own if there is none."""
    authority = identity_of(mesh, "edge").ca
    credentials = (
        grpc.ssl_channel_credentials(root_certificates=authority)
        if identity is None
        else identity.channel_credentials()
    )
    options = [("grpc.ssl_target_name_override", dns_name(area))]
    return grpc.aio.secure_channel(str(mesh.topology.replicas[area][0]), credentials, options)


TABLE: Final = [
    (who, path, ALLOWED if may == "y" else DENIED)
    for path, row in MAY_USE.items()
    for who, may in zip(SUBJECTS, row, strict=True)
]


def test_the_table_is_of_the_size_that_was_promised() -> None:
    assert len(TABLE) + len(CALLS) >= 60


@pytest.mark.parametrize(("who", "path", "expected"), TABLE)
async def test_a_method_gives_the_same_answer_through_the_gateway_and_past_it(
    access: Access, who: str, path: str, expected: str
) -> None:
    fields = FIELDS.get(path.rpartition("/")[2], {})
    assert await both(access, who, path, fields) == (expected, expected)


@pytest.mark.parametrize(("who", "fields", "expected"), CALLS)
async def test_a_tool_call_gives_the_same_answer_through_the_gateway_and_past_it(
    access: Access, who: str, fields: Mapping[str, Any], expected: str
) -> None:
    assert await both(access, who, "ToolService/CallTool", fields) == (expected, expected)


async def test_no_mail_went_where_none_may_go(access: Access, mailbox: tuple[Mailbox, int]) -> None:
    allowed = mail_to("acme.example")
    assert await both(access, "admin", "ToolService/CallTool", allowed) == (ALLOWED, ALLOWED)
    assert set(mailbox[0].asked_recipients) == {"eve@acme.example"}


@pytest.mark.parametrize("path", CONTRACTS)
async def test_without_a_remit_a_service_answers_nothing(access: Access, path: str) -> None:
    contract = CONTRACTS[path]
    channel = access.services[contract.area]
    assert await refusal(channel, contract, ()) == "REMIT_INVALID"


@pytest.mark.parametrize("area", AREAS)
async def test_without_its_own_certificate_nobody_is_answered(access: Access, area: str) -> None:
    contract = next(one for one in CONTRACTS.values() if one.area == area)
    metadata = ((REMIT_KEY, await access.remit("admin", contract)),)
    async with to_service(access.mesh, area, None) as nobody:
        assert await refusal(nobody, contract, metadata) == "DEPENDENCY_UNAVAILABLE"
    other = next(party for party in AREAS if party not in {area, *labels(contract)})
    async with to_service(access.mesh, area, identity_of(access.mesh, other)) as service:
        assert await refusal(service, contract, metadata) == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize("path", CONTRACTS)
async def test_what_a_client_says_of_itself_changes_nothing(access: Access, path: str) -> None:
    contract = CONTRACTS[path]
    admins = await access.remit("admin", contract)
    claimed = (*FORGED.items(), (REMIT_KEY, admins))
    assert await refusal(access.edge, contract, claimed) == "CREDENTIAL_MISSING"
    if not await access.remit("viewer", contract):
        viewer = (*bearer(access.keys["viewer"]), *claimed)
        assert await refusal(access.edge, contract, viewer) == DENIED


def labels(contract: MethodContract) -> set[str]:
    return {caller_label(caller) for caller in contract.callers}


async def refusal(channel: grpc.aio.Channel, contract: MethodContract, metadata: Metadata) -> str:
    """The reason why a call of any kind is refused; it may not be answered."""
    types = serialized, answer_of(contract).FromString
    request, timeout = request_of(contract)(), 30 * PATIENCE
    try:
        if contract.stream is None:
            call = channel.unary_unary(contract.path, *types)
            await call(request, metadata=metadata, timeout=timeout)
        else:
            stream = channel.unary_stream(contract.path, *types)
            await anext(aiter(stream(request, metadata=metadata, timeout=timeout)))
    except grpc.aio.AioRpcError as error:
        return RemitError.from_rpc(error).reason_name
    return ALLOWED


async def revoked(access: Access) -> str:
    key = await a_key(access, "revoked", "admin")
    listed = await access.through("admin", CONTRACTS["PolicyAdminService/ListApiKeys"], {})
    name = next(one.name for one in listed.api_keys if one.user.endswith("/revoked"))
    await access.through("admin", CONTRACTS["PolicyAdminService/RevokeApiKey"], {"name": name})
    return key


async def expired(access: Access) -> str:
    end = datetime.now(UTC) + timedelta(seconds=2)
    fields = {
        "displayName": "brief",
        "user": "orgs/local/users/brief",
        "roles": ["admin"],
        "expireTime": end.isoformat().replace("+00:00", "Z"),
    }
    made = await access.through("admin", CONTRACTS["PolicyAdminService/CreateApiKey"], fields)
    await eventually(lambda: datetime.now(UTC) > end, 10)
    return str(made.secret)


async def disabled(access: Access) -> str:
    key = await a_key(access, "disabled", "admin")
    name = {"name": "orgs/local/users/disabled"}
    await access.through("admin", CONTRACTS["PrincipalService/DisablePrincipal"], name)
    return key


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (revoked, "CREDENTIAL_REVOKED"),
        (expired, "CREDENTIAL_INVALID"),
        (disabled, "PRINCIPAL_DISABLED"),
    ],
)
async def test_a_credential_that_counts_no_more_gets_no_remit_for_anything(
    access: Access, end: Callable[[Access], Awaitable[str]], reason: str
) -> None:
    access.keys["gone"] = await end(access)
    for contract in CONTRACTS.values():
        assert not await access.remit("gone", contract)
        assert await refusal(access.edge, contract, bearer(access.keys["gone"])) == reason
