"""What the gateway answers over REST fits docs/openapi.yaml: every operation, a stream, errors."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from scripts.protos import ROOT
from tests.clients.rest import Answer, Rest
from tests.clients.schemas import Document
from tests.integration.conftest import RunningMesh
from tests.waiting import eventually

DOCUMENT = Document(yaml.safe_load((ROOT / "docs/openapi.yaml").read_text("utf-8")))
API = "/remit.api"
AGENTS = f"{API}.agent.v1.AgentService"
CATALOG = f"{API}.agent.v1.AgentCatalogService"
AUDIT = f"{API}.audit.v1.AuditQueryService"
TALK = f"{API}.agent.v1.ConversationService"
COST = f"{API}.cost.v1.CostReportService"
INFERENCE = f"{API}.inference.v1.InferenceService"
MODELS = f"{API}.inference.v1.ModelService"
PRIVACY = f"{API}.audit.v1.PrivacyService"
GRANTS = f"{API}.policy.v1.GrantService"
POLICY_SETS = f"{API}.policy.v1.PolicySetService"
PRICES = f"{API}.cost.v1.PriceService"
APPROVALS = f"{API}.policy.v1.ApprovalService"
POLICY = f"{API}.policy.v1.PolicyAdminService"
ORGS = f"{API}.policy.v1.OrgService"
PRINCIPALS = f"{API}.policy.v1.PrincipalService"
LIMITS = f"{API}.policy.v1.RateLimitService"
TOOLS = f"{API}.tools.v1.ToolService"

READS: Mapping[str, tuple[dict[str, str], dict[str, str]]] = {
    f"{CATALOG}/ListAgents": ({}, {"pageSize": "1"}),
    f"{CATALOG}/GetAgent": ({"agent": "assistant"}, {}),
    f"{AGENTS}/ListRuns": ({}, {"agent": "agents/clerk", "state": "RUN_STATE_SUCCEEDED"}),
    f"{AUDIT}/ListEvents": ({}, {"startTime": "2020-01-01T00:00:00Z", "pageSize": "5"}),
    f"{AUDIT}/GetCheckpoint": ({}, {"minTreeSize": "2"}),
    f"{AUDIT}/GetInclusionProof": ({}, {"leafIndex": "0", "treeSize": "2"}),
    f"{AUDIT}/GetConsistencyProof": ({}, {"firstTreeSize": "1", "secondTreeSize": "2"}),
    f"{COST}/ListSpend": ({}, {"groupBy": "DIMENSION_ITEM"}),
    f"{COST}/ListCharges": ({}, {"startTime": "2020-01-01T00:00:00Z", "pageSize": "2"}),
    f"{COST}/GetRunSpend": ({"run": "0198a5b0-0000-7000-8000-000000000000"}, {}),
    f"{COST}/ListBudgets": ({}, {}),
    f"{PRICES}/ListPrices": ({}, {"item": "models/nobody-knows"}),
    f"{MODELS}/ListModels": ({}, {}),
    f"{MODELS}/GetModel": ({"model": "builtin-rules"}, {}),
    f"{POLICY}/ListApiKeys": ({}, {}),
    f"{POLICY}/GetPolicySet": ({}, {}),
    f"{POLICY_SETS}/ListPolicySets": ({}, {"pageSize": "1"}),
    f"{TOOLS}/ListTools": ({}, {}),
    f"{TOOLS}/GetWebhookKeys": ({}, {}),
    f"{TOOLS}/GetTool": ({"tool": "calculator"}, {}),
}
"""Path and query parameters of every read that needs no more than a run before it."""

OF_A_RUN = {
    f"{AGENTS}/{name}" for name in ("StreamRun", "GetRun", "WatchRun", "GetArtifact", "ExplainRun")
}
OF_A_CONVERSATION = {f"{TALK}/{name}Conversation" for name in ("Create", "Get", "Delete")} | {
    f"{TALK}/ListConversations"
}
CHANGES = {
    f"{AGENTS}/CreateRun",
    f"{AGENTS}/CancelRun",
    f"{AGENTS}/PauseRun",
    f"{AGENTS}/ResumeRun",
    f"{AGENTS}/ForkRun",
    f"{AGENTS}/ReplayRun",
    f"{COST}/SetBudget",
    f"{COST}/DeleteBudget",
    f"{COST}/ListBudgetAlerts",
    f"{GRANTS}/GrantToolAccess",
    f"{GRANTS}/ListToolGrants",
    f"{GRANTS}/RevokeToolAccess",
    f"{POLICY}/CreateApiKey",
    f"{POLICY}/RevokeApiKey",
    f"{LIMITS}/SetRateLimit",
    f"{LIMITS}/DeleteRateLimit",
    f"{LIMITS}/ListRateLimits",
    f"{PRIVACY}/EraseSubject",
    f"{TOOLS}/CallTool",
    f"{INFERENCE}/GenerateText",
}
OF_POLICIES = {
    f"{POLICY_SETS}/{name}PolicySet{plural}"
    for name, plural in (("Push", ""), ("Diff", "s"), ("Rollback", ""))
} | {f"{POLICY_SETS}/{verb}PolicyShadow" for verb in ("Start", "Get", "Stop")}
OF_APPROVALS = {
    f"{APPROVALS}/{name}"
    for name in ("ListApprovals", "GetApproval", "WatchApprovals", "DecideApproval")
}
OF_CREDENTIALS = {
    f"{POLICY}/RotateApiKey",
    f"{PRINCIPALS}/CreateServiceAccount",
    f"{PRINCIPALS}/DisablePrincipal",
    f"{PRINCIPALS}/EnablePrincipal",
    f"{PRINCIPALS}/ListPrincipals",
    f"{PRINCIPALS}/ListTeams",
    *(f"{ORGS}/{name}" for name in ("ListOrgs", "DisableOrg", "EnableOrg")),
}
OF_PRICES = {f"{PRICES}/{name}" for name in ("SetPrice", "DeletePrice", "ListPriceChanges")}
STREAMS = {
    f"{AUDIT}/ExportLog",
    f"{AUDIT}/CheckCompleteness",
    f"{AUDIT}/TailEvents",
    f"{COST}/CheckLedger",
    f"{POLICY_SETS}/SimulatePolicy",
    f"{INFERENCE}/StreamGenerateText",
}


@pytest.fixture
def rest(mesh: RunningMesh) -> Rest:
    return Rest(DOCUMENT, mesh.address, mesh.api_key)


def fits(method: str, answer: Answer) -> Any:
    """The content of an answer, after a look whether the document knows it."""
    content = answer.content
    assert DOCUMENT.answer_faults(method, answer.status, content) == [], content
    return content


def messages(method: str, answer: Answer) -> list[Any]:
    """The messages of a whole stream, after the same look."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/event-stream"
    *found, end = answer.events
    assert end == {"event": "end", "data": "{}"}
    contents = [json.loads(event["data"]) for event in found]
    for content in contents:
        assert DOCUMENT.event_faults(method, content) == [], content
    return contents


