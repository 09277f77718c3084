"""Every public RPC whose contract says that the log records it is recorded, with its own action.

The contracts say which they are: an RPC that is new and is not called here fails the test.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import asyncpg
import grpc
import pytest
from google.protobuf import message

from remit.api.agent.v1 import conversation_service_pb2, conversation_service_pb2_grpc, run_pb2
from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import approval_service_pb2, approval_service_pb2_grpc
from remit.policy.schema import SHIPPED_POLICIES
from remit.rpc.contracts import MethodContract, all_contracts
from tests.integration.approving import approving_mesh, waiting_run
from tests.integration.by_contract import answer_of, has_field, request_of, serialized
from tests.integration.clients import a_run, bearer, channel, events_of, followed, result_of
from tests.integration.conftest import RunningMesh
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.timeout(300)

KINDS: Final = {
    options_pb2.AUDIT_CLASS_ADMIN: event_pb2.EVENT_KIND_ADMIN,
    options_pb2.AUDIT_CLASS_READ: event_pb2.EVENT_KIND_READ,
}
RECORDED: Final = {
    contract.path.rpartition("/")[2]: contract
    for contract in all_contracts().values()
    if contract.is_public and contract.audit in KINDS
}
OWN_ACTIONS: Final = {
    "ForkRun": "runs.fork",
    "RollbackPolicySet": "policies.rollback",
    "SimulatePolicy": "policies.simulate",
    "StartPolicyShadow": "policies.shadow",
    "StopPolicyShadow": "policies.stop_shadow",
}
"""Of RPCs that share their permission with another one; of the rest it is the permission."""
BOB: Final = "orgs/local/users/bob"
ITEM: Final = "tools/calculator"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with approving_mesh(tmp_path_factory.mktemp("policies")) as mesh:
        yield mesh


@dataclasses.dataclass
class World:
    """An administrator before the front door, and a member who starts runs."""

    mesh: RunningMesh
    edge: grpc.aio.Channel
    bobs_key: str
    done: set[str] = dataclasses.field(default_factory=set)

    async def call(self, method: str, fields: Mapping[str, Any]) -> Any:
        """The last message that a call answers."""
        contract = RECORDED[method]
        self.done.add(method)
        metadata, timeout_s = bearer(self.mesh.api_key), 60 * PATIENCE
        if contract.stream is None:
            unary = self.edge.unary_unary(contract.path, serialized, answer_of(contract).FromString)
            return await unary(_request(contract, fields), metadata=metadata, timeout=timeout_s)
        stream = self.edge.unary_stream(contract.path, serialized, answer_of(contract).FromString)
        calling = stream(_request(contract, fields), metadata=metadata, timeout=timeout_s)
        return [answer async for answer in calling][-1]

    async def recorded(self, contract: MethodContract) -> list[event_pb2.Event]:
        """The newest entries of the kind that the contract promises, with the RPC's action."""
        method = contract.path.rpartition("/")[2]
        audit = audit_query_service_pb2_grpc.AuditQueryServiceStub(self.edge)
        request = audit_query_service_pb2.ListEventsRequest(
            kind=KINDS[contract.audit],
            action=OWN_ACTIONS.get(method, contract.permission),
            page_size=200,
        )
        found = await audit.ListEvents(
            request, metadata=bearer(self.mesh.api_key), timeout=60 * PATIENCE
        )
        return [logged.event for logged in found.events]

    async def is_recorded(self, method: str, fields: Mapping[str, Any]) -> Any:
        """Call it; assert that it left an entry of its subject's; return what it answered."""
        contract = RECORDED[method]
        known = {event.event_id for event in await self.recorded(contract)}
        answer = await self.call(method, fields)
        new = [event for event in await self.recorded(contract) if event.event_id not in known]
        # Looking leaves an entry of its own, which another reading RPC may share its action with.
        looks = [event for event in new if "ListEvents" in event.detail_json] if new else []
        own = new if method == "ListEvents" else [event for event in new if event not in looks]
        assert own, f"{method} left no entry of its own"
        assert {event.subject for event in own} == {"orgs/local/users/admin"}, method
        # What is recorded before it is done has no outcome yet.
        outcomes = {event_pb2.OUTCOME_SUCCEEDED, event_pb2.OUTCOME_UNSPECIFIED}
        assert {event.outcome for event in own} <= outcomes, method
        return answer


def _request(contract: MethodContract, fields: Mapping[str, Any]) -> message.Message:
    given = dict(fields)
    if has_field(contract, "request_id"):
        given.setdefault("request_id", f"records-{contract.path.rpartition('/')[2]}")
    return request_of(contract)(**given)


@pytest.fixture
async def world(guarded: RunningMesh) -> AsyncIterator[World]:
    made = guarded.run("keys", "create", "bob", "--user", BOB, "--json")
    assert made.returncode == 0, made.stderr
    async with channel(guarded.address) as edge:
        yield World(guarded, edge, str(json.loads(made.stdout)["secret"]))


