"""`remit explain`: the story that people read, the document that machines do, and the exit code."""

from __future__ import annotations

from typing import Any

import pytest

from remit.api.agent.v1 import explanation_pb2, run_pb2
from remit.api.agent.v1.agent_service_pb2 import ExplainRunResponse
from remit.api.audit.v1 import event_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

RUN = "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
CLAIM = "claims/0198a5b0-0000-7000-8000-000000000001"
START_S = 1_795_000_000
Entry = explanation_pb2.ExplainedEntry


def entry(number: int, kind: Entry.Kind.ValueType, text: str, **more: Any) -> Entry:
    made = Entry(number=number, sequence=number, kind=kind, text=text, **more)
    made.start_time.seconds = START_S + number
    return made


def call() -> Entry:
    attempt = explanation_pb2.ExplainedAttempt(
        key=attempt_pb2.AttemptKey(claim=CLAIM, attempt=1),
        text="attempt 1 was allowed by decisions/d-1; took place; the log has its intent 12",
        outcome=event_pb2.OUTCOME_SUCCEEDED,
        reservation=reservation_pb2.Reservation(
            state=reservation_pb2.Reservation.STATE_SETTLED,
            hold_nanos=520_000,
            posted_nanos=391_000,
            overrun_nanos=1,
            price=reservation_pb2.Price(version="ab" * 32),
        ),
        price_source="file",
        used=usage_pb2.Usage(input_tokens=1_000, output_tokens=20),
    )
    made = entry(2, Entry.KIND_MODEL_CALL, "asked models/m, which gave an answer", step=1)
    made.end_time.seconds = made.start_time.seconds + 2
    made.attempts.append(attempt)
    return made


def explanation(**more: Any) -> ExplainRunResponse:
    run = run_pb2.Run(name=RUN, agent="agents/assistant", subject="orgs/local/users/alice")
    run.state, run.cost_nanos = run_pb2.RUN_STATE_SUCCEEDED, 391_000
    run.create_time.seconds = START_S
    facts: dict[str, Any] = {
        "run": run,
        "entries": [entry(1, Entry.KIND_CREATED, "alice started the run"), call()],
        "bill": explanation_pb2.ExplainedBill(run_nanos=391_000, posted_nanos=391_000),
        "trace_ids": ["ab" * 16],
        "total_entries": 2,
    } | more
    return ExplainRunResponse(**facts)


def test_people_read_a_story(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ExplainRun"] = lambda _: explanation()
    outcome = remit("explain", RUN.removeprefix("runs/"))
    assert outcome.code == 0
    lines = [line.strip() for line in outcome.out.splitlines()]
    assert lines[0] == f"{RUN}  succeeded"
    assert lines[2] == f"trace {'ab' * 16}"
    assert "+1.00 s  alice started the run" in lines
    assert "+2.00 s  step 1: asked models/m, which gave an answer (2.00 s)" in lines
    assert call().attempts[0].text in lines
    money = next(line for line in lines if line.startswith(CLAIM))
    assert "held 0.00052 USD, posted 0.000391 USD, overrun 0.000000001 USD" in money
    assert f"at price {'ab' * 6} (file), 1,000 tokens in, 20 out" in money
    assert lines[-1] == "that adds up to the nano"
    (request,) = edge.requests("ExplainRun")
    assert request.name == RUN


def test_pages_are_joined(remit: Remit, edge: EdgeServer) -> None:
    pages = {
        "": explanation(entries=[entry(1, Entry.KIND_CREATED, "one")], next_page_token="1"),
        "1": explanation(entries=[entry(2, Entry.KIND_ENDED, "two")]),
    }
    edge.answers["ExplainRun"] = lambda request: pages[request.page_token]
    outcome = remit("explain", "--json", RUN)
    (document,) = outcome.documents
    assert [each["text"] for each in document["entries"]] == ["one", "two"]
    assert not document.get("next_page_token")


def test_an_archived_month_is_said_with_where_it_is_read(remit: Remit, edge: EdgeServer) -> None:
    july, august = (
        event_pb2.ArchivedMonth(month=month, first_index=first, last_index=first + 1_999)
        for month, first in (("2026-07", 1_000), ("2026-08", 3_000))
    )
    pages = {
        "": explanation(archived_months=[july], next_page_token="1"),
        "1": explanation(archived_months=[july, august]),  # which was dropped meanwhile
    }
    edge.answers["ExplainRun"] = lambda request: pages[request.page_token]
    outcome = remit("explain", RUN)
    assert outcome.code == 0
    said = [line for line in outcome.out.splitlines() if line.startswith("ARCHIVED")]
    assert ["2026-07" in said[0], "2026-08" in said[1]] == [True, True]
    assert (
        "leaves 1,000 to 2,999 are in the tiles, and their payloads in 2026-07.archive" in said[0]
    )
    (document,) = remit("explain", "--json", RUN).documents
    assert [each["month"] for each in document["archived_months"]] == ["2026-07", "2026-08"]


def test_a_part_that_is_away_is_said_and_is_no_success(remit: Remit, edge: EdgeServer) -> None:
    missing = explanation_pb2.MissingPart(
        part="cost", reason="DEPENDENCY_UNAVAILABLE", message="cost cannot be reached"
    )
    edge.answers["ExplainRun"] = lambda _: explanation(missing=[missing])
    outcome = remit("explain", RUN)
    assert outcome.code == 3
    assert "MISSING: cost could not be asked" in outcome.out
    assert "nobody added it up" in outcome.out
    assert "adds up to the nano" not in outcome.out


@pytest.mark.parametrize(
    ("nanos", "said"),
    [(-1_000, "with 1 differences named"), (-999, "that does NOT add up")],
)
def test_the_bill_is_added_up_before_peoples_eyes(
    remit: Remit, edge: EdgeServer, nanos: int, said: str
) -> None:
    difference = explanation_pb2.BillDifference(nanos=nanos, claim=CLAIM, text="it is in doubt")
    bill = explanation_pb2.ExplainedBill(
        run_nanos=391_000, posted_nanos=90_000, sub_runs_nanos=300_000, differences=[difference]
    )
    edge.answers["ExplainRun"] = lambda _: explanation(bill=bill)
    outcome = remit("explain", RUN)
    assert said in outcome.out
    assert f"{CLAIM}: it is in doubt" in outcome.out


def test_what_strangers_wrote_commands_no_terminal(remit: Remit, edge: EdgeServer) -> None:
    wrong = entry(1, Entry.KIND_TOOL_CALL, "failed: \x1b[2J", reason="TOOL_FAILED")
    edge.answers["ExplainRun"] = lambda _: explanation(entries=[wrong])
    assert "\x1b" not in remit("explain", RUN).out


def test_an_error_ends_with_its_code(remit: Remit, edge: EdgeServer) -> None:
    def refuse(_: Any) -> ExplainRunResponse:
        raise RemitError(reasons.ERROR_REASON_RUN_NOT_FOUND, "there is no such run")

    edge.answers["ExplainRun"] = refuse
    assert remit("explain", RUN).code == 5
