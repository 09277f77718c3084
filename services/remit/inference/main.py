"""Wires the inference service; no rules here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from remit.api.audit.v1 import audit_service_pb2_grpc
from remit.api.cost.v1 import cost_service_pb2_grpc
from remit.api.inference.v1 import inference_service_pb2_grpc, model_service_pb2_grpc
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.effects import EffectGate
from remit.effects.closing import Closer
from remit.effects.permits import PermitSource
from remit.effects.store import ClaimStore
from remit.inference.declarations import load_models
from remit.inference.models import ModelCatalog, build_catalog
from remit.inference.service import InferenceService, ModelService
from remit.inference.settings import InferenceSettings
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.host import Service
from remit.rpc.ids import IdSource
from remit.rpc.keys import RemoteKeys
from remit.rpc.mesh import Mesh
from remit.rpc.remits import RemitVerifier


@contextlib.asynccontextmanager
async def open_service(
    settings: InferenceSettings, mesh: Mesh, *, clock: Clock, ids: IdSource
) -> AsyncIterator[Service]:
    """Reads the models file, opens the database and yields the wired service.

    Raises CONFIGURATION_INVALID for a models file or a database that does not fit, and
    DEPENDENCY_UNAVAILABLE when the database does not answer.
    """
    async with _models(settings) as models, _database(settings) as database:
        policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
        verifier = RemitVerifier(RemoteKeys(policy, clock), clock)
        gate, closer = _gate(database, settings, mesh, clock, ids)
        inference = InferenceService(models, gate, heartbeat_s=settings.heartbeat_s)
        yield Service(
            "inference",
            servicers=[
                (
                    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
                    inference,
                ),
                (model_service_pb2_grpc.add_ModelServiceServicer_to_server, ModelService(models)),
            ],
            verifier=verifier,
            background=[gate.run, closer.run],
            ready=[database.ping],
            drain=[gate.drain],
        )


@contextlib.asynccontextmanager
async def _models(settings: InferenceSettings) -> AsyncIterator[ModelCatalog]:
    catalog = build_catalog(
        load_models(settings.models_file),
        max_answer_bytes=settings.max_answer_bytes,
        max_connections=settings.max_provider_connections,
    )
    try:
        yield catalog
    finally:
        await catalog.close()


def _database(settings: InferenceSettings) -> contextlib.AbstractAsyncContextManager[Database]:
    return Database.open(
        settings.dsn,
        pool_size=settings.pool_size,
        statement_timeout_s=settings.statement_timeout_s,
        allow_unsafe_durability=settings.allow_unsafe_durability,
    )


def _gate(
    database: Database, settings: InferenceSettings, mesh: Mesh, clock: Clock, ids: IdSource
) -> tuple[EffectGate, Closer]:
    policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
    cost = mesh.stub(cost_service_pb2_grpc.CostServiceStub)
    audit = mesh.stub(audit_service_pb2_grpc.AuditServiceStub)
    store = ClaimStore(
        database,
        # A new name at each start: only a process that lives may call a claim its own.
        owner=f"inference-{settings.replica}-{ids.uuid7()}",
        lease_s=settings.effect_lease_s,
        max_batch=settings.effect_max_batch,
        max_queue=settings.effect_max_queue,
    )
    closer = Closer(store, cost, audit, clock, settings)
    permits = PermitSource(policy, cost, audit, clock, settings)
    return (
        EffectGate(store, permits, closer, clock=clock, ids=ids, settings=settings),
        closer,
    )