def new_id() -> str:
    return str(uuid.uuid4())


async def a_file(rest: Rest) -> Answer:
    """The stream of a run that writes a file."""
    task = "Write the file notes/report.md with the text hello"
    body = {"agent": "agents/clerk", "task": task, "requestId": new_id()}
    return await rest(f"{AGENTS}/StreamRun", body=body)


def test_every_operation_is_tried() -> None:
    of_nouns = {*OF_A_CONVERSATION, *OF_PRICES, *OF_POLICIES, *OF_APPROVALS, *OF_CREDENTIALS}
    tried = {*READS, *OF_A_RUN, *of_nouns, *CHANGES, *STREAMS}
    assert tried == {each["x-remit"]["grpcMethod"] for _, _, each in DOCUMENT.operations()}


async def test_a_run_its_stream_and_its_file(rest: Rest) -> None:
    streamed = await a_file(rest)
    told = messages(f"{AGENTS}/StreamRun", streamed)
    ids = [int(event["id"]) for event in streamed.events[:-1]]
    assert ids == [int(each["event"]["sequence"]) for each in told] == [*range(1, len(ids) + 1)]
    run = told[-1]["event"]["ended"]["run"]
    assert run["state"] == "RUN_STATE_SUCCEEDED"
    name = {"run": run["name"].removeprefix("runs/")}
    read = fits(f"{AGENTS}/GetRun", await rest(f"{AGENTS}/GetRun", name))
    assert read["run"] == run
    explained = fits(f"{AGENTS}/ExplainRun", await rest(f"{AGENTS}/ExplainRun", name))
    assert [entry["kind"] for entry in explained["entries"]].count("KIND_TOOL_CALL") == 1
    made = {"artifact": run["artifacts"][0]["name"]}
    assert "/" in made["artifact"]
    file = fits(f"{AGENTS}/GetArtifact", await rest(f"{AGENTS}/GetArtifact", name | made))
    assert file["content"] == "aGVsbG8="  # hello
    last = {"last-event-id": str(ids[2])}
    watched = await rest(f"{AGENTS}/WatchRun", name, headers=last)
    assert messages(f"{AGENTS}/WatchRun", watched) == told[3:]
    asked = await rest(f"{AGENTS}/WatchRun", name, {"afterSequence": str(ids[2])})
    assert messages(f"{AGENTS}/WatchRun", asked) == told[3:]


