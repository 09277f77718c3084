"""`remit users`: who is in the org, listed, disabled, and enabled again."""

from __future__ import annotations

from typing import Final

import click

from remit.api.policy.v1 import principal_pb2, principal_service_pb2, principal_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column
from remit.cli.parameters import limit_option
from remit.cli.wording import local_time

Principal = principal_pb2.Principal


def _kind(user: Principal) -> str:
    is_person = user.kind != principal_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT
    return "person" if is_person else "service account"


def _works(user: Principal) -> str:
    if user.HasField("disable_time"):
        return f"disabled {local_time(user.disable_time)}"
    return "yes"


def _used(user: Principal) -> str:
    return local_time(user.last_use_time) if user.HasField("last_use_time") else "never"


COLUMNS: Final = (
    Column[Principal]("user", lambda u: u.name, keep=True),
    Column[Principal]("is", _kind, keep=True),
    Column[Principal]("works", _works, keep=True),
    Column[Principal]("keys", lambda u: str(u.working_key_count), "right"),
    Column[Principal]("roles", lambda u: " ".join(u.roles) or "-"),
    Column[Principal]("teams", lambda u: " ".join(u.teams) or "-"),
    Column[Principal]("for", lambda u: u.display_name or "-"),
    Column[Principal]("key used", _used),
    Column[Principal]("since", lambda u: local_time(u.create_time)),
)
_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    epilog="\b\nExamples:\n  remit users list\n  remit users disable orgs/local/users/bob\n"
    "  remit users enable orgs/local/users/bob"
)
def command() -> None:
    """List the users of your org, disable them, and enable them again."""


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit users list\n"
    "  remit users list --json | jq -r '.principals[] | select(.disable_time) | .name'",
)
@limit_option
@client_options
def list_users(*, session: Session, limit: int) -> None:
    """List who is in your org, by name, with what their working API keys say of them.

    Whoever signs in with an identity provider is listed too, without what its tokens say. Teams and
    roles of a service account are those that it was made with.
    """
    listing = session.run(lambda edge: principals(edge, limit))
    session.output.listing("principals", listing.items, COLUMNS, more=listing.more)


@command.command("disable", epilog="\b\nExamples:\n  remit users disable orgs/local/users/bob")
@click.argument("name")
@_request_id
@client_options
def disable(*, session: Session, name: str, request_id: str) -> None:
    """Disable the user NAME: no API key and no sign-in of theirs counts any more.

    Their runs start no new effect. It holds within seconds, also for whoever never signed in yet.
    """
    request = principal_service_pb2.DisablePrincipalRequest(
        name=name, request_id=request_id or new_request_id()
    )
    _show(session, session.run(lambda edge: _disable(edge, request)))


@command.command("enable", epilog="\b\nExamples:\n  remit users enable orgs/local/users/bob")
@click.argument("name")
@_request_id
@client_options
def enable(*, session: Session, name: str, request_id: str) -> None:
    """Enable the user NAME again; API keys that were not revoked work as before."""
    request = principal_service_pb2.EnablePrincipalRequest(
        name=name, request_id=request_id or new_request_id()
    )
    _show(session, session.run(lambda edge: _enable(edge, request)))


def _show(session: Session, principal: Principal) -> None:
    if session.output.as_json:
        session.output.document({"principal": documents.of_message(principal)})
    elif principal.HasField("disable_time"):
        since = local_time(principal.disable_time)
        session.output.line(f"{principal.name} is disabled since {since}")
    else:
        session.output.line(f"{principal.name} is enabled")


async def principals(
    edge: Edge,
    limit: int,
    kind: principal_pb2.PrincipalKind.ValueType = principal_pb2.PRINCIPAL_KIND_UNSPECIFIED,
) -> Listing[Principal]:
    """Users and service accounts of the org, or those of one kind."""
    stub = edge.stub(principal_service_pb2_grpc.PrincipalServiceStub)

    async def fetch(size: int, token: str) -> principal_service_pb2.ListPrincipalsResponse:
        request = principal_service_pb2.ListPrincipalsRequest(
            page_size=size, page_token=token, kind=kind
        )
        return await stub.ListPrincipals(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.principals, limit)


async def _disable(edge: Edge, request: principal_service_pb2.DisablePrincipalRequest) -> Principal:
    stub = edge.stub(principal_service_pb2_grpc.PrincipalServiceStub)
    return (await stub.DisablePrincipal(request, metadata=edge.metadata)).principal


async def _enable(edge: Edge, request: principal_service_pb2.EnablePrincipalRequest) -> Principal:
    stub = edge.stub(principal_service_pb2_grpc.PrincipalServiceStub)
    return (await stub.EnablePrincipal(request, metadata=edge.metadata)).principal
