"""Policy, cost and audit as the gate sees them, and an outside world that counts what touches it.

The three speak the real contracts over the in-memory mesh and keep the rules that the gate relies
on: idempotent by (claim, attempt), money resolved at most once, an event id has one content.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from remit.api.audit.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    event_pb2,
    subject_key_service_pb2_grpc,
)
from remit.api.cost.v1 import cost_service_pb2, cost_service_pb2_grpc, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import permission_pb2, policy_service_pb2, policy_service_pb2_grpc
from remit.api.usage.v1 import usage_pb2
from remit.effects import EffectGate, EffectRequest, EffectResult, EffectSettings, Outcome, Permit
from remit.effects.closing import Closer
from remit.effects.permits import PermitSource
from remit.effects.sealing import Sealing
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.pricing import bound_nanos, cost_nanos
from remit.rpc.calls import Call, serving
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.ids import SystemIds
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import Remit, RemitVerifier
from remit.subject_keys import SubjectKeys
from tests.subject_keys import SubjectKeyService, Subjects
from tests.waiting import PATIENCE, in_time

PRICE = reservation_pb2.Price(version="test", call_nanos=100)


class NoKeys:
    """No remit is verified here: the services under test take them from the request."""

    async def public_key(self, _key_id: str) -> Ed25519PublicKey | None:
        return None


@dataclass
class World:
    """What has happened outside the gate."""

    denied: bool = False
    out_of_money: bool = False
    away: set[str] = field(default_factory=set)
    """Areas that answer UNAVAILABLE."""
    of_another: bool = False
    """Whether the run is another worker's by now: policy fences whoever asks."""
    wants_approval: bool = False
    """Whether policy wants a person to approve each effect."""
    approved: set[bytes] = field(default_factory=set)
    """Digests of actions that people approved."""
    used: dict[bytes, int] = field(default_factory=dict)
    """By which attempt an approval was used last, by digest."""
    broke_at_nanos: int | None = None
    """Above it no hold is extended; None: there is money for all."""
    deaf_to: set[str] = field(default_factory=set)
    """RPCs that take place and whose answers are lost."""
    stuck: set[str] = field(default_factory=set)
    """Claims that cost refuses to settle."""
    holds: dict[str, reservation_pb2.Reservation] = field(default_factory=dict)
    questions: list[policy_service_pb2.CheckPermissionRequest] = field(default_factory=list)
    """What policy was asked."""
    events: dict[str, event_pb2.Event] = field(default_factory=dict)
    subjects: Subjects = field(default_factory=Subjects)
    """The keys of subjects."""
    touched: Counter[str] = field(default_factory=Counter)
    """Effects performed, by claim and attempt."""
    faults: list[str] = field(default_factory=list)
    """Breaches of the promise that the world itself noticed."""

    def check_up(self, area: str) -> None:
        if area in self.away:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, f"{area} is away"
            )

    def open_holds(self) -> list[str]:
        held = reservation_pb2.Reservation.STATE_HELD
        return [name for name, hold in self.holds.items() if hold.state == held]

    async def effect(self, permit: Permit) -> EffectResult:
        """Touches the world, after looking whether it was allowed to."""
        attempt = f"{permit.claim.removeprefix('claims/')}-{permit.attempt}"
        if f"{attempt}-intent" not in self.events:
            self.faults.append(f"{attempt}: no intent before the effect")
        if f"reservations/{attempt}" not in self.open_holds():
            self.faults.append(f"{attempt}: no money held before the effect")
        self.touched[attempt] += 1
        return EffectResult(Outcome.SUCCEEDED, usage_pb2.Usage(calls=1), payload=b"answer")