@pytest.mark.parametrize("method", READS)
async def test_a_read(rest: Rest, method: str) -> None:
    # Every read finds something: a run has happened in this mesh.
    await a_file(rest)
    path, query = READS[method]
    answer = await rest(method, path, query)
    content = fits(method, answer)
    assert answer.status == 200, content
    assert any(content.values())


async def test_credentials(rest: Rest) -> None:
    async def changed(method: str, body: object, path: Mapping[str, str] | None = None) -> Any:
        answer = await rest(method, path, body=body)
        content = fits(method, answer)
        assert answer.status == 200, content
        return content

    team = "orgs/local/teams/turning"
    user = "orgs/local/users/turner"
    key = {"displayName": "turn", "user": user, "team": team, "roles": ["member"]}
    made = await changed(
        f"{POLICY}/CreateApiKey", key | {"scopes": ["runs"], "requestId": new_id()}
    )
    _, org, _, made_key = made["apiKey"]["name"].split("/")
    overlap = {"requestId": new_id(), "overlap": "3600s"}
    path = {"org": org, "apiKey": made_key}
    rotated = await changed(f"{POLICY}/RotateApiKey", overlap, path)
    assert rotated["replaced"]["replacedBy"] == rotated["apiKey"]["name"]
    assert rotated["apiKey"]["scopes"] == ["runs"]
    named = {"org": org, "user": "turner"}
    for verb in ("Disable", "Enable"):
        told = await changed(f"{PRINCIPALS}/{verb}Principal", {"requestId": new_id()}, named)
        assert told["principal"]["name"] == key["user"]
        assert ("disableTime" in told["principal"]) == (verb == "Disable")
    account = {"name": "orgs/local/users/turning", "displayName": "x", "roles": ["member"]}
    made = await changed(f"{PRINCIPALS}/CreateServiceAccount", account | {"requestId": new_id()})
    assert made["principal"]["kind"] == "PRINCIPAL_KIND_SERVICE_ACCOUNT"
    found = await rest(f"{PRINCIPALS}/ListPrincipals")
    listed = fits(f"{PRINCIPALS}/ListPrincipals", found)["principals"]
    (turner,) = [each for each in listed if each["name"] == key["user"]]
    assert turner["workingKeyCount"] >= 1
    assert "disableTime" not in turner
    teams = fits(f"{PRINCIPALS}/ListTeams", await rest(f"{PRINCIPALS}/ListTeams"))["teams"]
    assert team in [each["name"] for each in teams]


