"""Each command asks what it should and tells what it got, to people and to machines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import agent_catalog_service_pb2, agent_pb2, agent_service_pb2, run_pb2
from remit.api.cost.v1 import cost_report_service_pb2, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import model_service_pb2
from remit.api.policy.v1 import (
    api_key_pb2,
    org_service_pb2,
    permission_pb2,
    policy_admin_service_pb2,
    principal_pb2,
    principal_service_pb2,
)
from remit.api.tools.v1 import tool_pb2, tool_service_pb2
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer
from tests.cli.journals import RUN, ended_run, journal

RUN_ID = RUN.removeprefix("runs/")


def test_agents(remit: Remit, edge: EdgeServer) -> None:
    agent = agent_pb2.Agent(
        name="agents/clerk",
        description="Writes letters.",
        model="models/gpt",
        fallback_model="models/builtin-rules",
        tools=["tools/clock", "tools/send_email"],
        max_steps=8,
        max_cost_nanos=500_000_000,
    )
    agent.max_duration.seconds = 300
    edge.answers["ListAgents"] = lambda _: agent_catalog_service_pb2.ListAgentsResponse(
        agents=[agent]
    )
    head, row = remit("agents").out.splitlines()
    assert head.split() == ["AGENT", "MODEL", "TOOLS", "STEPS", "TIME", "COST", "DESCRIPTION"]
    for cell in (
        "clerk",
        "gpt > builtin-rules",
        "clock send_email",
        "5 min 0 s",
        "0.50 USD",
        "Writes",
    ):
        assert cell in row
    (document,) = remit("agents", "--json").documents
    assert document["agents"][0]["max_cost_nanos"] == 500_000_000
    assert document["agents"][0]["max_duration"] == "300s"
    assert document["more"] is False


def test_nothing_to_list_is_said(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListAgents"] = lambda _: agent_catalog_service_pb2.ListAgentsResponse()
    assert remit("agents").out == "no agents\n"
    assert remit("agents", "--json").documents == [{"agents": [], "more": False}]


def test_what_is_left_out_is_said(remit: Remit, edge: EdgeServer) -> None:
    def page(request: Any) -> Any:
        agents = [agent_pb2.Agent(name=f"agents/a{i}") for i in range(request.page_size)]
        return agent_catalog_service_pb2.ListAgentsResponse(agents=agents, next_page_token="more")

    edge.answers["ListAgents"] = page
    assert "there are more; raise --limit" in remit("agents", "--limit", "3").out
    (document,) = remit("agents", "--limit", "3", "--json").documents
    assert len(document["agents"]) == 3
    assert document["more"] is True


def test_models(remit: Remit, edge: EdgeServer) -> None:
    models = [
        model_service_pb2.Model(
            name="models/builtin-rules", engine="builtin-rules", description="Rules.", ready=True
        ),
        model_service_pb2.Model(
            name="models/gpt", engine="openai", not_ready_reason="OPENAI_API_KEY is not set"
        ),
    ]
    edge.answers["ListModels"] = lambda _: model_service_pb2.ListModelsResponse(models=models)
    _, ready, waiting = remit("models").out.splitlines()
    assert "yes" in ready
    assert "Rules." in ready
    assert "NO" in waiting
    assert "OPENAI_API_KEY is not set" in waiting


@pytest.fixture
def calculator() -> tool_pb2.Tool:
    return tool_pb2.Tool(
        name="tools/calculator",
        description="Calculates exactly.",
        input_schema_json=json.dumps({"properties": {"expression": {"type": "string"}}}),
        permission_class=permission_pb2.PERMISSION_CLASS_NONE,
        idempotent=True,
        definition_digest=b"\x01" * 32,
    )


def test_tools(remit: Remit, edge: EdgeServer, calculator: tool_pb2.Tool) -> None:
    edge.answers["ListTools"] = lambda _: tool_service_pb2.ListToolsResponse(tools=[calculator])
    _, row = remit("tools").out.splitlines()
    assert row.split() == ["calculator", "none", "safe", "Calculates", "exactly."]
    (document,) = remit("tools", "--json").documents
    assert document["tools"][0]["permission_class"] == "PERMISSION_CLASS_NONE"


def test_tools_show(remit: Remit, edge: EdgeServer, calculator: tool_pb2.Tool) -> None:
    edge.answers["GetTool"] = lambda _: tool_service_pb2.GetToolResponse(tool=calculator)
    out = remit("tools", "show", "calculator").out
    assert edge.requests("GetTool")[0].name == "tools/calculator"
    assert '"type": "string"' in out
    assert f"sha256 {'01' * 32}" in out
    (document,) = remit("tools", "show", "calculator", "--json").documents
    assert json.loads(document["input_schema_json"])["properties"]


def test_runs_list(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListRuns"] = lambda _: agent_service_pb2.ListRunsResponse(runs=[ended_run()])
    out = remit("runs", "list", "--agent", "clerk", "--in-state", "failed").out
    request = edge.requests("ListRuns")[0]
    assert (request.agent, request.state) == ("agents/clerk", run_pb2.RUN_STATE_FAILED)
    for cell in (RUN_ID, "assistant", "succeeded", "0.0000768 USD", "What is 17 * 23?"):
        assert cell in out.splitlines()[1]


def test_runs_show(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=ended_run())
    out = remit("runs", "show", RUN_ID).out
    assert edge.requests("GetRun")[0].name == RUN
    for text in ("17 * 23 = 391", "8 steps, 5 min 0 s, 0.50 USD", "leaf 5", "orgs/local/users/ad"):
        assert text in out
    (document,) = remit("runs", "show", RUN, "--json").documents
    assert document["run"]["cost_nanos"] == 76_800


def test_runs_show_of_an_unknown_run(remit: Remit, edge: EdgeServer) -> None:
    def refuse(_: Any) -> Any:
        raise RemitError(error_reason_pb2.ERROR_REASON_RUN_NOT_FOUND, "runs/x does not exist")

    edge.answers["GetRun"] = refuse
    outcome = remit("runs", "show", "x")
    assert outcome.code == 5
    assert "next: List the runs with `remit runs list`." in outcome.err


def test_runs_tree(remit: Remit, edge: EdgeServer) -> None:
    """A run, the two that it started, and one below the first of them."""
    top, first, second, deep = (ended_run() for _ in range(4))
    for number, (run, parent) in enumerate(((first, top), (second, top), (deep, first))):
        run.name, run.parent = f"{RUN[:-1]}{number}", parent.name
    deep.parent = first.name
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=top)
    edge.answers["ListRuns"] = lambda request: agent_service_pb2.ListRunsResponse(
        runs=[run for run in (second, first, deep) if run.parent == request.parent]
    )
    lines = [line.split("  ")[0] for line in remit("runs", "tree", RUN_ID).out.splitlines()]
    agent = top.agent.removeprefix("agents/")
    assert lines == [agent, f"├─ {agent}", "│", f"└─ {agent}"]
    (document,) = remit("runs", "tree", RUN_ID, "--json").documents
    assert document["run"]["name"] == RUN
    names = [below["run"]["name"] for below in document["sub_runs"]]
    assert names == [first.name, second.name]
    assert document["sub_runs"][0]["sub_runs"][0]["run"]["name"] == deep.name
    assert document["more"] is False


def test_runs_cancel(remit: Remit, edge: EdgeServer) -> None:
    run = ended_run(run_pb2.RUN_STATE_CANCELLED)
    edge.answers["CancelRun"] = lambda _: agent_service_pb2.CancelRunResponse(run=run)
    assert remit("runs", "cancel", RUN_ID).out == f"{RUN} is cancelled\n"
    request = edge.requests("CancelRun")[0]
    assert request.name == RUN
    assert 1 <= len(request.request_id) <= 64
    remit("runs", "cancel", RUN_ID, "--json")
    assert edge.requests("CancelRun")[1].request_id != request.request_id


@pytest.mark.parametrize(("verb", "method"), [("pause", "PauseRun"), ("resume", "ResumeRun")])
def test_runs_pause_and_resume(remit: Remit, edge: EdgeServer, verb: str, method: str) -> None:
    state = run_pb2.RUN_STATE_PAUSED if verb == "pause" else run_pb2.RUN_STATE_QUEUED
    response = getattr(agent_service_pb2, f"{method}Response")
    edge.answers[method] = lambda _: response(run=run_pb2.Run(name=RUN, state=state))
    words = run_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower()
    assert remit("runs", verb, RUN_ID).out == f"{RUN} is {words}\n"
    (document,) = remit("runs", verb, RUN_ID, "--json").documents
    assert document["run"]["name"] == RUN
    first, second = edge.requests(method)
    assert first.name == RUN
    assert first.request_id != second.request_id


def test_runs_artifact(remit: Remit, edge: EdgeServer, tmp_path: Path) -> None:
    found = agent_service_pb2.GetArtifactResponse(media_type="text/plain", content=b"hello\n")
    found.digest = hashlib.sha256(found.content).digest()
    edge.answers["GetArtifact"] = lambda _: found
    assert remit("runs", "artifact", RUN_ID, "a.txt").out == "hello\n"
    request = edge.requests("GetArtifact")[0]
    assert (request.run, request.artifact) == (RUN, "a.txt")
    out = tmp_path / "a.txt"
    assert "6 bytes" in remit("runs", "artifact", RUN_ID, "a.txt", "--out", str(out)).out
    assert out.read_bytes() == b"hello\n"
    again = remit("runs", "artifact", RUN_ID, "a.txt", "--out", str(out))
    assert again.code == 2
    assert "File exists" in again.err


def test_runs_watch(remit: Remit, edge: EdgeServer) -> None:
    def watch(request: Any) -> Any:
        for event in journal()[request.after_sequence :]:
            yield agent_service_pb2.WatchRunResponse(event=event, sequence=event.sequence)

    edge.answers["WatchRun"] = watch
    outcome = remit("runs", "watch", RUN_ID, "--after", "11", "--json")
    assert outcome.code == 0
    assert [d["type"] for d in outcome.documents] == ["model_call_ended", "ended", "summary"]
    assert edge.requests("WatchRun")[0].name == RUN


def test_runs_watch_behind_the_last_event(remit: Remit, edge: EdgeServer) -> None:
    ended = journal()[-1].ended.run
    edge.answers["WatchRun"] = lambda _: iter(())
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=ended)
    outcome = remit("runs", "watch", RUN_ID, "--after", "13", "--json")
    assert outcome.code == 0
    assert [d["type"] for d in outcome.documents] == ["summary"]
    assert "nothing follows event 13" in outcome.err
    assert len(edge.requests("WatchRun")) == 1


def spend_row(key: str, nanos: int) -> cost_report_service_pb2.SpendRow:
    return cost_report_service_pb2.SpendRow(key=key, posted_nanos=nanos, effects=2)


def test_spend(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: cost_report_service_pb2.ListSpendResponse(
        rows=[spend_row("tools/calculator", 3_000), spend_row("models/m", 76_800)],
        total=spend_row("", 79_800),
    )
    out = remit("spend", "--by", "item", "--since", "2026-11-01T00:00:00Z").out
    request = edge.requests("ListSpend")[0]
    assert request.group_by == cost_report_service_pb2.ListSpendRequest.DIMENSION_ITEM
    assert request.start_time.ToJsonString() == "2026-11-01T00:00:00Z"
    assert not request.HasField("end_time")
    assert out.splitlines()[1].split()[:2] == ["tools/calculator", "0.000003"]
    assert out.splitlines()[3].split()[:2] == ["total", "0.0000798"]
    (document,) = remit("spend", "--json").documents
    assert document["total"]["posted_nanos"] == 79_800
    assert [row["posted_nanos"] for row in document["rows"]] == [3_000, 76_800]


def budget(**fields: Any) -> reservation_pb2.Budget:
    return reservation_pb2.Budget(
        account="orgs/local", period=reservation_pb2.PERIOD_MONTH, currency="USD", **fields
    )


def test_budgets_list(remit: Remit, edge: EdgeServer) -> None:
    found = budget(limit_nanos=10**9, posted_nanos=76_800, pending_nanos=200, is_default=True)
    edge.answers["ListBudgets"] = lambda _: cost_report_service_pb2.ListBudgetsResponse(
        budgets=[found]
    )
    _, row = remit("budgets", "list").out.splitlines()
    for cell in ("orgs/local", "month", "1.00 USD", "0.0000768 USD", "0.999923 USD", "default"):
        assert cell in row


def test_budgets_set(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["SetBudget"] = lambda request: cost_report_service_pb2.SetBudgetResponse(
        budget=budget(limit_nanos=request.limit_nanos)
    )
    outcome = remit("budgets", "set", "orgs/local", "0.05", "--per", "day", "--request-id", "a")
    request = edge.requests("SetBudget")[0]
    assert request.limit_nanos == 50_000_000
    assert request.period == reservation_pb2.PERIOD_DAY
    assert (request.account, request.request_id) == ("orgs/local", "a")
    assert "0.05 USD" in outcome.out


def test_a_soft_budget_and_its_alerts(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["SetBudget"] = lambda request: cost_report_service_pb2.SetBudgetResponse(
        budget=budget(enforcement=request.enforcement, alert_percents=request.alert_percents)
    )
    alerts = ("--alert-at", "50", "--alert-at", "120")
    _, row = remit("budget", "set", "orgs/local", "1", "--soft", *alerts).out.splitlines()
    request = edge.requests("SetBudget")[0]
    assert request.enforcement == reservation_pb2.ENFORCEMENT_SOFT
    assert list(request.alert_percents) == [50, 120]
    assert request.period == reservation_pb2.PERIOD_MONTH
    assert "tells" in row
    assert "50 % 120 %" in row
    assert remit("budgets", "set", "orgs/local", "1", "--alert-at", "0").code == 2


def test_a_budget_of_each_run(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["SetBudget"] = lambda request: cost_report_service_pb2.SetBudgetResponse(
        budget=reservation_pb2.Budget(account=request.account, period=request.period)
    )
    _, row = remit("budgets", "set", "orgs/local", "0.10", "--per", "run").out.splitlines()
    assert edge.requests("SetBudget")[0].period == reservation_pb2.PERIOD_RUN
    assert row.split()[:2] == ["orgs/local", "run"]


def test_a_limit_below_what_is_spent_is_warned_of(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["SetBudget"] = lambda _: cost_report_service_pb2.SetBudgetResponse(
        budget=budget(limit_nanos=10**9, posted_nanos=3 * 10**9, over_nanos=2 * 10**9)
    )
    outcome = remit("budgets", "set", "orgs/local", "1")
    assert outcome.code == 0
    assert "orgs/local is 2.00 USD above this limit; no new effect starts" in outcome.err
    outcome = remit("budgets", "set", "orgs/local", "1", "--json")
    assert outcome.documents[0]["budget"]["over_nanos"] == 2 * 10**9
    assert "2.00 USD above" in outcome.err


def test_budgets_delete(remit: Remit, edge: EdgeServer) -> None:
    deleted = budget(limit_nanos=2 * 10**9)
    default = budget(limit_nanos=10**11, is_default=True)
    edge.answers["DeleteBudget"] = lambda _: cost_report_service_pb2.DeleteBudgetResponse(
        budget=deleted, remaining=[default]
    )
    out = remit("budgets", "delete", "orgs/local", "--per", "total", "--request-id", "a").out
    request = edge.requests("DeleteBudget")[0]
    assert (request.account, request.request_id) == ("orgs/local", "a")
    assert request.period == reservation_pb2.PERIOD_TOTAL
    said, _, row = out.splitlines()
    assert said == "the budget of orgs/local per total, 2.00 USD, is deleted"
    assert "100.00 USD" in row
    assert "default" in row
    (document,) = remit("budgets", "delete", "orgs/local", "--json").documents
    assert document["remaining"][0]["is_default"] is True


def test_a_deleted_budget_may_leave_none(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["DeleteBudget"] = lambda _: cost_report_service_pb2.DeleteBudgetResponse()
    out = remit("budgets", "delete", "orgs/local/users/bob").out
    assert "orgs/local/users/bob has no budget now; those of the accounts above it apply" in out


def test_deleting_no_budget_is_not_found(remit: Remit, edge: EdgeServer) -> None:
    def refuse(_: Any) -> Any:
        raise RemitError(error_reason_pb2.ERROR_REASON_BUDGET_NOT_FOUND, "orgs/x has no budget")

    edge.answers["DeleteBudget"] = refuse
    outcome = remit("budgets", "delete", "orgs/local")
    assert outcome.code == 5
    assert "remit budgets list" in outcome.err


def test_budgets_alerts(remit: Remit, edge: EdgeServer) -> None:
    alert = cost_report_service_pb2.BudgetAlert(
        account="orgs/local/users/bob",
        period=reservation_pb2.PERIOD_MONTH,
        percent=80,
        limit_nanos=10**9,
        posted_nanos=812_000_000,
        subject="orgs/local/users/bob",
        run=RUN,
    )
    edge.answers["ListBudgetAlerts"] = lambda _: cost_report_service_pb2.ListBudgetAlertsResponse(
        alerts=[alert]
    )
    _, row = remit("budgets", "alerts", "orgs/local/users/bob").out.splitlines()
    assert edge.requests("ListBudgetAlerts")[0].account == "orgs/local/users/bob"
    for cell in ("month", "80 %", "1.00 USD", "0.812 USD", "refuses", RUN):
        assert cell in row
    assert remit("budgets", "alerts", "--json").documents[0]["alerts"][0]["percent"] == 80


def test_a_budget_that_is_no_amount_is_a_wrong_command_line(remit: Remit, edge: EdgeServer) -> None:
    assert remit("budgets", "set", "orgs/local", "much").code == 2
    assert edge.calls == []


def api_key(**times_s: int) -> api_key_pb2.ApiKey:
    key = api_key_pb2.ApiKey(
        name="orgs/local/apiKeys/ab12",
        display_name="CI",
        user="orgs/local/users/ci",
        roles=["member"],
    )
    for name, seconds in times_s.items():
        getattr(key, name).seconds = seconds
    return key


def test_keys_create(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["CreateApiKey"] = lambda _: policy_admin_service_pb2.CreateApiKeyResponse(
        api_key=api_key(), secret="rmt_ab12_secret"
    )
    arguments = ("keys", "create", "CI", "--user", "orgs/local/users/ci", "--role", "admin")
    outcome = remit(*arguments, "--expires", "2027-01-01T00:00:00Z")
    request = edge.requests("CreateApiKey")[0]
    assert (request.display_name, request.user) == ("CI", "orgs/local/users/ci")
    assert list(request.roles) == ["admin"]
    assert request.expire_time.ToJsonString() == "2027-01-01T00:00:00Z"
    assert outcome.out.splitlines()[-1] == "rmt_ab12_secret"
    (document,) = remit(*arguments, "--json").documents
    assert document["secret"] == "rmt_ab12_secret"


def test_keys_list_says_which_work(remit: Remit, edge: EdgeServer) -> None:
    keys = [api_key(), api_key(revoke_time=1_795_446_000), api_key(expire_time=1_800_000_000)]
    edge.answers["ListApiKeys"] = lambda _: policy_admin_service_pb2.ListApiKeysResponse(
        api_keys=keys
    )
    _, works, revoked, expires = remit("keys", "list").out.splitlines()
    assert " yes " in works
    assert works.endswith("never")
    assert "revoked 2026-11-23" in revoked
    assert "until 2027-01-15" in expires


def test_keys_rotate(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["RotateApiKey"] = lambda _: policy_admin_service_pb2.RotateApiKeyResponse(
        api_key=api_key(), replaced=api_key(expire_time=1_800_000_000), secret="rmt_cd34_secret"
    )
    arguments = ("keys", "rotate", "orgs/local/apiKeys/ab12", "--overlap", "2h")
    outcome = remit(*arguments)
    request = edge.requests("RotateApiKey")[0]
    assert (request.name, request.overlap.seconds) == ("orgs/local/apiKeys/ab12", 7200)
    assert not request.HasField("expire_time")
    assert "until 2027-01-15" in outcome.out
    assert outcome.out.splitlines()[-1] == "rmt_cd34_secret"
    (document,) = remit(*arguments, "--json").documents
    assert document["secret"] == "rmt_cd34_secret"


@pytest.mark.parametrize(("verb", "disabled"), [("disable", True), ("enable", False)])
def test_users(remit: Remit, edge: EdgeServer, verb: str, *, disabled: bool) -> None:
    principal = principal_pb2.Principal(name="orgs/local/users/bob")
    if disabled:
        principal.disable_time.seconds = 1_795_446_000
    edge.answers["DisablePrincipal"] = lambda _: principal_service_pb2.DisablePrincipalResponse(
        principal=principal
    )
    edge.answers["EnablePrincipal"] = lambda _: principal_service_pb2.EnablePrincipalResponse(
        principal=principal
    )
    out = remit("users", verb, "orgs/local/users/bob").out
    assert ("disabled since 2026-11-23" in out) == disabled
    (request,) = edge.requests(f"{verb.title()}Principal")
    assert request.name == "orgs/local/users/bob"
    (document,) = remit("users", verb, "orgs/local/users/bob", "--json").documents
    assert document["principal"]["name"] == "orgs/local/users/bob"


def test_users_list(remit: Remit, edge: EdgeServer) -> None:
    bob = principal_pb2.Principal(
        name="orgs/local/users/bob", teams=["orgs/local/teams/core"], working_key_count=2
    )
    bob.last_use_time.seconds = bob.create_time.seconds = 1_795_446_000
    carol = principal_pb2.Principal(name="orgs/local/users/carol", roles=["admin"])
    carol.disable_time.seconds = 1_795_446_000
    edge.answers["ListPrincipals"] = lambda _: principal_service_pb2.ListPrincipalsResponse(
        principals=[bob, carol]
    )
    head, first, second = remit("users", "list").out.splitlines()
    assert head.split()[:4] == ["USER", "IS", "WORKS", "KEYS"]
    assert first.split()[:6] == [bob.name, "person", "yes", "2", "-", "orgs/local/teams/core"]
    assert "disabled 2026-11-23" in second
    assert "never" in second
    (document,) = remit("users", "list", "--json").documents
    assert document["principals"][0]["working_key_count"] == 2


def test_service_accounts(remit: Remit, edge: EdgeServer) -> None:
    ci = principal_pb2.Principal(
        name="orgs/local/users/ci",
        kind=principal_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT,
        display_name="nightly",
        roles=["member"],
    )
    edge.answers["CreateServiceAccount"] = lambda _: (
        principal_service_pb2.CreateServiceAccountResponse(principal=ci)
    )
    edge.answers["ListPrincipals"] = lambda _: principal_service_pb2.ListPrincipalsResponse(
        principals=[ci]
    )
    arguments = ("service-accounts", "create", ci.name, "nightly")
    out = remit(*arguments, "--team", "orgs/local/teams/core", "--request-id", "r1").out
    assert "service account" in out
    assert edge.requests("CreateServiceAccount") == [
        principal_service_pb2.CreateServiceAccountRequest(
            name=ci.name,
            display_name="nightly",
            team="orgs/local/teams/core",
            roles=["member"],
            request_id="r1",
        )
    ]
    (document,) = remit(*arguments, "--json").documents
    assert document["principal"]["kind"] == "PRINCIPAL_KIND_SERVICE_ACCOUNT"
    assert ci.name in remit("service-accounts", "list").out
    (request,) = edge.requests("ListPrincipals")
    assert request.kind == principal_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT


def test_teams_list(remit: Remit, edge: EdgeServer) -> None:
    core = principal_pb2.Team(name="orgs/local/teams/core", member_count=2, working_key_count=3)
    core.create_time.seconds = 1_795_446_000
    zeta = principal_pb2.Team(name="orgs/local/teams/zeta", grant_count=1)
    edge.answers["ListTeams"] = lambda _: principal_service_pb2.ListTeamsResponse(
        teams=[core, zeta]
    )
    _, first, second = remit("teams", "list").out.splitlines()
    assert first.split()[:4] == [core.name, "2", "3", "0"]
    assert second.split()[3:] == ["1", "only", "granted"]
    (document,) = remit("teams", "list", "--json").documents
    assert document["teams"][0]["member_count"] == 2


def test_orgs(remit: Remit, edge: EdgeServer) -> None:
    off = org_service_pb2.Org(name="orgs/acme")
    off.disable_time.seconds = 1_795_446_000
    on = org_service_pb2.Org(name="orgs/acme")
    edge.answers["DisableOrg"] = lambda _: org_service_pb2.DisableOrgResponse(org=off)
    edge.answers["EnableOrg"] = lambda _: org_service_pb2.EnableOrgResponse(org=on)
    edge.answers["ListOrgs"] = lambda _: org_service_pb2.ListOrgsResponse(orgs=[off])
    assert "disabled since 2026-11-23" in remit("orgs", "disable", "orgs/acme").out
    assert remit("orgs", "enable", "orgs/acme").out == "orgs/acme is enabled\n"
    assert edge.requests("DisableOrg")[0].name == edge.requests("EnableOrg")[0].name == "orgs/acme"
    assert "disabled 2026-11-23" in remit("orgs", "list").out
    (document,) = remit("orgs", "disable", "orgs/acme", "--json").documents
    assert document["org"]["name"] == "orgs/acme"


def test_keys_revoke(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["RevokeApiKey"] = lambda _: policy_admin_service_pb2.RevokeApiKeyResponse(
        api_key=api_key(revoke_time=1_795_446_000)
    )
    out = remit("keys", "revoke", "orgs/local/apiKeys/ab12").out
    assert edge.requests("RevokeApiKey")[0].name == "orgs/local/apiKeys/ab12"
    assert out.startswith("orgs/local/apiKeys/ab12 was revoked at 2026-11-23")
