"""`remit policy`: what is asked for, what is shown, and cases decided without a mesh."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import (
    permission_pb2,
    policy_admin_service_pb2,
    policy_set_pb2,
    policy_set_service_pb2,
)
from remit.cli import exit_codes
from remit.policy.schema import SHIPPED_POLICIES
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

PAGE = (Path(__file__).parents[2] / "docs" / "POLICIES.md").read_text(encoding="utf-8")
TEXT = '@id("a")\npermit (principal, action, resource);'
Difference = policy_set_pb2.PolicyDifference


def version(number: int, **fields: Any) -> policy_set_pb2.PolicySet:
    given: dict[str, Any] = {"origin": policy_set_pb2.PolicySet.ORIGIN_PUSH, "digest": b"\xab" * 32}
    return policy_set_pb2.PolicySet(version=number, **given | fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "policies"
    made.mkdir()
    (made / "a.cedar").write_text(TEXT)
    return made


@pytest.fixture
def in_force(edge: EdgeServer) -> EdgeServer:
    edge.answers["GetPolicySet"] = lambda _: policy_admin_service_pb2.GetPolicySetResponse(
        policies=f"// a.cedar\n{TEXT}",
        schema="entity Org;",
        files=[policy_set_pb2.PolicyFile(name="../a.cedar", text=TEXT)],
        policy_set=version(7),
    )
    return edge


def test_what_is_in_force_is_shown_and_written(
    remit: Remit, in_force: EdgeServer, tmp_path: Path
) -> None:
    assert TEXT in remit("policy", "show").out
    assert remit("policy", "show", "--schema").out == "entity Org;\n"
    into = tmp_path / "new" / "policies"
    assert "1 files of version 7" in remit("policy", "show", "--into", str(into)).out
    assert [path.name for path in into.iterdir()] == ["a.cedar"]
    refused = remit("policy", "show", "--into", str(into))
    assert refused.code == exit_codes.USAGE
    remit("policy", "show", "--version", "3")
    assert in_force.requests("GetPolicySet")[-1].version == 3


def test_a_push_expects_the_version_in_force_or_the_one_named(
    remit: Remit, in_force: EdgeServer, folder: Path
) -> None:
    in_force.answers["PushPolicySet"] = lambda _: policy_set_service_pb2.PushPolicySetResponse(
        policy_set=version(8, author="orgs/local/users/alice", message="why")
    )
    out = remit("policy", "push", str(folder), "-m", "why").out
    assert "abababababab" in out
    remit("policy", "push", str(folder), "--expected", "3", "--request-id", "mine")
    first, second = in_force.requests("PushPolicySet")
    assert (first.expected_version, first.message) == (7, "why")
    assert [(file.name, file.text) for file in first.files] == [("a.cedar", TEXT)]
    assert (second.expected_version, second.request_id) == (3, "mine")


def test_a_refused_push_tells_every_fault_and_ends_with_its_code(
    remit: Remit, in_force: EdgeServer, folder: Path
) -> None:
    def refuse(_: object) -> None:
        raise RemitError(error_reason_pb2.ERROR_REASON_POLICY_INVALID, "a.cedar:3: policy a: x")

    in_force.answers["PushPolicySet"] = refuse
    outcome = remit("policy", "push", str(folder))
    assert outcome.code == exit_codes.INVALID
    assert "a.cedar:3: policy a: x [POLICY_INVALID]" in outcome.err


def test_a_rollback_names_the_version(remit: Remit, in_force: EdgeServer) -> None:
    in_force.answers["RollbackPolicySet"] = lambda _: (
        policy_set_service_pb2.RollbackPolicySetResponse(
            policy_set=version(8, origin=policy_set_pb2.PolicySet.ORIGIN_ROLLBACK, source_version=3)
        )
    )
    assert "rollback of 3" in remit("policy", "rollback", "3").out
    (request,) = in_force.requests("RollbackPolicySet")
    assert (request.version, request.expected_version) == (3, 7)


def test_the_history_is_listed(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListPolicySets"] = lambda _: policy_set_service_pb2.ListPolicySetsResponse(
        policy_sets=[version(8, message="why", policy_count=11), version(7)]
    )
    _, newest, older = remit("policy", "history").out.splitlines()
    assert newest.split()[0] == "8"
    assert newest.endswith("why")
    assert older.split()[0] == "7"


def test_a_diff_shows_lines(remit: Remit, edge: EdgeServer, folder: Path) -> None:
    edge.answers["DiffPolicySets"] = lambda _: policy_set_service_pb2.DiffPolicySetsResponse(
        differences=[
            Difference(
                policy_id="a",
                kind=Difference.KIND_CHANGED,
                file="a.cedar",
                line=1,
                effect="permit",
                before="permit (\n  principal\n);",
                after="permit (\n  principal, x\n);",
            )
        ]
    )
    out = remit("policy", "diff", str(folder)).out
    assert "changed a (permit, a.cedar:1)" in out
    assert "  -  principal\n" in out
    assert "  +  principal, x\n" in out
    assert edge.requests("DiffPolicySets")[0].files[0].text == TEXT
    remit("policy", "diff", "--from", "3", "--to", "5")
    request = edge.requests("DiffPolicySets")[1]
    assert (request.from_version, request.to_version) == (3, 5)
    assert remit("policy", "diff", str(folder), "--to", "5").code == exit_codes.USAGE


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """The policies that Remit ships with the one of the page, and the page's cases."""
    folder = tmp_path / "policies"
    folder.mkdir()
    shipped = SHIPPED_POLICIES / "default.cedar"
    (folder / "default.cedar").write_text(shipped.read_text())
    (folder / "clerk.cedar").write_text(blocks("cedar")[0])
    (tmp_path / "cases.yaml").write_text(blocks("yaml")[0])
    return tmp_path