async def test_orgs(rest: Rest) -> None:
    listed = fits(f"{ORGS}/ListOrgs", await rest(f"{ORGS}/ListOrgs"))["orgs"]
    assert [each["name"] for each in listed] == ["orgs/local"]
    for verb, org, status in (("Disable", "local", 400), ("Enable", "local", 200)):
        method = f"{ORGS}/{verb}Org"
        answer = await rest(method, {"org": org}, body={"requestId": new_id()})
        fits(method, answer)
        assert answer.status == status


async def test_changes(rest: Rest) -> None:
    async def changed(method: str, body: object, path: Mapping[str, str] | None = None) -> Any:
        answer = await rest(method, path, body=body)
        content = fits(method, answer)
        assert answer.status == 200, content
        return content

    request = {"agent": "agents/assistant", "task": "What is 2 + 3?", "requestId": new_id()}
    limits = {"limits": {"maxSteps": 4, "maxDuration": "60.5s", "maxCostNanos": "500000000"}}
    run = (await changed(f"{AGENTS}/CreateRun", request | limits))["run"]
    assert run["limits"] == limits["limits"] | {"maxDuration": "60.500s"}
    budget = {"account": "orgs/local/users/nobody", "period": "PERIOD_MONTH", "limitNanos": "7"}
    made = await changed(f"{COST}/SetBudget", budget | {"requestId": new_id()})
    assert made["budget"]["limitNanos"] == "7"
    key = {"displayName": "rest", "user": "orgs/local/users/nobody", "roles": ["member"]}
    made = await changed(f"{POLICY}/CreateApiKey", key | {"requestId": new_id()})
    _, org, _, made_key = made["apiKey"]["name"].split("/")
    path = {"org": org, "apiKey": made_key}
    revoked = await changed(f"{POLICY}/RevokeApiKey", {"requestId": new_id()}, path)
    assert revoked["apiKey"]["revokeTime"]
    grant = {"principal": "orgs/local/users/nobody", "permissionClass": "PERMISSION_CLASS_EXECUTE"}
    made = await changed(f"{GRANTS}/GrantToolAccess", grant | {"requestId": new_id()})
    _, org, _, made_grant = made["grant"]["name"].split("/")
    path = {"org": org, "grant": made_grant}
    revoked = await changed(f"{GRANTS}/RevokeToolAccess", {"requestId": new_id()}, path)
    assert revoked["grant"]["revokeTime"]
    listed = await rest(f"{GRANTS}/ListToolGrants", query={"principal": grant["principal"]})
    assert revoked["grant"] in fits(f"{GRANTS}/ListToolGrants", listed)["grants"]
    limited = {"principal": key["user"]}
    limit = limited | {"maxRuns": 7, "window": "60s"}
    made = await changed(f"{LIMITS}/SetRateLimit", limit | {"requestId": new_id()})
    assert (made["rateLimit"]["maxRuns"], made["rateLimit"]["window"]) == (7, "60s")
    listed = await rest(f"{LIMITS}/ListRateLimits", query={"pageSize": "1"})
    (limit,) = fits(f"{LIMITS}/ListRateLimits", listed)["rateLimits"]
    assert limit == made["rateLimit"]
    gone = await changed(f"{LIMITS}/DeleteRateLimit", limited | {"requestId": new_id()})
    assert gone["rateLimit"]["principal"] == key["user"]
    call = {"arguments": {"expression": "6 * 7"}, "requestId": new_id()}
    assert (await changed(f"{TOOLS}/CallTool", call, {"tool": "calculator"}))["result"]
    await changed(f"{INFERENCE}/GenerateText", prompt(), {"model": "builtin-rules"})
    # What was spent is above it in any case, so that it tells at once, and refuses nothing.
    soft = {"limitNanos": "1", "enforcement": "ENFORCEMENT_SOFT", "alertPercents": [100]}
    named = {"account": "orgs/local", "period": "PERIOD_TOTAL"}
    assert await eventually(lambda: has_spent(rest), 30)
    made = await changed(f"{COST}/SetBudget", named | soft | {"requestId": new_id()})
    assert made["budget"]["reachedPercents"] == [100]
    told = await rest(f"{COST}/ListBudgetAlerts", query={"account": "orgs/local"})
    (alert,) = fits(f"{COST}/ListBudgetAlerts", told)["alerts"]
    assert (alert["percent"], alert["limitNanos"]) == (100, "1")
    gone = await changed(f"{COST}/DeleteBudget", named | {"requestId": new_id()})
    assert gone["budget"]["enforcement"] == "ENFORCEMENT_SOFT"
    assert gone["remaining"][0]["isDefault"] is True


