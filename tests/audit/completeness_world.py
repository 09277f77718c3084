"""A log beside the claims of both enforcement services, a ledger and the journals of runs.

Log and claims are real databases, whose rows a test may change by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from remit.api.audit.v1 import audit_query_service_pb2, event_pb2, log_difference_pb2
from remit.api.cost.v1 import (
    cost_report_service_pb2,
    cost_report_service_pb2_grpc,
    reservation_pb2,
)
from remit.api.effects.v1 import attempt_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import inference_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.audit.completeness_check import CompletenessCheck
from remit.audit.completeness_walk import CompletenessWalk
from remit.audit.effect_events import EffectEvents
from remit.audit.stores_beside import ModelCalls, StoresBeside, ToolCalls
from remit.effects.attempts import AttemptReader
from remit.effects.settings import EffectSettings
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import RemitVerifier
from tests.audit.events import ORG, RUN, Log, make_event
from tests.cost.claim_world import InferenceAttempts, ToolAttempts
from tests.permissions import PERMITTED

_INSERT_CLAIM = """
    INSERT INTO effect_claims (claim, org, principal, method, key, body_digest, attempt)
    VALUES ($1, $2, 'alice', 'tools.call', $3, sha256('body'), 1)
"""
_INSERT_ATTEMPT = """
    INSERT INTO effect_attempts (claim, attempt, state, owner, lease_expires, subject, run, action,
        resource, trace_id, decision_id, reservation, intent_leaf, hold_nanos, outcome, cost_nanos,
        closed_time)
    VALUES ($1, 1, $2, 'one', clock_timestamp() + interval '1 hour', 'alice', $3, 'tools.call',
        'tools/calculator', '', 'decision', 'reservation', $4, 7, $5, 7,
        NULL)
