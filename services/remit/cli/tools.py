"""`remit tools`: which tools there are, and what arguments each takes."""

from __future__ import annotations

import json
from typing import Final

import click

from remit.api.policy.v1 import permission_pb2
from remit.api.tools.v1 import tool_pb2, tool_service_pb2, tool_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect
from remit.cli.output import Column
from remit.cli.parameters import full_name, limit_option
from remit.cli.wording import last_part

_CLASS_PREFIX: Final = "PERMISSION_CLASS_"


def _class_of(tool: tool_pb2.Tool) -> str:
    known = permission_pb2.PermissionClass.DESCRIPTOR.values_by_number.get(tool.permission_class)
    return known.name.removeprefix(_CLASS_PREFIX).lower() if known else "unknown"


_COLUMNS: Final = (
    Column[tool_pb2.Tool]("tool", lambda t: last_part(t.name), keep=True),
    Column[tool_pb2.Tool]("class", _class_of, keep=True),
    Column[tool_pb2.Tool]("again", lambda t: "safe" if t.idempotent else "never", keep=True),
    Column[tool_pb2.Tool]("description", lambda t: t.description),
)


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  remit tools\n  remit tools show calculator\n"
    "  remit tools --json | jq -r '.tools[].name'",
)
@limit_option
@client_options
@click.pass_context
def command(context: click.Context, *, session: Session, limit: int) -> None:
    """List the tools: what each can do to the world, and whether a call in doubt may be repeated.

    Classes: none (pure computation), read, write, execute (acts on the world).
    """
    if context.invoked_subcommand is not None:
        return
    listing = session.run(lambda edge: _tools(edge, limit))
    session.output.listing("tools", listing.items, _COLUMNS, more=listing.more)


@command.command(
    "show", epilog="\b\nExamples:\n  remit tools show calculator\n  remit tools show clock --json"
)
@click.argument("name")
@client_options
def show(*, session: Session, name: str) -> None:
    """Show the tool NAME with the JSON Schema of its arguments."""
    tool = session.run(lambda edge: _tool(edge, full_name("tools", name)))
    if session.output.as_json:
        session.output.document(documents.of_message(tool))
        return
    session.output.facts(
        (
            ("tool", tool.name),
            ("class", _class_of(tool)),
            ("again", "safe: it is idempotent" if tool.idempotent else "never: not idempotent"),
            ("definition", f"sha256 {tool.definition_digest.hex()}"),
            ("description", tool.description),
        )
    )
    session.output.line("arguments", "bold")
    session.output.line(_indented(tool.input_schema_json))


def _indented(schema_json: str) -> str:
    return json.dumps(json.loads(schema_json), indent=2, ensure_ascii=False)


async def _tools(edge: Edge, limit: int) -> Listing[tool_pb2.Tool]:
    stub = edge.stub(tool_service_pb2_grpc.ToolServiceStub)

    async def fetch(size: int, token: str) -> tool_service_pb2.ListToolsResponse:
        request = tool_service_pb2.ListToolsRequest(page_size=size, page_token=token)
        return await stub.ListTools(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.tools, limit)


async def _tool(edge: Edge, name: str) -> tool_pb2.Tool:
    stub = edge.stub(tool_service_pb2_grpc.ToolServiceStub)
    request = tool_service_pb2.GetToolRequest(name=name)
    return (await stub.GetTool(request, metadata=edge.metadata)).tool