async def test_policies_are_compared_pushed_and_rolled_back(rest: Rest) -> None:
    shown = fits(f"{POLICY}/GetPolicySet", await rest(f"{POLICY}/GetPolicySet"))
    version = shown["policySet"]["version"]
    more = '@id("rest") permit (principal, action == Action::"models.list", resource);'
    files = [*shown["files"], {"name": "rest.cedar", "text": more}]
    compared = await rest(f"{POLICY_SETS}/DiffPolicySets", body={"files": files})
    (difference,) = fits(f"{POLICY_SETS}/DiffPolicySets", compared)["differences"]
    assert (difference["policyId"], difference["kind"]) == ("rest", "KIND_ADDED")
    simulated = await rest(f"{POLICY_SETS}/SimulatePolicy", body={"files": files})
    assert messages(f"{POLICY_SETS}/SimulatePolicy", simulated)[-1]["done"] is True
    shadow = {"files": files, "lifetime": "3600s", "requestId": new_id()}
    begun = await rest(f"{POLICY_SETS}/StartPolicyShadow", body=shadow)
    begun_at = fits(f"{POLICY_SETS}/StartPolicyShadow", begun)["shadow"]["createTime"]
    told = await rest(f"{POLICY_SETS}/GetPolicyShadow")
    assert fits(f"{POLICY_SETS}/GetPolicyShadow", told)["shadow"]["createTime"] == begun_at
    ended = await rest(f"{POLICY_SETS}/StopPolicyShadow", body={"requestId": new_id()})
    assert fits(f"{POLICY_SETS}/StopPolicyShadow", ended)["shadow"]["end"] == "END_STOPPED"
    change = {"expectedVersion": version, "requestId": new_id()}
    made = await rest(f"{POLICY_SETS}/PushPolicySet", body=change | {"files": files})
    pushed = fits(f"{POLICY_SETS}/PushPolicySet", made)["policySet"]["version"]
    stale = await rest(
        f"{POLICY_SETS}/PushPolicySet", body=change | {"files": files, "requestId": new_id()}
    )
    assert (stale.status, fits(f"{POLICY_SETS}/PushPolicySet", stale)["code"]) == (409, 10)
    back = {"version": version, "expectedVersion": pushed, "requestId": new_id()}
    gone = await rest(f"{POLICY_SETS}/RollbackPolicySet", body=back)
    assert fits(f"{POLICY_SETS}/RollbackPolicySet", gone)["policySet"]["sourceVersion"] == version


async def test_a_subject_is_erased(rest: Rest) -> None:
    user = f"orgs/local/users/{new_id()}"
    body = {"displayName": "rest", "user": user, "roles": ["member"], "requestId": new_id()}
    own_key = (await rest(f"{POLICY}/CreateApiKey", body=body)).content["secret"]
    # What they read is recorded, so that they have a key from now on.
    assert (await replace(rest, key=own_key)(f"{AUDIT}/ListEvents")).status == 200
    erase = {"subject": user, "requestId": new_id()}
    answer = await rest(f"{PRIVACY}/EraseSubject", body=erase)
    assert fits(f"{PRIVACY}/EraseSubject", answer)["erasure"]["leafIndex"]
    denied = await replace(rest, key=own_key)(f"{PRIVACY}/EraseSubject", body=erase)
    assert (denied.status, fits(f"{PRIVACY}/EraseSubject", denied)["code"]) == (403, 7)


