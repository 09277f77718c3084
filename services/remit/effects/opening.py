"""Wires the gate of an enforcement service."""

from __future__ import annotations

from remit.api.audit.v1 import audit_service_pb2_grpc, subject_key_service_pb2_grpc
from remit.api.cost.v1 import cost_service_pb2_grpc
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.effects.closing import Closer
from remit.effects.gate import EffectGate
from remit.effects.permits import PermitSource
from remit.effects.sealing import Sealing
from remit.effects.settings import EffectSettings
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.ids import IdSource
from remit.rpc.mesh import Mesh
from remit.subject_keys import SubjectKeys


def open_gate(
    area: str,
    database: Database,
    settings: EffectSettings,
    mesh: Mesh,
    *,
    clock: Clock,
    ids: IdSource,
) -> tuple[EffectGate, Closer]:
    """The gate over the area's claims, and the closer whose sweep must run beside it."""
    policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
    cost = mesh.stub(cost_service_pb2_grpc.CostServiceStub)
    audit = mesh.stub(audit_service_pb2_grpc.AuditServiceStub)
    store = ClaimStore(
        database,
        # A new name at each start: only a process that lives may call a claim its own.
        owner=f"{area}-{settings.replica}-{ids.uuid7()}",
        lease_s=settings.effect_lease_s,
        max_batch=settings.effect_max_batch,
        max_queue=settings.effect_max_queue,
    )
    keys = SubjectKeys(mesh.stub(subject_key_service_pb2_grpc.SubjectKeyServiceStub), clock)
    sealing = Sealing(keys, ids)
    closer = Closer(store, cost, audit, sealing, clock, settings)
    permits = PermitSource(policy, cost, audit, sealing, clock, settings)
    gate = EffectGate(store, permits, closer, clock=clock, ids=ids, settings=settings)
    return gate, closer
