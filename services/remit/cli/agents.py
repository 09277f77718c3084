"""`remit agents`: which agents there are."""

from __future__ import annotations

from typing import Final

import click

from remit.api.agent.v1 import agent_catalog_service_pb2, agent_catalog_service_pb2_grpc, agent_pb2
from remit.cli.client import Edge, Listing, Session, client_options, collect
from remit.cli.output import Column
from remit.cli.parameters import limit_option
from remit.cli.wording import last_part, seconds, span, usd


def _models(agent: agent_pb2.Agent) -> str:
    """The model, and the one that is asked where it fails."""
    models = [agent.model, *([agent.fallback_model] if agent.fallback_model else [])]
    return " > ".join(map(last_part, models))


_COLUMNS: Final = (
    Column[agent_pb2.Agent]("agent", lambda a: last_part(a.name), keep=True),
    Column[agent_pb2.Agent]("model", _models, keep=True),
    Column[agent_pb2.Agent]("tools", lambda a: " ".join(map(last_part, a.tools)) or "-"),
    Column[agent_pb2.Agent]("steps", lambda a: str(a.max_steps), "right"),
    Column[agent_pb2.Agent]("time", lambda a: span(seconds(a.max_duration)), "right", keep=True),
    Column[agent_pb2.Agent]("cost", lambda a: usd(a.max_cost_nanos), "right", keep=True),
    Column[agent_pb2.Agent]("description", lambda a: a.description),
)


@click.command(
    epilog="\b\nExamples:\n  remit agents\n  remit agents --json | jq -r '.agents[].name'"
)
@limit_option
@client_options
def command(*, session: Session, limit: int) -> None:
    """List the agents with the model, the tools and the limits of each."""
    listing = session.run(lambda edge: _agents(edge, limit))
    session.output.listing("agents", listing.items, _COLUMNS, more=listing.more)


async def _agents(edge: Edge, limit: int) -> Listing[agent_pb2.Agent]:
    stub = edge.stub(agent_catalog_service_pb2_grpc.AgentCatalogServiceStub)

    async def fetch(size: int, token: str) -> agent_catalog_service_pb2.ListAgentsResponse:
        request = agent_catalog_service_pb2.ListAgentsRequest(page_size=size, page_token=token)
        return await stub.ListAgents(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.agents, limit)
