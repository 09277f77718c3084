"""`remit orgs`: the orgs of the mesh, for whoever operates it."""

from __future__ import annotations

from typing import Final

import click

from remit.api.policy.v1 import org_service_pb2, org_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column
from remit.cli.parameters import limit_option
from remit.cli.wording import local_time

Org = org_service_pb2.Org


def _works(org: Org) -> str:
    return f"disabled {local_time(org.disable_time)}" if org.HasField("disable_time") else "yes"


_COLUMNS: Final = (
    Column[Org]("org", lambda o: o.name, keep=True),
    Column[Org]("works", _works, keep=True),
    Column[Org]("since", lambda o: local_time(o.create_time)),
)
_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    epilog="\b\nExamples:\n  remit orgs list\n  remit orgs disable orgs/acme\n"
    "  remit orgs enable orgs/acme"
)
def command() -> None:
    """List the orgs of the mesh, disable them, and enable them again.

    For administrators of the org that operates the mesh.
    """


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit orgs list\n"
    "  remit orgs list --json | jq -r '.orgs[] | select(.disable_time) | .name'",
)
@limit_option
@client_options
def list_orgs(*, session: Session, limit: int) -> None:
    """List the orgs by name."""
    listing = session.run(lambda edge: _orgs(edge, limit))
    session.output.listing("orgs", listing.items, _COLUMNS, more=listing.more)


@command.command("disable", epilog="\b\nExamples:\n  remit orgs disable orgs/acme")
@click.argument("name")
@_request_id
@client_options
def disable(*, session: Session, name: str, request_id: str) -> None:
    """Disable the org NAME: no credential of anybody in it counts any more.

    Its runs start no new effect. It holds within seconds.
    """
    request = org_service_pb2.DisableOrgRequest(
        name=name, request_id=request_id or new_request_id()
    )
    _show(session, session.run(lambda edge: _disable(edge, request)))


@command.command("enable", epilog="\b\nExamples:\n  remit orgs enable orgs/acme")
@click.argument("name")
@_request_id
@client_options
def enable(*, session: Session, name: str, request_id: str) -> None:
    """Enable the org NAME again; whoever of it is disabled stays so."""
    request = org_service_pb2.EnableOrgRequest(name=name, request_id=request_id or new_request_id())
    _show(session, session.run(lambda edge: _enable(edge, request)))


def _show(session: Session, org: Org) -> None:
    if session.output.as_json:
        session.output.document({"org": documents.of_message(org)})
    elif org.HasField("disable_time"):
        session.output.line(f"{org.name} is disabled since {local_time(org.disable_time)}")
    else:
        session.output.line(f"{org.name} is enabled")


async def _orgs(edge: Edge, limit: int) -> Listing[Org]:
    stub = edge.stub(org_service_pb2_grpc.OrgServiceStub)

    async def fetch(size: int, token: str) -> org_service_pb2.ListOrgsResponse:
        request = org_service_pb2.ListOrgsRequest(page_size=size, page_token=token)
        return await stub.ListOrgs(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.orgs, limit)


async def _disable(edge: Edge, request: org_service_pb2.DisableOrgRequest) -> Org:
    stub = edge.stub(org_service_pb2_grpc.OrgServiceStub)
    return (await stub.DisableOrg(request, metadata=edge.metadata)).org


async def _enable(edge: Edge, request: org_service_pb2.EnableOrgRequest) -> Org:
    stub = edge.stub(org_service_pb2_grpc.OrgServiceStub)
    return (await stub.EnableOrg(request, metadata=edge.metadata)).org