class Policy(policy_service_pb2_grpc.PolicyServiceServicer):
    """Allows unless the world says otherwise."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def BatchCheckPermissions(
        self, request: policy_service_pb2.BatchCheckPermissionsRequest, _context: Any
    ) -> policy_service_pb2.BatchCheckPermissionsResponse:
        self._world.check_up("policy")
        return policy_service_pb2.BatchCheckPermissionsResponse(
            results=[self._decide(question) for question in request.requests]
        )

    def _decide(
        self, question: policy_service_pb2.CheckPermissionRequest
    ) -> policy_service_pb2.CheckPermissionResult:
        self._world.questions.append(question)
        if self._world.of_another:
            error = RemitError(error_reason_pb2.ERROR_REASON_FENCED, "the run is another's")
            return policy_service_pb2.CheckPermissionResult(error=error.to_status())
        response = policy_service_pb2.CheckPermissionResponse(
            decision=self._decision(question),
            decision_id=f"decisions/{question.claim}-{question.attempt}",
            reason="because",
            approval=f"approvals/{question.claim.removeprefix('claims/')}"
            if self._world.wants_approval and question.action_digest
            else "",
        )
        response.valid_for.FromSeconds(10)
        return policy_service_pb2.CheckPermissionResult(response=response)

    def _decision(
        self, question: policy_service_pb2.CheckPermissionRequest
    ) -> permission_pb2.Decision.ValueType:
        if self._world.denied:
            return permission_pb2.DECISION_DENY
        digest = question.action_digest
        if self._world.wants_approval and digest not in self._world.approved:
            return permission_pb2.DECISION_APPROVAL_REQUIRED
        if self._world.wants_approval:
            if self._world.used.setdefault(digest, question.attempt) > question.attempt:
                return permission_pb2.DECISION_DENY
            self._world.used[digest] = question.attempt
        return permission_pb2.DECISION_ALLOW


class Cost(cost_service_pb2_grpc.CostServiceServicer):
    """Holds and resolves, each at most once."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def BatchReserveBudgets(
        self, request: cost_service_pb2.BatchReserveBudgetsRequest, _context: Any
    ) -> cost_service_pb2.BatchReserveBudgetsResponse:
        self._world.check_up("cost")
        return cost_service_pb2.BatchReserveBudgetsResponse(
            results=[self._reserve(asked) for asked in request.requests]
        )

    async def BatchExtendReservations(
        self, request: cost_service_pb2.BatchExtendReservationsRequest, _context: Any
    ) -> cost_service_pb2.BatchExtendReservationsResponse:
        self._world.check_up("cost")
        results = [self._extend(asked) for asked in request.requests]
        if "extend" in self._world.deaf_to:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "lost")
        return cost_service_pb2.BatchExtendReservationsResponse(results=results)

    async def BatchSettleReservations(
        self, request: cost_service_pb2.BatchSettleReservationsRequest, _context: Any
    ) -> cost_service_pb2.BatchSettleReservationsResponse:
        self._world.check_up("cost")
        settled = reservation_pb2.Reservation.STATE_SETTLED
        return cost_service_pb2.BatchSettleReservationsResponse(
            results=[self._resolve(r.claim, r.attempt, settled) for r in request.requests]
        )

    async def BatchReleaseReservations(
        self, request: cost_service_pb2.BatchReleaseReservationsRequest, _context: Any
    ) -> cost_service_pb2.BatchReleaseReservationsResponse:
        self._world.check_up("cost")
        released = reservation_pb2.Reservation.STATE_RELEASED
        return cost_service_pb2.BatchReleaseReservationsResponse(
            results=[self._resolve(r.claim, r.attempt, released) for r in request.requests]
        )

    def _reserve(
        self, asked: cost_service_pb2.ReserveBudgetRequest
    ) -> cost_service_pb2.ReservationResult:
        name = _reservation(asked.claim, asked.attempt)
        if self._world.out_of_money:
            return _failed(error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED, "no money")
        held = reservation_pb2.Reservation(
            name=name,
            state=reservation_pb2.Reservation.STATE_HELD,
            hold_nanos=cost_nanos(PRICE, asked.bound),
            price=PRICE,
        )
        known = self._world.holds.setdefault(name, held)
        if known.state != reservation_pb2.Reservation.STATE_HELD:
            return _failed(error_reason_pb2.ERROR_REASON_RESERVATION_CLOSED, "too late")
        return cost_service_pb2.ReservationResult(reservation=known)

    def _extend(
        self, asked: cost_service_pb2.ExtendReservationRequest
    ) -> cost_service_pb2.ReservationResult:
        hold = self._world.holds[_reservation(asked.claim, asked.attempt)]
        if hold.state != reservation_pb2.Reservation.STATE_HELD:
            return _failed(error_reason_pb2.ERROR_REASON_RESERVATION_CLOSED, "too late")
        wanted_nanos = bound_nanos(PRICE, asked.bound)
        limit_nanos = self._world.broke_at_nanos
        if limit_nanos is not None and wanted_nanos > limit_nanos:
            return _failed(error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED, "no more money")
        hold.hold_nanos = wanted_nanos
        return cost_service_pb2.ReservationResult(reservation=hold)

    def _resolve(
        self, claim: str, attempt: int, state: reservation_pb2.Reservation.State.ValueType
    ) -> cost_service_pb2.ReservationResult:
        if claim in self._world.stuck:
            return _failed(error_reason_pb2.ERROR_REASON_INTERNAL, "cannot be settled")
        name = _reservation(claim, attempt)
        tombstone = reservation_pb2.Reservation(name=name, state=state)
        hold = self._world.holds.setdefault(name, tombstone)
        if hold.state not in {reservation_pb2.Reservation.STATE_HELD, state}:
            return _failed(error_reason_pb2.ERROR_REASON_RESERVATION_CLOSED, "resolved otherwise")
        hold.state = state
        return cost_service_pb2.ReservationResult(reservation=hold)


