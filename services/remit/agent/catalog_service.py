"""AgentCatalogService: which agents there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from remit.agent.definitions import AgentCatalog
from remit.agent.service import name_of_token, page_size, page_token
from remit.agent.validation import check_name
from remit.api.agent.v1 import agent_catalog_service_pb2, agent_catalog_service_pb2_grpc
from remit.rpc.errors import check_all


@dataclass(frozen=True)
class AgentCatalogService(agent_catalog_service_pb2_grpc.AgentCatalogServiceServicer):
    """The agents that new runs may use."""

    catalog: AgentCatalog

    async def ListAgents(
        self,
        request: agent_catalog_service_pb2.ListAgentsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_catalog_service_pb2.ListAgentsResponse:
        """Lists the agents, by name."""
        check_all(
            partial(page_size, request.page_size),
            partial(name_of_token, "agent", request.page_token),
        )
        after = name_of_token("agent", request.page_token)
        size = page_size(request.page_size)
        rest = [agent for agent in self.catalog.all() if agent.full_name > after]
        more = len(rest) > size
        return agent_catalog_service_pb2.ListAgentsResponse(
            agents=[agent.to_proto() for agent in rest[:size]],
            next_page_token=page_token(rest[size - 1].full_name) if more else "",
        )

    async def GetAgent(
        self,
        request: agent_catalog_service_pb2.GetAgentRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_catalog_service_pb2.GetAgentResponse:
        """Returns one agent."""
        check_name("agent", "name", request.name)
        return agent_catalog_service_pb2.GetAgentResponse(
            agent=self.catalog.get(request.name).to_proto()
        )
