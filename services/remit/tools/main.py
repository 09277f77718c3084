"""Wires the tools service; no rules here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.effects import open_gate, standing_effects
from remit.guardrails import TOOLS, ServiceRules
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.host import Service
from remit.rpc.ids import IdSource
from remit.rpc.keys import RemoteKeys
from remit.rpc.mesh import Mesh
from remit.rpc.remits import RemitVerifier
from remit.tools.builtin import shipped_tools
from remit.tools.builtin.post_webhook import post_webhook_tool
from remit.tools.execution import open_execution
from remit.tools.registry import load_registry
from remit.tools.service import ACTION, ToolService
from remit.tools.settings import ToolsSettings
from remit.tools.webhook_keys import WebhookKeys


@contextlib.asynccontextmanager
async def open_service(
    settings: ToolsSettings, mesh: Mesh, *, clock: Clock, ids: IdSource
) -> AsyncIterator[Service]:
    """Load every tool, open the database and yield the wired service.

    Raises:
        RemitError: CONFIGURATION_INVALID for a tool that cannot be loaded or a database that does
            not fit, DEPENDENCY_UNAVAILABLE when the database does not answer.

    """
    webhook_keys = WebhookKeys.load(settings.webhook_key_files)
    own = post_webhook_tool(settings, webhook_keys)
    registry = load_registry((*shipped_tools(settings), own), settings.modules)
    verifier = RemitVerifier(
        RemoteKeys(mesh.stub(policy_service_pb2_grpc.PolicyServiceStub), clock), clock
    )
    async with (
        Database.of(settings, "tools") as database,
        open_execution(
            settings.execution_limits(), settings.result_limits(), drain_s=settings.drain_s
        ) as execution,
    ):
        gate, closer = open_gate("tools", database, settings, mesh, clock=clock, ids=ids)
        tools = ToolService(
            registry=registry,
            execution=execution,
            gate=gate,
            clock=clock,
            workspaces=settings.workspace,
            webhook_keys=webhook_keys,
            rules=ServiceRules(TOOLS, settings.guardrail_rules),
        )
        yield Service(
            area="tools",
            servicers=((tool_service_pb2_grpc.add_ToolServiceServicer_to_server, tools),),
            verifier=verifier,
            background=(
                gate.run,
                closer.run,
                standing_effects(database, settings, action=ACTION),
            ),
            ready=(database.ping,),
            drain=(gate.drain,),
        )
