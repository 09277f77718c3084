"""`remit models`: which models are declared, and whether each can be used now."""

from __future__ import annotations

from typing import Final

import click

from remit.api.inference.v1 import model_service_pb2, model_service_pb2_grpc
from remit.cli.client import Edge, Listing, Session, client_options, collect
from remit.cli.output import Column
from remit.cli.parameters import limit_option
from remit.cli.wording import last_part

_COLUMNS: Final = (
    Column[model_service_pb2.Model]("model", lambda m: last_part(m.name), keep=True),
    Column[model_service_pb2.Model]("engine", lambda m: m.engine, keep=True),
    Column[model_service_pb2.Model]("ready", lambda m: "yes" if m.ready else "NO"),
    Column[model_service_pb2.Model]("context", lambda m: f"{m.context_tokens:,}", "right"),
    Column[model_service_pb2.Model]("output", lambda m: f"{m.max_output_tokens:,}", "right"),
    Column[model_service_pb2.Model](
        "description", lambda m: m.description if m.ready else m.not_ready_reason
    ),
)


@click.command(
    epilog="\b\nExamples:\n  remit models\n"
    "  remit models --json | jq '.models[] | select(.ready | not)'"
)
@limit_option
@client_options
def command(*, session: Session, limit: int) -> None:
    """List the models, with their bounds in tokens; one that is not ready says why."""
    listing = session.run(lambda edge: _models(edge, limit))
    session.output.listing("models", listing.items, _COLUMNS, more=listing.more)


async def _models(edge: Edge, limit: int) -> Listing[model_service_pb2.Model]:
    stub = edge.stub(model_service_pb2_grpc.ModelServiceStub)

    async def fetch(size: int, token: str) -> model_service_pb2.ListModelsResponse:
        request = model_service_pb2.ListModelsRequest(page_size=size, page_token=token)
        return await stub.ListModels(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.models, limit)