"""
Step = audit_query_service_pb2.CheckCompletenessResponse
Kind = log_difference_pb2.LogDifference.Kind


def now() -> Timestamp:
    time = Timestamp()
    time.FromDatetime(datetime.now(UTC))
    return time


def claim_of(number: int) -> str:
    return f"claims/{UUID(int=number)}"


class NoKeys:
    """Nobody shows a remit here."""

    async def public_key(self, key_id: str) -> None:
        del key_id


@dataclass
class Ledger(cost_report_service_pb2_grpc.CostReportServiceServicer):
    """What the ledger posted."""

    records: dict[str, cost_report_service_pb2.ReservationRecord] = field(default_factory=dict)
    is_away: bool = False

    async def ListReservations(
        self, request: cost_report_service_pb2.ListReservationsRequest, context: Any
    ) -> cost_report_service_pb2.ListReservationsResponse:
        if self.is_away:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "cost is away")
        last = request.through.claim or "~"
        found = [
            record
            for claim, record in sorted(self.records.items())
            if request.after.claim < claim <= last
        ]
        size = request.page_size
        return cost_report_service_pb2.ListReservationsResponse(
            records=found[:size], has_more=len(found) > size, read_time=now()
        )


@dataclass
class Journals(agent_service_pb2_grpc.AgentServiceServicer):
    """What the journals of runs record."""

    calls: list[agent_service_pb2.RunCall] = field(default_factory=list)

    async def ListRunCalls(
        self, request: agent_service_pb2.ListRunCallsRequest, context: Any
    ) -> agent_service_pb2.ListRunCallsResponse:
        left = [call for call in self.calls if call.key.sequence > request.after.sequence]
        page = left[: request.page_size]
        return agent_service_pb2.ListRunCallsResponse(
            calls=page,
            has_more=len(left) > len(page),
            last=page[-1].key if page else None,
            read_time=now(),
        )


class CheckWorld:
    """Everything that a check compares."""

    def __init__(self, log: Log, inference: Database, tools: Database) -> None:
        self.log = log
        self.claims = {"inference": inference, "tools": tools}
        # What audit alone asks of them; the rest stays unimplemented.
        self.ledger, self.journals = Ledger(), Journals()  # type: ignore[abstract]
        self.mesh = MemoryMesh()
        for area, add, servicer in (
            (
                "inference",
                inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
                InferenceAttempts(AttemptReader(inference, EffectSettings())),  # type: ignore[abstract]
            ),
            (
                "tools",
                tool_service_pb2_grpc.add_ToolServiceServicer_to_server,
                ToolAttempts(AttemptReader(tools, EffectSettings())),  # type: ignore[abstract]
            ),
            (
                "cost",
                cost_report_service_pb2_grpc.add_CostReportServiceServicer_to_server,
                self.ledger,
            ),
            ("agent", agent_service_pb2_grpc.add_AgentServiceServicer_to_server, self.journals),
        ):
            self.mesh.add(_guard(area), add, servicer)
        client = self.mesh.as_caller(options_pb2.CALLER_AUDIT)
        self.beside = StoresBeside(
            (
                ModelCalls(client.stub(inference_service_pb2_grpc.InferenceServiceStub)),
                ToolCalls(client.stub(tool_service_pb2_grpc.ToolServiceStub)),
            ),
            client.stub(cost_report_service_pb2_grpc.CostReportServiceStub),
            client.stub(agent_service_pb2_grpc.AgentServiceStub),
        )
        self.events = EffectEvents(log.database)
        self.walk = CompletenessWalk(self.events, self.beside, open_limit_s=900)

    async def check(self, token: str = "", org: str = ORG) -> list[Step]:
        """The steps of a check."""
        return [step async for step in CompletenessCheck(self.walk).run(org, token)]

    async def kinds(self) -> list[tuple[str, str]]:
        """The differences, by kind and claim."""
        return [
            (Kind.Name(found.kind).removeprefix("KIND_"), found.claim)
            for step in await self.check()
            for found in step.differences
        ]

    async def effect(self, number: int, *, service: str = "tools", org: str = ORG) -> int:
        """A whole effect, each step in its order; returns the leaf of its intent."""
        leaf = await self.intent(number, org=org)
        await self.attempt(number, leaf, service=service, org=org)
        self.pay(number, service=service, org=org)
        await self.outcome(number, org=org)
        await self.changed("state = 'CLOSED', closed_time = clock_timestamp()", number, service)
        self.record(number, leaf, service=service, org=org)
        return leaf

    async def attempt(
        self, number: int, leaf: int, *, service: str = "tools", org: str = ORG
    ) -> None:
        """A claim that is DONE."""
        claim = str(UUID(int=number))
        await self.claims[service].execute(_INSERT_CLAIM, claim, org, claim)
        await self.claims[service].execute(_INSERT_ATTEMPT, claim, "DONE", RUN, leaf, "SUCCEEDED")

    async def intent(self, number: int, *, org: str = ORG) -> int:
        """The intent of an effect."""
        return await self._log(number, "intent", event_pb2.EVENT_KIND_INTENT, 0, org)

    async def outcome(
        self,
        number: int,
        outcome: event_pb2.Outcome.ValueType = event_pb2.OUTCOME_SUCCEEDED,
        *,
        org: str = ORG,
    ) -> int:
        """An outcome of an effect."""
        name = event_pb2.Outcome.Name(outcome).removeprefix("OUTCOME_").lower()
        return await self._log(number, name, event_pb2.EVENT_KIND_OUTCOME, outcome, org)

    def pay(self, number: int, *, service: str = "tools", org: str = ORG) -> None:
        """Posts its bill."""
        record = cost_report_service_pb2.ReservationRecord(
            key=attempt_pb2.AttemptKey(claim=claim_of(number), attempt=1),
            service=service,
            reservation=reservation_pb2.Reservation(account=f"{org}/users/alice", posted_nanos=7),
        )
        record.reservation.create_time.CopyFrom(now())
        self.ledger.records[claim_of(number)] = record

    def record(
        self, number: int, leaf: int, *, service: str = "tools", org: str = ORG
    ) -> agent_service_pb2.RunCall:
        """Its end, in the journal of its run."""
        resource = "tools/calculator" if service == "tools" else "models/m"
        call = agent_service_pb2.RunCall(
            key=agent_service_pb2.RunEventKey(run=RUN, sequence=len(self.journals.calls) + 1),
            org=org,
            resource=resource,
            claim=claim_of(number),
            intent_leaf_index=leaf,
            event_time=now(),
        )
        self.journals.calls.append(call)
        return call

    async def changed(self, assignments: str, number: int, service: str = "tools") -> None:
        """Changes an attempt by hand."""
        await self.claims[service].execute(
            f"UPDATE effect_attempts SET {assignments} WHERE claim = $1",  # noqa: S608 - a test's
            str(UUID(int=number)),
        )

    async def _log(self, number: int, end: str, kind: Any, outcome: Any, org: str) -> int:
        event = make_event(
            f"{UUID(int=number)}-1-{end}",
            kind=kind,
            outcome=outcome,
            claim=claim_of(number),
            attempt=1,
            org=org,
            subject=f"{org}/users/alice",
        )
        (place,) = await self.log.append(event)
        assert isinstance(place, int)
        return place


def _guard(area: str) -> Guard:
    return Guard(
        audience=options_pb2.Caller.Value(f"CALLER_{area.upper()}"),
        verifier=RemitVerifier(NoKeys(), SystemClock()),
        clock=SystemClock(),
        max_in_flight=100,
        permissions=PERMITTED,
    )


def total(steps: Sequence[Step], field_name: str) -> int:
    """A count over all steps."""
    return sum(getattr(step, field_name) for step in steps)
