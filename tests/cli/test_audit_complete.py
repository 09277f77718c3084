"""`remit audit verify --complete`: what it prints, how it ends, that it goes on after a break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remit.api.audit.v1 import log_difference_pb2
from remit.api.audit.v1.audit_query_service_pb2 import CheckCompletenessResponse
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cli import checks
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

FOUND = log_difference_pb2.LogDifference(
    kind=log_difference_pb2.LogDifference.KIND_OUTCOME_MISSING,
    claim="claims/0198a5b0-0000-7000-8000-000000000001",
    attempt=2,
    service="tools",
    leaf_index=12,
    explanation="its claim is closed as SUCCEEDED, and the log has no such outcome",
    next_step="Find which database was restored.",
)


def step(percent: int, token: str, **fields: Any) -> CheckCompletenessResponse:
    made = CheckCompletenessResponse(percent=percent, resume_token=token, tree_size=40, **fields)
    made.cut_time.seconds = 1_795_000_000
    return made


def away() -> RemitError:
    return RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the tools service is away")


def test_a_log_that_is_complete(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["CheckCompleteness"] = lambda _: [
        step(40, "a", attempts=1_000, events=2_000, reservations=1_000),
        step(70, "b", attempts=234, events=400, after_cut=3),
        step(100, "b", calls=900),
    ]
    outcome = remit("audit", "verify", "--complete")
    assert outcome.code == 0
    told = "complete: 1,234 attempts, 2,400 entries, 1,000 reservations and 900 calls of journals"
    assert told in outcome.out
    (document,) = remit("audit", "verify", "--complete", "--json").documents
    assert document.pop("cut_time").startswith("2026-11-18T")
    assert document == {
        "complete": True,
        "tree_size": 40,
        "attempts": 1_234,
        "events": 2_400,
        "reservations": 1_000,
        "calls": 900,
        "after_cut": 3,
        "differences": [],
        "more": False,
        "differences_elsewhere": 0,
    }


def test_differences_are_named_and_explained(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["CheckCompleteness"] = lambda _: [
        step(70, "a", differences=[FOUND]),
        step(100, "a", differences_elsewhere=1),
    ]
    outcome = remit("audit", "verify", "--complete")
    assert outcome.code == 9
    for text in (FOUND.claim, "outcome missing", "12", FOUND.explanation, FOUND.next_step):
        assert text in outcome.out
    assert "NOT complete, in 2 places" in outcome.out
    assert "1 differences of other orgs" in outcome.out
    checked = remit("audit", "verify", "--complete", "--json")
    assert checked.code == 9
    assert checked.documents[0]["differences"][0]["leaf_index"] == 12


def test_a_check_that_breaks_off_goes_on_and_counts_nothing_twice(
    remit: Remit, edge: EdgeServer
) -> None:
    def answer(request: Any) -> Iterator[CheckCompletenessResponse]:
        if not request.resume_token:
            yield step(30, "a", attempts=1)
            yield step(30, "a", attempts=10)
            raise away()
        assert request.resume_token == "a"
        yield step(70, "b", attempts=10)
        yield step(100, "b", attempts=100)

    edge.answers["CheckCompleteness"] = answer
    (document,) = remit("audit", "verify", "--complete", "--json").documents
    assert document["attempts"] == 111


def test_a_part_that_stays_away_is_no_success(remit: Remit, edge: EdgeServer) -> None:
    def answer(_: Any) -> Iterator[CheckCompletenessResponse]:
        yield step(30, "")
        raise away()

    edge.answers["CheckCompleteness"] = answer
    assert remit("audit", "verify", "--complete").code == 3
    assert len(edge.requests("CheckCompleteness")) == checks.MOST_RESUMES + 1


def test_a_stream_that_is_cut_is_no_success(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["CheckCompleteness"] = lambda _: [step(30, "")]
    assert remit("audit", "verify", "--complete").code == 3


@pytest.mark.parametrize("more", [["--key", "{file}"], ["{file}"], ["--checkpoint", "{file}"]])
def test_it_takes_no_file(remit: Remit, edge: EdgeServer, tmp_path: Path, more: list[str]) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    arguments = [each.format(file=file) for each in more]
    outcome = remit("audit", "verify", "--complete", *arguments)
    assert outcome.code == 2
    assert "--complete" in outcome.err
    assert not edge.calls


def test_without_it_a_file_and_a_key_are_needed(bare_remit: Remit, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert "FILE" in bare_remit("audit", "verify").err
    outcome = bare_remit("audit", "verify", str(file))
    assert (outcome.code, "--key" in outcome.err) == (2, True)
