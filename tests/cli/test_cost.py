"""`remit cost check`: what it prints, how it ends, and that it goes on after a break."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from remit.api.cost.v1 import ledger_difference_pb2
from remit.api.cost.v1.cost_report_service_pb2 import CheckLedgerResponse
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cli import checks
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

FOUND = ledger_difference_pb2.LedgerDifference(
    kind=ledger_difference_pb2.LedgerDifference.KIND_BILL_DIFFERS,
    claim="claims/0198a5b0-0000-7000-8000-000000000001",
    attempt=1,
    service="tools",
    account="orgs/local/users/alice",
    explanation="999 nano-USD are posted, but its claim was billed 1000",
    next_step="Find who changed it.",
)


def step(percent: int, token: str, **fields: Any) -> CheckLedgerResponse:
    return CheckLedgerResponse(percent=percent, resume_token=token, **fields)


def away() -> RemitError:
    return RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the tools service is away")


def test_a_ledger_that_agrees(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["CheckLedger"] = lambda _: [
        step(45, "a", reservations=1_000, attempts=1_200),
        step(90, "b", reservations=234, attempts=1, resolved_late=2),
        step(100, "b"),
    ]
    outcome = remit("cost", "check")
    assert outcome.code == 0
    assert "ledger and claims agree: 1,234 reservations and 1,201 attempts" in outcome.out
    assert "2 effects in doubt were resolved" in outcome.out
    (document,) = remit("cost", "check", "--json").documents
    assert document == {
        "agrees": True,
        "reservations": 1_234,
        "attempts": 1_201,
        "resolved_late": 2,
        "differences": [],
        "more": False,
        "differences_elsewhere": 0,
    }


def test_differences_are_named_and_explained(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["CheckLedger"] = lambda _: [
        step(90, "a", reservations=2, attempts=2, differences=[FOUND]),
        step(100, "a", differences_elsewhere=1),
    ]
    outcome = remit("cost", "check")
    assert outcome.code == 9
    for text in (FOUND.claim, "bill differs", FOUND.explanation, FOUND.next_step, "1 differences"):
        assert text in outcome.out
    assert "DIFFER in 2 places" in outcome.out
    checked = remit("cost", "check", "--json")
    (document,) = checked.documents
    assert checked.code == 9
    assert not document["agrees"]
    assert document["differences_elsewhere"] == 1
    assert document["differences"][0]["explanation"] == FOUND.explanation


def test_a_difference_of_another_org_alone_is_no_agreement(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["CheckLedger"] = lambda _: [step(100, "a", differences_elsewhere=1)]
    outcome = remit("cost", "check")
    assert outcome.code == 9
    assert "other orgs" in outcome.out


def test_what_is_too_much_to_show_is_counted(
    remit: Remit, edge: EdgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MOST_SHOWN", 2)
    edge.answers["CheckLedger"] = lambda _: [
        step(50, "a", differences=[FOUND] * 2),
        step(100, "b", differences=[FOUND] * 3),
    ]
    outcome = remit("cost", "check")
    assert outcome.out.count(FOUND.claim) == 2
    assert "there are 3 more" in outcome.out
    (document,) = remit("cost", "check", "--json").documents
    assert (len(document["differences"]), document["more"]) == (2, True)


def test_a_check_goes_on_after_a_break_and_counts_nothing_twice(
    remit: Remit, edge: EdgeServer
) -> None:
    def breaking(request: Any) -> Iterator[CheckLedgerResponse]:
        if not request.resume_token:
            yield step(30, "a", reservations=1, attempts=1)
            yield step(60, "a", reservations=0, attempts=5, differences=[FOUND])
            raise away()
        assert request.resume_token == "a"
        yield step(60, "a", reservations=0, attempts=5, differences=[FOUND])
        yield step(90, "b", reservations=7, attempts=7)
        yield step(100, "b")

    edge.answers["CheckLedger"] = breaking
    (document,) = remit("cost", "check", "--json").documents
    assert (document["reservations"], document["attempts"]) == (8, 13)
    assert len(document["differences"]) == 1
    assert [r.resume_token for r in edge.requests("CheckLedger")] == ["", "a"]


def test_what_cannot_be_checked_is_no_agreement(remit: Remit, edge: EdgeServer) -> None:
    def never(_: Any) -> Iterator[CheckLedgerResponse]:
        yield step(30, "")
        raise away()

    edge.answers["CheckLedger"] = never
    outcome = remit("cost", "check")
    assert outcome.code == 3
    assert "agree" not in outcome.out
    assert len(edge.requests("CheckLedger")) == 1 + checks.MOST_RESUMES


def test_a_stream_that_was_cut_like_a_whole_one_is_no_agreement(
    remit: Remit, edge: EdgeServer
) -> None:
    edge.answers["CheckLedger"] = lambda _: [step(30, "")]
    outcome = remit("cost", "check")
    assert outcome.code == 3
    assert "agree" not in outcome.out


def test_who_may_not_check_learns_so(remit: Remit, edge: EdgeServer) -> None:
    def denied(_: Any) -> Iterator[CheckLedgerResponse]:
        raise RemitError(reasons.ERROR_REASON_PERMISSION_DENIED, "no policy permits it")
        yield

    edge.answers["CheckLedger"] = denied
    assert remit("cost", "check").code == 4
