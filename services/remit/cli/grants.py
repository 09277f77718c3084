"""`remit grants`: tools for a user, a team or an agent, without writing a policy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import click

from remit.api.policy.v1 import grant_pb2, grant_service_pb2, grant_service_pb2_grpc, permission_pb2
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column
from remit.cli.parameters import Moment, limit_option, timestamp
from remit.cli.wording import local_time, moment

ToolGrant = grant_pb2.ToolGrant
_CLASSES: Final = ("none", "read", "write", "execute")
_PREFIX: Final = "PERMISSION_CLASS_"


def _what(grant: ToolGrant) -> str:
    if grant.tool:
        return grant.tool
    known = permission_pb2.PermissionClass.DESCRIPTOR.values_by_number.get(grant.permission_class)
    return f"up to {known.name.removeprefix(_PREFIX).lower() if known else 'unknown'}"


def _state(grant: ToolGrant) -> str:
    if grant.HasField("revoke_time"):
        return f"revoked {local_time(grant.revoke_time)}"
    if not grant.HasField("expire_time"):
        return "yes"
    word = "until" if moment(grant.expire_time) > datetime.now(UTC) else "ended"
    return f"{word} {local_time(grant.expire_time)}"


_COLUMNS: Final = (
    Column[ToolGrant]("grant", lambda g: g.name, keep=True),
    Column[ToolGrant]("to", lambda g: g.principal, keep=True),
    Column[ToolGrant]("tools", _what, keep=True),
    Column[ToolGrant]("in force", _state, keep=True),
    Column[ToolGrant]("granted", lambda g: local_time(g.create_time), keep=True),
    Column[ToolGrant]("by", lambda g: g.author),
)
_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    epilog="\b\nExamples:\n  remit grants add orgs/local/users/bob --tool tools/send_email\n"
    "  remit grants list\n"
    "  remit grants revoke orgs/local/grants/0198a5b0-0000-7000-8000-000000000000"
)
def command() -> None:
    """Grant tools to a user, a team or an agent; list and revoke grants.

    A grant is a policy that permits: what a `forbid` of the policies forbids stays forbidden.
    """


@command.command(
    "add",
    epilog="\b\nExamples:\n  remit grants add orgs/local/users/bob --tool tools/send_email\n"
    "  remit grants add orgs/local/teams/core --class execute --expires 2027-01-01\n"
    "  remit grants add agents/clerk --tool tools/write_file",
)
@click.argument("principal")
@click.option("--tool", default="", help="Tool to grant: tools/TOOL.")
@click.option(
    "--class",
    "permission_class",
    type=click.Choice(_CLASSES),
    help="Grant every tool up to this class instead.",
)
@click.option("--expires", type=Moment(), help="From when on it permits nothing.  [default: never]")
@_request_id
@client_options
def add(
    *,
    session: Session,
    principal: str,
    tool: str,
    permission_class: str | None,
    expires: datetime | None,
    request_id: str,
) -> None:
    """Grant PRINCIPAL a tool or a class of tools; agents/AGENT means whoever of the org runs it."""
    if bool(tool) == bool(permission_class):
        message = "state --tool or --class, and not both"
        raise click.UsageError(message)
    request = grant_service_pb2.GrantToolAccessRequest(
        principal=principal,
        tool=tool,
        permission_class=_class_of(permission_class),
        expire_time=timestamp(expires),
        request_id=request_id or new_request_id(),
    )
    _show(session, session.run(lambda edge: _add(edge, request)))


@command.command(
    "revoke",
    epilog="\b\nExamples:\n"
    "  remit grants revoke orgs/local/grants/0198a5b0-0000-7000-8000-000000000000",
)
@click.argument("name", metavar="GRANT")
@_request_id
@client_options
def revoke(*, session: Session, name: str, request_id: str) -> None:
    """Revoke GRANT; the next question is decided without it."""
    request = grant_service_pb2.RevokeToolAccessRequest(
        name=name, request_id=request_id or new_request_id()
    )
    _show(session, session.run(lambda edge: _revoke(edge, request)))


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit grants list\n"
    "  remit grants list --principal orgs/local/users/bob --json | jq -r '.grants[].policy'",
)
@click.option("--principal", default="", help="Only the grants of this user, team or agent.")
@limit_option
@client_options
def list_grants(*, session: Session, principal: str, limit: int) -> None:
    """List the grants of your org, revoked and ended ones included, newest first."""
    listing = session.run(lambda edge: _grants(edge, principal, limit))
    session.output.listing("grants", listing.items, _COLUMNS, more=listing.more)


def _class_of(word: str | None) -> permission_pb2.PermissionClass.ValueType:
    if word is None:
        return permission_pb2.PERMISSION_CLASS_UNSPECIFIED
    return permission_pb2.PermissionClass.Value(f"{_PREFIX}{word.upper()}")


def _show(session: Session, grant: ToolGrant) -> None:
    if session.output.as_json:
        session.output.document({"grant": documents.of_message(grant)})
        return
    session.output.table([grant], _COLUMNS)
    session.output.line(grant.policy)


async def _add(edge: Edge, request: grant_service_pb2.GrantToolAccessRequest) -> ToolGrant:
    stub = edge.stub(grant_service_pb2_grpc.GrantServiceStub)
    return (await stub.GrantToolAccess(request, metadata=edge.metadata)).grant


async def _revoke(edge: Edge, request: grant_service_pb2.RevokeToolAccessRequest) -> ToolGrant:
    stub = edge.stub(grant_service_pb2_grpc.GrantServiceStub)
    return (await stub.RevokeToolAccess(request, metadata=edge.metadata)).grant


async def _grants(edge: Edge, principal: str, limit: int) -> Listing[ToolGrant]:
    stub = edge.stub(grant_service_pb2_grpc.GrantServiceStub)

    async def fetch(size: int, token: str) -> grant_service_pb2.ListToolGrantsResponse:
        request = grant_service_pb2.ListToolGrantsRequest(
            page_size=size, page_token=token, principal=principal
        )
        return await stub.ListToolGrants(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.grants, limit)
