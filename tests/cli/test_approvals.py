"""`remit approvals`: what is asked of the server, and what people and scripts are told."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import struct_pb2

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import approval_pb2, approval_service_pb2
from remit.cli import exit_codes
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

ID = "01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
NAME = f"approvals/{ID}"
DIGEST = bytes(range(32))


def approval(**fields: Any) -> approval_pb2.Approval:
    arguments = struct_pb2.Struct()
    arguments.update({"to": "ann@example.com"})
    given: dict[str, Any] = {
        "name": NAME,
        "state": approval_pb2.APPROVAL_STATE_PENDING,
        "requester": "orgs/local/users/alice",
        "run": f"runs/{ID}",
        "action": "tools.call",
        "resource": "tools/send_mail",
        "arguments": arguments,
        "cost_bound_nanos": 5_000_000,
        "policy_ids": ["mail-with-approval"],
        "policy_reason": "needs approval: mail leaves the house only with approval",
        "policy_epoch": 7,
        "digest": DIGEST,
        "rules": [approval_pb2.ApprovalRule(approvers=["role:admin", "team:ops"], quorum=2)],
        "sequence": 3,
    }
    made = approval_pb2.Approval(**given | fields)
    made.expire_time.seconds = 1_800_000_000
    return made


def test_list(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListApprovals"] = lambda _: approval_service_pb2.ListApprovalsResponse(
        approvals=[approval()]
    )
    outcome = remit("approvals", "list")
    assert outcome.code == 0, outcome.err
    head, row = outcome.out.splitlines()
    assert head.split()[:3] == ["APPROVAL", "STATE", "WHAT"]
    for cell in (NAME, "PENDING", "tools.call tools/send_mail", "2 of role:admin or team:ops"):
        assert cell in row
    remit("approvals", "list", "--in-state", "all", "--run", f"runs/{ID}")
    pending, everything = edge.requests("ListApprovals")
    assert pending.state == approval_pb2.APPROVAL_STATE_PENDING
    assert (everything.state, everything.run) == (0, f"runs/{ID}")


def test_show_says_exactly_what_would_be_done(remit: Remit, edge: EdgeServer) -> None:
    voted = approval(
        votes=[
            approval_pb2.ApprovalVote(
                subject="orgs/local/users/olga",
                verdict=approval_pb2.APPROVAL_VERDICT_APPROVE,
                reason="fine",
            )
        ]
    )
    edge.answers["GetApproval"] = lambda _: approval_service_pb2.GetApprovalResponse(approval=voted)
    out = remit("approvals", "show", ID).out
    assert edge.requests("GetApproval")[0].name == NAME
    for part in ('{"to": "ann@example.com"}', DIGEST.hex(), "epoch 7", "olga APPROVE", "0.005 USD"):
        assert part in out, out
    (document,) = remit("approvals", "show", NAME, "--json").documents
    assert document["approval"]["arguments"] == {"to": "ann@example.com"}


def test_who_approves_is_shown_what_and_approves_that(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetApproval"] = lambda _: approval_service_pb2.GetApprovalResponse(
        approval=approval()
    )
    edge.answers["DecideApproval"] = lambda _: approval_service_pb2.DecideApprovalResponse(
        approval=approval(state=approval_pb2.APPROVAL_STATE_APPROVED)
    )
    outcome = remit("approvals", "approve", NAME, "--reason", "as agreed")
    (request,) = edge.requests("DecideApproval")
    assert (request.name, request.digest, request.reason) == (NAME, DIGEST, "as agreed")
    assert request.verdict == approval_pb2.APPROVAL_VERDICT_APPROVE
    assert request.request_id
    assert "ann@example.com" in outcome.out
    assert "APPROVED" in outcome.out


def test_a_digest_that_is_given_is_what_is_decided_about(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["DecideApproval"] = lambda _: approval_service_pb2.DecideApprovalResponse(
        approval=approval(state=approval_pb2.APPROVAL_STATE_DENIED)
    )
    options = ("--digest", DIGEST.hex(), "--request-id", "a")
    outcome = remit("approvals", "deny", NAME, "--reason", "no", *options, "--json")
    (request,) = edge.requests("DecideApproval")
    assert (request.digest, request.request_id) == (DIGEST, "a")
    assert request.verdict == approval_pb2.APPROVAL_VERDICT_DENY
    assert not edge.requests("GetApproval")
    assert outcome.documents[0]["approval"]["state"] == "APPROVAL_STATE_DENIED"


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "approvals/x"),
        ("deny", NAME),
        ("approve", NAME, "--digest", "xyz"),
        ("list", "--in-state", "lost"),
        ("watch", "--after", "-1"),
    ],
)
def test_a_wrong_command_line_asks_nothing(
    remit: Remit, edge: EdgeServer, arguments: tuple[str, ...]
) -> None:
    assert remit("approvals", *arguments).code == exit_codes.USAGE
    assert edge.calls == []


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("NOT_YOURS", exit_codes.NOT_ALLOWED),
        ("NOT_FOUND", exit_codes.NOT_FOUND),
        ("CLOSED", exit_codes.FAILED),
        ("MISMATCH", exit_codes.FAILED),
        ("ALREADY_GIVEN", exit_codes.FAILED),
    ],
)
def test_a_refusal_has_its_code(remit: Remit, edge: EdgeServer, reason: str, code: int) -> None:
    def refuse(_: Any) -> Any:
        raise RemitError(error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_APPROVAL_{reason}"), "x")

    edge.answers["DecideApproval"] = refuse
    options = ("--digest", DIGEST.hex())
    assert remit("approvals", "approve", NAME, *options).code == code


def breaking(request: Any) -> Any:
    """Breaks once before everything pending was shown, once later, then refuses."""
    message = approval_service_pb2.WatchApprovalsResponse
    if request.after_sequence == 9:
        raise RemitError(error_reason_pb2.ERROR_REASON_PERMISSION_DENIED, "not any more")
    yield message(sequence=3, approval=approval())
    if request.after_sequence == 0 and len(breaking.asked) < 2:  # type: ignore[attr-defined]
        raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")
    yield message(sequence=8)
    yield message(sequence=9, approval=approval(state=approval_pb2.APPROVAL_STATE_USED))


def test_a_watch_goes_on_after_a_break(remit: Remit, edge: EdgeServer) -> None:
    breaking.asked = edge.requests("WatchApprovals")  # type: ignore[attr-defined]

    def answer(request: Any) -> Any:
        breaking.asked = edge.requests("WatchApprovals")  # type: ignore[attr-defined]
        yield from breaking(request)

    edge.answers["WatchApprovals"] = answer
    done = remit("approvals", "watch")
    assert [r.after_sequence for r in edge.requests("WatchApprovals")] == [0, 0, 9]
    assert [line.split()[0] for line in done.out.splitlines()] == ["PENDING", "PENDING", "USED"]
    assert done.code == exit_codes.NOT_ALLOWED
