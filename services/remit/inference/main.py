"""Wires the inference service; no rules here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from remit.api.inference.v1 import inference_service_pb2_grpc, model_service_pb2_grpc
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.effects import open_gate, standing_effects
from remit.guardrails import INFERENCE, ServiceRules
from remit.inference.declarations import load_models
from remit.inference.generation import METHOD
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
    async with _models(settings) as models, Database.of(settings, "inference") as database:
        policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
        verifier = RemitVerifier(RemoteKeys(policy, clock), clock)
        gate, closer = open_gate("inference", database, settings, mesh, clock=clock, ids=ids)
        inference = InferenceService(
            models,
            gate,
            clock=clock,
            terms=settings.terms,
            rules=ServiceRules(INFERENCE, settings.guardrail_rules),
            heartbeat_s=settings.heartbeat_s,
        )
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
            background=[
                gate.run,
                closer.run,
                standing_effects(database, settings, action=METHOD),
            ],
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
