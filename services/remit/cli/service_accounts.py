"""`remit service-accounts`: principals that are no people, made and listed."""

from __future__ import annotations

import click

from remit.api.policy.v1 import principal_pb2, principal_service_pb2, principal_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Session, client_options, new_request_id
from remit.cli.keys import ROLES
from remit.cli.parameters import limit_option
from remit.cli.users import COLUMNS, Principal, principals


@click.group(
    epilog="\b\nExamples:\n  remit service-accounts create orgs/local/users/ci 'CI of core'\n"
    "  remit keys create nightly --user orgs/local/users/ci\n"
    "  remit service-accounts list\n  remit users disable orgs/local/users/ci"
)
def command() -> None:
    """Create and list service accounts: principals that are no people.

    Their API keys are those of `remit keys`, and `remit users disable` disables them. They approve
    nothing, and they make no API keys for people.
    """


@command.command(
    "create",
    epilog="\b\nExamples:\n  remit service-accounts create orgs/local/users/ci 'CI of core'\n"
    "  remit service-accounts create orgs/local/users/ops-bot 'Night shift'"
    " --team orgs/local/teams/ops --role member --role admin",
)
@click.argument("name")
@click.argument("display_name", metavar="PURPOSE")
@click.option("--team", default="", help="Team of all its API keys: orgs/ORG/teams/TEAM.")
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    default=("member",),
    show_default=True,
    help="Role that its API keys may have; none that you could not give yourself; repeatable.",
)
@click.option("--request-id", default="", help="Names this request, so that it can be repeated.")
@client_options
def create(
    *,
    session: Session,
    name: str,
    display_name: str,
    team: str,
    roles: tuple[str, ...],
    request_id: str,
) -> None:
    """Make the service account NAME, orgs/ORG/users/USER, for PURPOSE.

    NAME must name nobody yet, and names a service account for ever.
    """
    request = principal_service_pb2.CreateServiceAccountRequest(
        name=name,
        display_name=display_name,
        team=team,
        roles=roles,
        request_id=request_id or new_request_id(),
    )
    made = session.run(lambda edge: _create(edge, request))
    if session.output.as_json:
        session.output.document({"principal": documents.of_message(made)})
    else:
        session.output.table([made], COLUMNS)


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit service-accounts list\n"
    "  remit service-accounts list --json | jq -r '.principals[].name'",
)
@limit_option
@client_options
def list_accounts(*, session: Session, limit: int) -> None:
    """List the service accounts of your org by name, with the team and the roles of each."""
    kind = principal_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT
    listing = session.run(lambda edge: principals(edge, limit, kind))
    session.output.listing("principals", listing.items, COLUMNS, more=listing.more)


async def _create(
    edge: Edge, request: principal_service_pb2.CreateServiceAccountRequest
) -> Principal:
    stub = edge.stub(principal_service_pb2_grpc.PrincipalServiceStub)
    return (await stub.CreateServiceAccount(request, metadata=edge.metadata)).principal
