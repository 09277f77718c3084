"""ExplainRun among replicas: what each part says is in the answer, and who is away is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from remit.agent import explaining
from remit.api.agent.v1 import agent_service_pb2, explanation_pb2, run_pb2
from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    event_pb2,
)
from remit.api.cost.v1 import (
    cost_report_service_pb2,
    cost_report_service_pb2_grpc,
    reservation_pb2,
)
from remit.api.effects.v1 import attempt_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from tests.agent.conftest import Client, Replica, StartReplica, World
from tests.agent.outside import MODEL_COST_NANOS, TOOL_COST_NANOS, away, client_remit

Entry = explanation_pb2.ExplainedEntry
Ended = run_pb2.ModelCallEnded | run_pb2.ToolCallEnded
ALICE = "orgs/acme/users/alice"


@dataclass
class Log(audit_query_service_pb2_grpc.AuditQueryServiceServicer):
    """The log, as far as agent reads it, two events a page."""

    events: list[audit_query_service_pb2.LoggedEvent] = field(default_factory=list)
    asked: list[audit_query_service_pb2.ListRunEventsRequest] = field(default_factory=list)
    archived: list[event_pb2.ArchivedMonth] = field(default_factory=list)
    is_away: bool = False

    async def ListRunEvents(
        self, request: audit_query_service_pb2.ListRunEventsRequest, context: Any
    ) -> audit_query_service_pb2.ListRunEventsResponse:
        if self.is_away:
            raise away("audit")
        self.asked.append(request)
        before = request.before_leaf_index if request.HasField("before_leaf_index") else 2**60
        left = [each for each in self.events[::-1] if each.leaf_index < before]
        return audit_query_service_pb2.ListRunEventsResponse(
            events=left[:2], has_more=len(left) > 2, archived_months=self.archived
        )


@dataclass
class Ledger(cost_report_service_pb2_grpc.CostReportServiceServicer):
    """The ledger, as far as agent reads it, one reservation a page."""

    records: list[cost_report_service_pb2.ReservationRecord] = field(default_factory=list)
    asked: list[cost_report_service_pb2.ListReservationsRequest] = field(default_factory=list)
    is_away: bool = False

    async def ListReservations(
        self, request: cost_report_service_pb2.ListReservationsRequest, context: Any
    ) -> cost_report_service_pb2.ListReservationsResponse:
        if self.is_away:
            raise away("cost")
        self.asked.append(request)
        left = [each for each in self.records if each.key.claim > request.after.claim]
        return cost_report_service_pb2.ListReservationsResponse(
            records=left[:1], has_more=len(left) > 1
        )


@dataclass
class Parts:
    """What the parts around a replica say of the effects of its runs."""

    world: World
    log: Log
    ledger: Ledger

    def know(self, events: Sequence[run_pb2.RunEvent]) -> None:
        """Every effect of a journal, as they would have it once it is settled."""
        ended = [each for event in events for each in effects_of(event)]
        for number, each in enumerate(ended):
            key = attempt_pb2.AttemptKey(claim=each.claim, attempt=1)
            facts = {"claim": each.claim, "attempt": 1, "run": events[0].run}
            intent = event_pb2.Event(kind=event_pb2.EVENT_KIND_INTENT, **facts)  # type: ignore[arg-type]
            outcome = event_pb2.Event(
                kind=event_pb2.EVENT_KIND_OUTCOME,
                outcome=event_pb2.OUTCOME_SUCCEEDED,
                trace_id="ab" * 16,
                **facts,  # type: ignore[arg-type]
            )
            self.log.events += [
                audit_query_service_pb2.LoggedEvent(leaf_index=10 * number, event=intent),
                audit_query_service_pb2.LoggedEvent(leaf_index=10 * number + 1, event=outcome),
            ]
            reservation = reservation_pb2.Reservation(
                state=reservation_pb2.Reservation.STATE_SETTLED,
                hold_nanos=1_000,
                posted_nanos=each.cost_nanos,
            )
            self.ledger.records.append(
                cost_report_service_pb2.ReservationRecord(key=key, reservation=reservation)
            )
            is_tool = isinstance(each, run_pb2.ToolCallEnded)
            service = self.world.tools if is_tool else self.world.inference
            service.effects.attempts[each.claim, 1] = attempt_pb2.Attempt(
                key=key,
                state=attempt_pb2.Attempt.STATE_CLOSED,
                outcome=event_pb2.OUTCOME_SUCCEEDED,
                decision=f"decisions/{number}",
            )
        self.ledger.records.sort(key=lambda record: record.key.claim)


def effects_of(event: run_pb2.RunEvent) -> list[Ended]:
    both = (event.model_call_ended, event.tool_call_ended)
    return [each for each in both if each.claim]


def parts_around(replica: Replica, world: World) -> Parts:
    # What agent alone asks of them; the rest stays unimplemented.
    parts = Parts(world, Log(), Ledger())  # type: ignore[abstract]

    def guard(area: options_pb2.Caller.ValueType) -> Guard:
        return Guard(
            audience=area,
            verifier=world.keys.verifier(),
            clock=SystemClock(),
            max_in_flight=1000,
        )

    replica.mesh.add(
        guard(options_pb2.CALLER_AUDIT),
        audit_query_service_pb2_grpc.add_AuditQueryServiceServicer_to_server,
        parts.log,
    )
    replica.mesh.add(
        guard(options_pb2.CALLER_COST),
        cost_report_service_pb2_grpc.add_CostReportServiceServicer_to_server,
        parts.ledger,
    )
    return parts


async def explained(client: Client, name: str, **page: Any) -> agent_service_pb2.ExplainRunResponse:
    return await client.runs.ExplainRun(
        agent_service_pb2.ExplainRunRequest(name=name, **page), metadata=client.metadata
    )


async def a_run(replica: Replica, parts: Parts) -> str:
    client = replica.client()
    run = await client.create()
    parts.know(await client.watch(run.name))
    return run.name


async def test_every_effect_stands_with_decision_money_and_leaves(
    replica: StartReplica, world: World
) -> None:
    one = await replica()
    parts = parts_around(one, world)
    name = await a_run(one, parts)
    answer = await explained(one.client(), name)
    assert not answer.missing
    assert (answer.run.name, answer.run.task, answer.run.result) == (name, "", "")
    effects = [entry for entry in answer.entries if entry.attempts]
    kinds = [Entry.KIND_MODEL_CALL, Entry.KIND_TOOL_CALL, Entry.KIND_MODEL_CALL]
    assert [entry.kind for entry in effects] == kinds
    for number, entry in enumerate(effects):
        (attempt,) = entry.attempts
        assert attempt.decision.name == f"decisions/{number}"
        assert attempt.intent.leaf_index == 10 * number
        assert [leaf.leaf_index for leaf in attempt.outcomes] == [10 * number + 1]
        assert attempt.reservation.posted_nanos == entry.cost_nanos
    assert [e.service for entry in effects for e in entry.attempts] == [
        "inference",
        "tools",
        "inference",
    ]
    assert answer.entries[0].kind == Entry.KIND_CREATED
    assert answer.entries[-1].kind == Entry.KIND_ENDED
    assert answer.trace_ids == ["ab" * 16]
    bill = 2 * MODEL_COST_NANOS + TOOL_COST_NANOS
    assert (answer.bill.run_nanos, answer.bill.posted_nanos) == (bill, bill)
    assert not answer.bill.differences
    # The log is told who reads, by the remit of who asked; the ledger whose run it is.
    reader = await world.keys.verifier().verify(
        parts.log.asked[0].remit, audience=options_pb2.CALLER_AUDIT
    )
    assert reader.subject == ALICE
    assert {request.org for request in parts.ledger.asked} == {"orgs/acme"}


async def test_pages_hold_every_entry_once(replica: StartReplica, world: World) -> None:
    one = await replica()
    name = await a_run(one, parts_around(one, world))
    whole = await explained(one.client(), name)
    entries: list[Entry] = []
    token = ""
    while True:
        page = await explained(one.client(), name, page_size=2, page_token=token)
        assert len(page.entries) <= 2
        assert (page.bill, page.total_entries) == (whole.bill, len(whole.entries))
        entries += page.entries
        token = page.next_page_token
        if not token:
            break
    assert entries == list(whole.entries)


@pytest.mark.parametrize("part", ["audit", "cost", "inference", "tools"])
async def test_a_part_that_is_away_is_named(replica: StartReplica, world: World, part: str) -> None:
    one = await replica()
    parts = parts_around(one, world)
    name = await a_run(one, parts)
    parts.log.is_away, parts.ledger.is_away = part == "audit", part == "cost"
    world.inference.effects.away = part == "inference"
    world.tools.effects.away = part == "tools"
    answer = await explained(one.client(), name)
    (missing,) = answer.missing
    assert (missing.part, missing.reason) == (part, "DEPENDENCY_UNAVAILABLE")
    attempts = [attempt for entry in answer.entries for attempt in entry.attempts]
    assert len(attempts) == 3
    has_log = any(attempt.HasField("intent") for attempt in attempts)
    assert has_log == (part != "audit")
    assert any(a.HasField("reservation") for a in attempts) == (part != "cost")
    assert not answer.bill.differences


async def test_months_that_left_the_log_are_named(replica: StartReplica, world: World) -> None:
    """Where the log has no more of the run than of one of its effects, nobody takes it for all."""
    one = await replica()
    parts = parts_around(one, world)
    name = await a_run(one, parts)
    months = [
        event_pb2.ArchivedMonth(month=month, first_index=first, last_index=first + 9, events=10)
        for month, first in (("2026-08", 10), ("2026-07", 0))
    ]
    parts.log.events = parts.log.events[-2:]
    parts.log.archived = months
    answer = await explained(one.client(), name)
    assert list(answer.archived_months) == months[::-1]
    assert not answer.missing
    attempts = [attempt for entry in answer.entries for attempt in entry.attempts]
    assert [attempt.HasField("intent") for attempt in attempts] == [False, False, True]
    assert all(attempt.HasField("reservation") for attempt in attempts)
    parts.log.archived = []
    assert not (await explained(one.client(), name)).archived_months


async def test_nobody_is_told_of_anothers_run(replica: StartReplica, world: World) -> None:
    one = await replica()
    parts = parts_around(one, world)
    name = await a_run(one, parts)
    asked = len(parts.log.asked)
    for other in (client_remit("orgs/acme/users/bob"), client_remit("orgs/b/users/bob", "admin")):
        with pytest.raises(RemitError) as caught:
            await explained(one.client(other), name)
        assert caught.value.reason == reasons.ERROR_REASON_RUN_NOT_FOUND
    assert len(parts.log.asked) == asked
    admin = client_remit("orgs/acme/users/root", "admin")
    assert (await explained(one.client(admin), name)).entries


@pytest.mark.parametrize(
    "wrong", [{"page_size": -1}, {"page_token": "0"}, {"page_token": "x"}, {"page_token": "٣"}]
)
async def test_a_page_that_there_is_not_is_refused(
    replica: StartReplica, world: World, wrong: dict[str, Any]
) -> None:
    one = await replica()
    name = await a_run(one, parts_around(one, world))
    with pytest.raises(RemitError) as caught:
        await explained(one.client(), name, **wrong)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_a_run_with_too_many_records_is_refused_and_not_cut(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await replica()
    name = await a_run(one, parts_around(one, world))
    monkeypatch.setattr(explaining, "MOST_RECORDS", 3)
    with pytest.raises(RemitError) as caught:
        await explained(one.client(), name)
    assert caught.value.reason == reasons.ERROR_REASON_TOO_LARGE
