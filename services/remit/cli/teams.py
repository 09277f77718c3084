"""`remit teams`: the teams of the org."""

from __future__ import annotations

from typing import Final

import click

from remit.api.policy.v1 import principal_pb2, principal_service_pb2, principal_service_pb2_grpc
from remit.cli.client import Edge, Listing, Session, client_options, collect
from remit.cli.output import Column
from remit.cli.parameters import limit_option
from remit.cli.wording import local_time

Team = principal_pb2.Team


def _since(team: Team) -> str:
    return local_time(team.create_time) if team.HasField("create_time") else "only granted"


_COLUMNS: Final = (
    Column[Team]("team", lambda t: t.name, keep=True),
    Column[Team]("members", lambda t: str(t.member_count), "right"),
    Column[Team]("keys", lambda t: str(t.working_key_count), "right"),
    Column[Team]("grants", lambda t: str(t.grant_count), "right"),
    Column[Team]("since", _since),
)


@click.group(
    epilog="\b\nExamples:\n  remit teams list\n"
    "  remit grants add orgs/local/teams/core --tool tools/send_email\n"
    "  remit grants list --principal orgs/local/teams/core"
)
def command() -> None:
    """List the teams of your org.

    A team is whoever's credential names it: an API key that was made with --team, or a token of an
    identity provider whose claims are mapped to it.
    """


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit teams list\n"
    "  remit teams list --json | jq -r '.teams[] | select(.grant_count) | .name'",
)
@limit_option
@client_options
def list_teams(*, session: Session, limit: int) -> None:
    """List the teams of your org by name, with the API keys that work and the grants in force.

    Members are counted by API keys; whoever signs in with an identity provider is not.
    """
    listing = session.run(lambda edge: _teams(edge, limit))
    session.output.listing("teams", listing.items, _COLUMNS, more=listing.more)


async def _teams(edge: Edge, limit: int) -> Listing[Team]:
    stub = edge.stub(principal_service_pb2_grpc.PrincipalServiceStub)

    async def fetch(size: int, token: str) -> principal_service_pb2.ListTeamsResponse:
        request = principal_service_pb2.ListTeamsRequest(page_size=size, page_token=token)
        return await stub.ListTeams(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.teams, limit)