class Audit(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events by id."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, _context: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        self._world.check_up("audit")
        return audit_service_pb2.AppendEventsResponse(
            results=[self._append(entry.event) for entry in request.entries]
        )

    async def AppendOutcomes(
        self, request: audit_service_pb2.AppendOutcomesRequest, _context: Any
    ) -> audit_service_pb2.AppendOutcomesResponse:
        self._world.check_up("audit")
        return audit_service_pb2.AppendOutcomesResponse(
            results=[self._append(entry.event) for entry in request.entries]
        )

    def _append(self, event: event_pb2.Event) -> audit_service_pb2.AppendResult:
        self._world.events.setdefault(event.event_id, event)
        index = list(self._world.events).index(event.event_id)
        return audit_service_pb2.AppendResult(leaf_index=index)


def connected(
    world: World, real_audit: audit_service_pb2_grpc.AuditServiceServicer | None = None
) -> MemoryMesh:
    """The three services over the in-memory mesh; `real_audit` in place of the world's own."""
    mesh = MemoryMesh(PATIENCE)
    guard = Guard(
        audience=options_pb2.CALLER_COST,
        verifier=RemitVerifier(NoKeys(), SystemClock()),
        clock=SystemClock(),
        max_in_flight=1000,
    )
    # The gate calls the batch RPCs alone; the others stay unimplemented here.
    policy = Policy(world)  # type: ignore[abstract]
    cost = Cost(world)  # type: ignore[abstract]
    mesh.add(guard, policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, policy)
    mesh.add(guard, cost_service_pb2_grpc.add_CostServiceServicer_to_server, cost)
    mesh.add(
        guard, audit_service_pb2_grpc.add_AuditServiceServicer_to_server, real_audit or Audit(world)
    )
    mesh.add(
        guard,
        subject_key_service_pb2_grpc.add_SubjectKeyServiceServicer_to_server,
        SubjectKeyService(world.subjects),
    )
    return mesh


@dataclass
class Replica:
    """One enforcement service's gate."""

    gate: EffectGate
    closer: Closer
    store: ClaimStore


LEASE_S = 60.0
"""Longer than any test: where a lease is to run out, the test says so (`lapse`)."""


def settings(lease_s: float = LEASE_S, stop_grace_s: float = 0.05) -> EffectSettings:
    """Settings of the gate with a grace that a test can outwait."""
    return EffectSettings(
        effect_lease_s=lease_s,
        effect_sweep_s=0.01,
        effect_stop_grace_s=stop_grace_s,
        effect_closing_linger_s=0.01,
    )


def replica(
    store: ClaimStore,
    world: World,
    lease_s: float = LEASE_S,
    stop_grace_s: float = 0.05,
    real_audit: audit_service_pb2_grpc.AuditServiceServicer | None = None,
) -> Replica:
    """A gate over a store and the world."""
    client = connected(world, real_audit).as_caller(options_pb2.CALLER_TOOLS)
    policy = client.stub(policy_service_pb2_grpc.PolicyServiceStub)
    cost = client.stub(cost_service_pb2_grpc.CostServiceStub)
    audit = client.stub(audit_service_pb2_grpc.AuditServiceStub)
    chosen = settings(lease_s, stop_grace_s)
    keys = client.stub(subject_key_service_pb2_grpc.SubjectKeyServiceStub)
    sealing = Sealing(SubjectKeys(keys, SystemClock()), SystemIds())
    closer = Closer(store, cost, audit, sealing, SystemClock(), chosen)
    permits = PermitSource(policy, cost, audit, sealing, SystemClock(), chosen)
    gate = EffectGate(store, permits, closer, clock=SystemClock(), ids=SystemIds(), settings=chosen)
    return Replica(gate, closer, store)


async def lapse(claims: Database, owner: str) -> None:
    """The leases of an owner run out now."""
    await claims.execute(
        "UPDATE effect_attempts SET lease_expires = clock_timestamp() WHERE owner = $1", owner
    )


def a_request(key: str = "key", body: str = "body", *, idempotent: bool = False) -> EffectRequest:
    """A tool call of one user."""
    now = datetime.now(UTC)
    remit = Remit(
        remit_id="r",
        subject="orgs/acme/users/alice",
        team="",
        agent="",
        run="",
        presenter=options_pb2.CALLER_PUBLIC,
        audience=frozenset({options_pb2.CALLER_TOOLS}),
        tools=frozenset(),
        models=frozenset(),
        account="orgs/acme/users/alice",
        max_cost_nanos=None,
        fencing_token=0,
        policy_epoch=1,
        roles=frozenset(),
        key_id="k",
        issue_time=now,
        expire_time=now + timedelta(minutes=5),
    )
    return EffectRequest(
        remit=remit,
        remit_token="token",
        method="tools.call",
        key=key,
        body_digest=hashlib.sha256(body.encode()).digest(),
        action="tools.call",
        resource="tools/send_email",
        bound=usage_pb2.Usage(calls=1),
        idempotent=idempotent,
    )


@contextlib.contextmanager
def a_call(seconds: float = 30.0) -> Iterator[None]:
    """A call in progress, as the server's guard makes one."""
    call = Call(
        method="/remit.api.tools.v1.ToolService/CallTool",
        caller=options_pb2.CALLER_PUBLIC,
        remit=None,
        remit_token="token",
        deadline=time.monotonic() + seconds,
        trace_id="0" * 31 + "1",
    )
    with serving(call):
        yield


async def settled_down(replica: Replica) -> None:
    """Lets the replica finish what it closes in the background."""
    await in_time(replica.gate.drain(), 10)


def _reservation(claim: str, attempt: int) -> str:
    return f"reservations/{claim.removeprefix('claims/')}-{attempt}"


def _failed(
    reason: error_reason_pb2.ErrorReason.ValueType, message: str
) -> cost_service_pb2.ReservationResult:
    return cost_service_pb2.ReservationResult(error=RemitError(reason, message).to_status())