@pytest.mark.parametrize("limit", ["-1", "9223372036854775808", "-9223372036854775809", "1.5", ""])
async def test_money_that_is_no_amount_sets_no_budget(rest: Rest, limit: str) -> None:
    named = {"account": "orgs/local/users/overflow", "period": "PERIOD_DAY"}
    method = f"{COST}/SetBudget"
    answer = await rest(method, body=named | {"limitNanos": limit, "requestId": new_id()})
    assert answer.status == 400
    assert fits(method, answer)
    gone = await rest(f"{COST}/DeleteBudget", body=named | {"requestId": new_id()})
    assert gone.status == 404, "nothing was set"


async def has_spent(rest: Rest) -> bool:
    """Whether anything that was done is settled."""
    answer = await rest(f"{COST}/ListSpend", query={"groupBy": "DIMENSION_ITEM"})
    return int(fits(f"{COST}/ListSpend", answer)["total"]["postedNanos"]) > 0


async def test_a_price_is_set_and_deleted(rest: Rest) -> None:
    item = f"models/{new_id()}"
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"item": item, "callNanos": "7", "startTime": later, "requestId": new_id()}
    made = fits(f"{PRICES}/SetPrice", await rest(f"{PRICES}/SetPrice", body=body))["change"]
    assert made["price"]["callNanos"] == "7"
    listed = await rest(f"{PRICES}/ListPrices", query={"item": item})
    unknown, scheduled = fits(f"{PRICES}/ListPrices", listed)["prices"]
    assert ("price" in unknown, unknown["source"]) == (False, "unlisted")
    assert (scheduled["price"], scheduled["source"]) == (made["price"], "org")
    body = {"item": item, "requestId": new_id()}
    gone = fits(f"{PRICES}/DeletePrice", await rest(f"{PRICES}/DeletePrice", body=body))["change"]
    changes = await rest(f"{PRICES}/ListPriceChanges", query={"item": item})
    assert fits(f"{PRICES}/ListPriceChanges", changes)["changes"] == [gone, made]
    again = await rest(f"{PRICES}/DeletePrice", body=body | {"requestId": new_id()})
    assert again.status == 404
    huge = {"item": item, "callNanos": str(2**63), "requestId": new_id()}
    refused = await rest(f"{PRICES}/SetPrice", body=huge)
    assert (refused.status, len(changes.content["changes"])) == (400, 2)


async def test_approvals_that_there_are_not(rest: Rest) -> None:
    listed = await rest(f"{APPROVALS}/ListApprovals", query={"state": "APPROVAL_STATE_PENDING"})
    assert fits(f"{APPROVALS}/ListApprovals", listed) == {"approvals": [], "nextPageToken": ""}
    path = {"approval": str(uuid.uuid4())}
    body = {
        "verdict": "APPROVAL_VERDICT_APPROVE",
        "digest": base64.b64encode(bytes(32)).decode(),
        "requestId": new_id(),
    }
    for method, given in (("GetApproval", None), ("DecideApproval", body)):
        answer = await rest(f"{APPROVALS}/{method}", path, body=given)
        content = fits(f"{APPROVALS}/{method}", answer)
        assert (answer.status, content["details"][0]["reason"]) == (404, "APPROVAL_NOT_FOUND")
    refused = await rest(f"{APPROVALS}/WatchApprovals", query={"afterSequence": "-1"})
    assert refused.status == 400
    assert fits(f"{APPROVALS}/WatchApprovals", refused)["details"][0]["reason"] == "INVALID_REQUEST"