def run_test(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> tuple[int, str, str]:
    from remit.cli.main import run  # noqa: PLC0415 - as the conftest does

    capsys.readouterr()
    code = run(["policy", "test", str(folder / "policies"), str(folder / "cases.yaml"), *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_cases_of_the_page_are_as_expected(
    documented: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_test(capsys, documented)
    assert code == exit_codes.OK
    assert "2 of 2 cases as expected" in out
    assert "no case is decided by" in out


def test_a_case_that_fails_is_told_and_the_exit_code_tells(
    documented: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = documented / "cases.yaml"
    cases.write_text(cases.read_text().replace("expect: deny", "expect: allow"))
    code, out, _ = run_test(capsys, documented)
    assert code == exit_codes.FAILED
    assert "and nothing else: expected allow, got deny: forbidden: the clerk reads" in out
    cases.write_text(cases.read_text().replace("members-call-tools", "other"))
    code, out, _ = run_test(capsys, documented, "--json")
    assert code == exit_codes.FAILED
    assert "expected by other, got by members-call-tools" in out


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("policies/clerk.cedar", '\n@id("x") permit (principal', "clerk.cedar:2"),
        ("cases.yaml", "cases: [", "no YAML"),
        ("cases.yaml", "cases: []", "cases"),
        ("cases.yaml", "cases: [{name: x, exspect: allow}]", "cases.0"),
        (
            "cases.yaml",
            "cases: [{name: x, subject: alice, action: a, resource: b, expect: deny}]",
            "case 'x'",
        ),
    ],
)
def test_wrong_policies_or_cases_are_named(
    documented: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, says: str
) -> None:
    (documented / file).write_text(content)
    code, _, err = run_test(capsys, documented)
    assert code == exit_codes.INVALID
    assert says in err


def test_a_preview_shows_what_would_change_and_ends_only_at_its_end(
    remit: Remit, edge: EdgeServer, folder: Path
) -> None:
    change = policy_set_service_pb2.DecisionChange(
        count=3,
        subject="orgs/local/users/bob",
        action="tools.call",
        resource="tools/mail",
        after=permission_pb2.DECISION_DENY,
        policy_id="no-mail",
        reason="forbidden: mail rests",
    )
    first = policy_set_service_pb2.SimulatePolicyResponse(
        sequence=1, decisions=10, newly_denied=3, erased=1, changes=[change], resume_token="here"
    )
    last = policy_set_service_pb2.SimulatePolicyResponse(sequence=2, decisions=2, done=True)
    # Each stream breaks off after its first message, and goes on behind it.
    edge.answers["SimulatePolicy"] = lambda asked: iter((last if asked.resume_token else first,))
    out = remit("policy", "simulate", str(folder), "--most", "12").out
    assert "denied" in out
    assert "no-mail" in out
    assert "of 12 decisions 3 would be denied and 0 allowed that were not" in out
    assert edge.requests("SimulatePolicy")[0].max_decisions == 12
    (document,) = remit("policy", "simulate", str(folder), "--json").documents
    assert (document["decisions"], document["newly_denied"]) == (12, 3)
    edge.answers["SimulatePolicy"] = lambda _: iter(())
    assert remit("policy", "simulate", str(folder)).code == exit_codes.UNHEALTHY


def a_shadow(**fields: Any) -> policy_set_service_pb2.PolicyShadow:
    given: dict[str, Any] = {
        "policy_count": 12,
        "author": "orgs/local/users/alice",
        "agreed": 1_000,
        "newly_denied": 3,
    }
    return policy_set_service_pb2.PolicyShadow(**given | fields)


def test_a_candidate_is_started_for_a_time_and_its_end_is_told(
    remit: Remit, edge: EdgeServer, folder: Path
) -> None:
    edge.answers["StartPolicyShadow"] = lambda _: policy_set_service_pb2.StartPolicyShadowResponse(
        shadow=a_shadow(agreed=0, newly_denied=0)
    )
    out = remit("policy", "shadow", "start", str(folder), "--for", "24h", "-m", "why").out
    assert "12 policies by orgs/local/users/alice" in out
    assert "sees decisions until" in out
    assert "of 0 decisions 0 would be denied" in out
    remit("policy", "shadow", "start", str(folder), "--request-id", "mine")
    first, second = edge.requests("StartPolicyShadow")
    assert (first.lifetime.seconds, first.message, first.files[0].text) == (86_400, "why", TEXT)
    assert first.request_id
    assert (second.HasField("lifetime"), second.request_id) == (False, "mine")
    edge.answers["StopPolicyShadow"] = lambda _: policy_set_service_pb2.StopPolicyShadowResponse(
        shadow=a_shadow(end=policy_set_service_pb2.PolicyShadow.END_STOPPED)
    )
    assert "stopped" in remit("policy", "shadow", "stop").out
    assert remit("policy", "shadow", "start", str(folder), "--for", "x").code == exit_codes.USAGE


def test_what_a_candidate_would_decide_is_shown(remit: Remit, edge: EdgeServer) -> None:
    change = policy_set_service_pb2.DecisionChange(
        count=3,
        action="tools.call",
        resource="tools/mail",
        before=permission_pb2.DECISION_ALLOW,
        after=permission_pb2.DECISION_APPROVAL_REQUIRED,
        policy_id="no-mail",
    )
    shadow = a_shadow(changes=[change], failed=2, dropped=7, unlisted=1)
    edge.answers["GetPolicyShadow"] = lambda _: policy_set_service_pb2.GetPolicyShadowResponse(
        shadow=shadow
    )
    out = remit("policy", "shadow", "show").out
    assert re.search(r"3 +allow +ask +tools.call +no-mail +tools/mail", out)
    assert "of 1,005 decisions 3 would be denied, 0 allowed and 0 asked about" in out
    for told in ("1 more, of other kinds", "2 could not be decided", "7 were too many"):
        assert told in out
    (document,) = remit("policy", "shadow", "show", "--json").documents
    assert (document["shadow"]["newly_denied"], document["shadow"]["failed"]) == (3, 2)


@pytest.mark.parametrize("end", policy_set_service_pb2.PolicyShadow.End.values()[1:])
def test_every_end_of_a_candidate_has_words(
    remit: Remit, edge: EdgeServer, end: policy_set_service_pb2.PolicyShadow.End.ValueType
) -> None:
    edge.answers["GetPolicyShadow"] = lambda _: policy_set_service_pb2.GetPolicyShadowResponse(
        shadow=a_shadow(end=end)
    )
    assert not remit("policy", "shadow", "show").out.endswith(": ended\n")
    assert ": ended" not in remit("policy", "shadow", "show").out
