"""Wires the tools service; no rules here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from remit.api.audit.v1 import audit_service_pb2_grpc
from remit.api.cost.v1 import cost_service_pb2_grpc
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.effects import EffectGate
from remit.effects.closing import Closer
from remit.effects.permits import PermitSource
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.host import Service
from remit.rpc.ids import IdSource
from remit.rpc.keys import RemoteKeys
from remit.rpc.mesh import Mesh
from remit.rpc.remits import RemitVerifier
from remit.tools.builtin import shipped_tools
from remit.tools.execution import open_execution
from remit.tools.registry import load_registry
from remit.tools.service import ToolService
from remit.tools.settings import ToolsSettings


@contextlib.asynccontextmanager
async def open_service(
    settings: ToolsSettings, mesh: Mesh, *, clock: Clock, ids: IdSource
) -> AsyncIterator[Service]:
    """Load every tool, open the database and yield the wired service.

    Raises:
        RemitError: CONFIGURATION_INVALID for a tool that cannot be loaded or a database that does
            not fit, DEPENDENCY_UNAVAILABLE when the database does not answer.

    """
    registry = load_registry(shipped_tools(settings), settings.modules)
    verifier = RemitVerifier(
        RemoteKeys(mesh.stub(policy_service_pb2_grpc.PolicyServiceStub), clock), clock
    )
    async with (
        Database.open(
            settings.dsn,
            pool_size=settings.pool_size,
            statement_timeout_s=settings.statement_timeout_s,
            allow_unsafe_durability=settings.allow_unsafe_durability,
        ) as database,
        open_execution(
            settings.execution_limits(), settings.result_limits(), drain_s=settings.drain_s
        ) as execution,
    ):
        gate, closer = _gate(database, settings, mesh, clock, ids)
        tools = ToolService(
            registry=registry,
            execution=execution,
            gate=gate,
            clock=clock,
            workspaces=settings.workspace,
        )
        yield Service(
            area="tools",
            servicers=((tool_service_pb2_grpc.add_ToolServiceServicer_to_server, tools),),
            verifier=verifier,
            background=(gate.run, closer.run),
            ready=(database.ping,),
            drain=(gate.drain,),
        )


def _gate(
    database: Database, settings: ToolsSettings, mesh: Mesh, clock: Clock, ids: IdSource
) -> tuple[EffectGate, Closer]:
    policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
    cost = mesh.stub(cost_service_pb2_grpc.CostServiceStub)
    audit = mesh.stub(audit_service_pb2_grpc.AuditServiceStub)
    store = ClaimStore(
        database,
        # A new name at each start: only a process that lives may call a claim its own.
        owner=f"tools-{settings.replica}-{ids.uuid7()}",
        lease_s=settings.effect_lease_s,
        max_batch=settings.effect_max_batch,
        max_queue=settings.effect_max_queue,
    )
    closer = Closer(store, cost, audit, clock, settings)
    permits = PermitSource(policy, cost, audit, clock, settings)
    gate = EffectGate(store, permits, closer, clock=clock, ids=ids, settings=settings)
    return gate, closer