async def test_a_run_is_paused_and_goes_on(rest: Rest) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    body = {
        "agent": "agents/assistant",
        "task": "What is 2 + 3?",
        "requestId": new_id(),
        "scheduleTime": later,
        "priority": 1,
    }
    run = (await rest(f"{AGENTS}/CreateRun", body=body)).content["run"]["name"]
    name = {"run": run.removeprefix("runs/")}
    for method, state in (("PauseRun", "RUN_STATE_PAUSED"), ("ResumeRun", "RUN_STATE_QUEUED")):
        answer = await rest(f"{AGENTS}/{method}", name, body={"requestId": new_id()})
        assert fits(f"{AGENTS}/{method}", answer)["run"]["state"] == state
    refused = await rest(f"{AGENTS}/ResumeRun", name, body={"requestId": new_id()})
    assert refused.status == 400
    assert fits(f"{AGENTS}/ResumeRun", refused)["details"][0]["reason"] == "INVALID_STATE"
    await rest(f"{AGENTS}/CancelRun", name, body={"requestId": new_id()})


async def test_a_conversation(rest: Rest) -> None:
    body = {"displayName": "Sums", "requestId": new_id()}
    begun = fits(f"{TALK}/CreateConversation", await rest(f"{TALK}/CreateConversation", body=body))
    name = begun["conversation"]["name"]
    path = {"conversation": name.removeprefix("conversations/")}
    runs: list[dict[str, Any]] = []
    for task in ("What is 2 + 3?", "What is 17 * 23?"):
        body = {"agent": "agents/assistant", "task": task, "requestId": new_id()}
        streamed = await rest(f"{AGENTS}/StreamRun", body=body | {"conversation": name})
        runs.append(messages(f"{AGENTS}/StreamRun", streamed)[-1]["event"]["ended"]["run"])
    assert runs[1]["previousRun"] == runs[0]["name"]
    assert (runs[1]["historyRuns"], runs[1]["conversation"]) == (1, name)
    read = fits(f"{TALK}/GetConversation", await rest(f"{TALK}/GetConversation", path))
    assert read["conversation"]["lastRun"] == runs[1]["name"]
    listed = await rest(f"{TALK}/ListConversations", query={"pageSize": "1", "own": "true"})
    assert fits(f"{TALK}/ListConversations", listed)["conversations"] == [read["conversation"]]
    of_it = await rest(f"{AGENTS}/ListRuns", query={"conversation": name})
    assert fits(f"{AGENTS}/ListRuns", of_it)["runs"] == runs[::-1]
    gone = await rest(f"{TALK}/DeleteConversation", path, body={"requestId": new_id()})
    assert fits(f"{TALK}/DeleteConversation", gone)["conversation"]["deleteTime"]
    run = {"run": runs[0]["name"].removeprefix("runs/")}
    for method, where in ((f"{TALK}/GetConversation", path), (f"{AGENTS}/GetRun", run)):
        assert fits(method, answer := await rest(method, where))["details"][0]["reason"]
        assert answer.status == 404


async def test_a_run_is_forked(rest: Rest) -> None:
    source = messages(f"{AGENTS}/StreamRun", await a_file(rest))[-1]["event"]["ended"]["run"]
    name = {"run": source["name"].removeprefix("runs/")}
    body = {"fromStep": 2, "overrides": {"limits": {"maxSteps": 3}}, "requestId": new_id()}
    fork = fits(f"{AGENTS}/ForkRun", await rest(f"{AGENTS}/ForkRun", name, body=body))["run"]
    assert fork["fork"]["run"] == source["name"]
    assert fork["fork"]["turns"] == 1
    assert fork["fork"]["overrides"] == ["limits.max_steps"]
    refused = await rest(f"{AGENTS}/ForkRun", name, body={"fromSequence": "0", "requestId": "x"})
    content = fits(f"{AGENTS}/ForkRun", refused)
    assert (refused.status, content["details"][0]["reason"]) == (400, "INVALID_REQUEST")