async def _runs(world: World) -> None:
    run, approval = await waiting_run(world.mesh, world.bobs_key, "records.md")
    for method in ("PauseRun", "ResumeRun"):
        await world.is_recorded(method, {"name": run.name})
    await eventually(lambda: _is_asking(world, approval), 60)
    asked = approval_service_pb2.GetApprovalRequest(name=approval)
    approvals = approval_service_pb2_grpc.ApprovalServiceStub(world.edge)
    shown = (await approvals.GetApproval(asked, metadata=bearer(world.mesh.api_key))).approval
    decided = {"name": approval, "verdict": "APPROVAL_VERDICT_APPROVE", "digest": shown.digest}
    await world.is_recorded("DecideApproval", decided)
    other, _ = await waiting_run(world.mesh, world.bobs_key, "cancelled.md")
    await world.is_recorded("CancelRun", {"name": other.name})
    ended = result_of(await followed(world.mesh.address, world.mesh.api_key, a_run()))
    await world.is_recorded("ForkRun", {"name": ended.name, "from_step": 1})
    await world.is_recorded("ExplainRun", {"name": ended.name})
    talks = conversation_service_pb2_grpc.ConversationServiceStub(world.edge)
    talk = conversation_service_pb2.CreateConversationRequest(request_id="talk")
    begun = await talks.CreateConversation(talk, metadata=bearer(world.mesh.api_key))
    await world.is_recorded("DeleteConversation", {"name": begun.conversation.name})


def _is_asking(world: World, approval: str) -> bool:
    listed = json.loads(world.mesh.run("approvals", "list", "--json").stdout)
    return approval in [one["name"] for one in listed["approvals"]]


async def another_org(mesh: RunningMesh) -> None:
    """Let policy have seen an org besides the one that operates the mesh."""
    socket = json.loads((mesh.state / "mesh.json").read_text())["postgres_socket"]
    connection = await asyncpg.connect(host=socket, user="postgres", database="remit_policy")
    try:
        await connection.execute(
            "INSERT INTO principals (name, kind, org) VALUES ($1, 'ORG', $1)", "orgs/another"
        )
    finally:
        await connection.close()


async def _money(world: World) -> None:
    budget = {"account": BOB, "period": "PERIOD_DAY"}
    await world.is_recorded("SetBudget", budget | {"limit_nanos": 10**12})
    await world.is_recorded("DeleteBudget", budget)
    await world.is_recorded("SetPrice", {"item": ITEM, "call_nanos": 5})
    await world.is_recorded("DeletePrice", {"item": ITEM})


async def _rights(world: World) -> None:
    granted = await world.is_recorded(
        "GrantToolAccess",
        {"principal": BOB, "tool": ITEM},
    )
    await world.is_recorded("RevokeToolAccess", {"name": granted.grant.name})
    made = await world.is_recorded(
        "CreateApiKey",
        {"display_name": "carol", "user": "orgs/local/users/carol", "roles": ["member"]},
    )
    rotated = await world.is_recorded("RotateApiKey", {"name": made.api_key.name})
    await world.is_recorded("RevokeApiKey", {"name": rotated.api_key.name})
    await world.is_recorded(
        "CreateServiceAccount",
        {"name": "orgs/local/users/ci", "display_name": "ci", "roles": ["member"]},
    )
    await world.is_recorded("DisablePrincipal", {"name": "orgs/local/users/carol"})
    await world.is_recorded("EnablePrincipal", {"name": "orgs/local/users/carol"})
    await another_org(world.mesh)
    await world.is_recorded("DisableOrg", {"name": "orgs/another"})
    await world.is_recorded("EnableOrg", {"name": "orgs/another"})
    await world.is_recorded("SetRateLimit", {"principal": BOB, "max_runs": 5})
    await world.is_recorded("DeleteRateLimit", {"principal": BOB})
    text = (SHIPPED_POLICIES / "default.cedar").read_text("utf-8")
    pushed = await world.is_recorded(
        "PushPolicySet",
        {
            "files": [{"name": "default.cedar", "text": text}],
            "expected_version": 1,
            "message": "less",
        },
    )
    now = pushed.policy_set.version
    back = {"version": 1, "expected_version": now, "message": "back"}
    await world.is_recorded("RollbackPolicySet", back)
    candidate = {"files": [{"name": "default.cedar", "text": text}]}
    await world.is_recorded("SimulatePolicy", candidate)
    await world.is_recorded("StartPolicyShadow", candidate)
    await world.is_recorded("StopPolicyShadow", {})


async def _reading(world: World) -> None:
    await world.is_recorded("ListEvents", {"page_size": 1})
    await world.is_recorded("TailEvents", {"until_now": True})
    await world.is_recorded("ExportLog", {})
    await world.is_recorded("CheckCompleteness", {})
    await world.is_recorded("EraseSubject", {"subject": BOB})


PARTS: Final[tuple[Callable[[World], Awaitable[None]], ...]] = (_runs, _money, _rights, _reading)


async def test_every_rpc_that_is_to_be_recorded_is(world: World) -> None:
    for part in PARTS:
        await part(world)
    assert world.done == set(RECORDED), "an RPC that the log is to record is not called here"


async def test_every_effect_of_a_run_has_its_intent_and_its_outcome(world: World) -> None:
    effects = {
        contract.permission
        for contract in all_contracts().values()
        if contract.audit == options_pb2.AUDIT_CLASS_EFFECT
    }
    ended = result_of(await followed(world.mesh.address, world.mesh.api_key, a_run()))
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED

    async def actions(kind: event_pb2.EventKind.ValueType) -> list[str]:
        events = await events_of(world.mesh.address, world.mesh.api_key, ended.name)
        return sorted(event.action for event in events if event.kind == kind)

    began = await actions(event_pb2.EVENT_KIND_INTENT)
    assert set(began) == effects

    async def all_ended() -> bool:
        return await actions(event_pb2.EVENT_KIND_OUTCOME) == began

    assert await eventually(all_ended, 30), "an effect's outcome may come after the end of its run"