async def test_a_run_is_replayed(rest: Rest) -> None:
    source = messages(f"{AGENTS}/StreamRun", await a_file(rest))[-1]["event"]["ended"]["run"]
    name = {"run": source["name"].removeprefix("runs/")}
    method = f"{AGENTS}/ReplayRun"
    content = fits(method, await rest(method, name, body={}))
    assert (content["lastSequence"], content["requestsCompared"]) == (source["lastSequence"], 2)
    assert not content.get("divergence")
    other = {"overrides": {"task": "Write the file b.md with the text bye"}}
    found = fits(method, await rest(method, name, body=other))["divergence"]
    assert found["field"] == "request.messages[1].text"
    assert (found["recorded"], found["replayed"]) == (source["task"], other["overrides"]["task"])


async def test_a_run_is_cancelled(rest: Rest) -> None:
    async def cancelled() -> bool:
        """False where the run ended first."""
        body = {"agent": "agents/assistant", "task": "What is 2 + 3?", "requestId": new_id()}
        run = (await rest(f"{AGENTS}/CreateRun", body=body)).content["run"]["name"]
        method, name = f"{AGENTS}/CancelRun", {"run": run.removeprefix("runs/")}
        answer = await rest(method, name, body={"requestId": new_id()})
        content = fits(method, answer)
        if answer.status == 400:
            assert content["details"][0]["reason"] == "INVALID_STATE"
            return False
        return bool(content["run"]["state"] == "RUN_STATE_CANCELLED")

    await eventually(cancelled)


def prompt() -> dict[str, object]:
    return {"messages": [{"role": "ROLE_USER", "text": "hello"}], "requestId": new_id()}


async def test_streams_without_ids(rest: Rest) -> None:
    generated = await rest(
        f"{INFERENCE}/StreamGenerateText", {"model": "builtin-rules"}, body=prompt()
    )
    told = messages(f"{INFERENCE}/StreamGenerateText", generated)
    assert told[-1]["response"]["message"]["role"] == "ROLE_ASSISTANT"
    exported = await rest(f"{AUDIT}/ExportLog")
    assert messages(f"{AUDIT}/ExportLog", exported)[0]["checkpoint"]["signedNote"]
    tailed = await rest(
        f"{AUDIT}/TailEvents", query={"untilNow": "true", "kind": "EVENT_KIND_READ"}
    )
    told = messages(f"{AUDIT}/TailEvents", tailed)
    assert [int(event["id"]) for event in tailed.events[:-1]] == [int(m["sequence"]) for m in told]
    assert told[-1]["events"][-1]["event"]["action"] == "audit.export"
    checked = await rest(f"{COST}/CheckLedger")
    assert messages(f"{COST}/CheckLedger", checked)[-1]["percent"] == 100
    compared = await rest(f"{AUDIT}/CheckCompleteness")
    assert messages(f"{AUDIT}/CheckCompleteness", compared)[-1]["percent"] == 100
    events = generated.events + exported.events + checked.events + compared.events
    assert all("id" not in event for event in events)


@pytest.mark.parametrize(
    ("path", "body", "code", "reason"),
    [
        ({"tool": "calculator"}, {"argumentz": {}}, 400, "INVALID_REQUEST"),
        ({"tool": "calculator"}, {"arguments": {}}, 400, "INVALID_TOOL_ARGUMENTS"),
        ({"tool": "abacus"}, {"arguments": {}}, 404, "TOOL_NOT_FOUND"),
    ],
    ids=["unknown field", "missing argument", "unknown tool"],
)
async def test_an_error_fits_too(
    rest: Rest, path: dict[str, str], body: dict[str, Any], code: int, reason: str
) -> None:
    method = f"{TOOLS}/CallTool"
    answer = await rest(method, path, body=body | {"requestId": new_id()})
    assert answer.status == code, answer.body
    assert fits(method, answer)["details"][0]["reason"] == reason


async def test_a_key_that_is_none_fits_too(rest: Rest) -> None:
    method = f"{CATALOG}/ListAgents"
    answer = await Rest(DOCUMENT, rest.address, "nonsense")(method)
    assert answer.status == 401
    assert fits(method, answer)["details"][0]["reason"] == "CREDENTIAL_INVALID"
