"""`remit keys`: API keys, made, listed, replaced and revoked; the keys that verify webhooks."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final

import click

from remit.api.policy.v1 import api_key_pb2, policy_admin_service_pb2, policy_admin_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column
from remit.cli.parameters import Length, Moment, duration, limit_option, timestamp
from remit.cli.wording import local_time

ApiKey = api_key_pb2.ApiKey
ROLES: Final = ("member", "admin")


def _works(key: ApiKey) -> str:
    if key.HasField("revoke_time"):
        return f"revoked {local_time(key.revoke_time)}"
    if key.HasField("expire_time"):
        return f"until {local_time(key.expire_time)}"
    return "yes"


def _used(key: ApiKey) -> str:
    return local_time(key.last_use_time) if key.HasField("last_use_time") else "never"


_COLUMNS: Final = (
    Column[ApiKey]("key", lambda k: k.name, keep=True),
    Column[ApiKey]("for", lambda k: k.display_name),
    Column[ApiKey]("user", lambda k: k.user, keep=True),
    Column[ApiKey]("team", lambda k: k.team or "-", keep=True),
    Column[ApiKey]("roles", lambda k: " ".join(k.roles), keep=True),
    Column[ApiKey]("only", lambda k: " ".join(k.scopes) or "-"),
    Column[ApiKey]("created", lambda k: local_time(k.create_time), keep=True),
    Column[ApiKey]("works", _works, keep=True),
    Column[ApiKey]("used", _used),
)


@click.group(
    epilog="\b\nExamples:\n  remit keys create 'CI of core' --user orgs/local/users/ci\n"
    "  remit keys list\n  remit keys rotate orgs/local/apiKeys/ab12cd34 --overlap 24h\n"
    "  remit keys revoke orgs/local/apiKeys/ab12cd34"
)
def command() -> None:
    """Create, list, replace and revoke API keys; print the keys that verify webhooks."""


@command.command(
    "create",
    epilog="\b\nExamples:\n  remit keys create 'CI of core' --user orgs/local/users/ci\n"
    "  remit keys create console --user orgs/local/users/alice --role admin --expires 2027-01-01\n"
    "  export REMIT_API_KEY=$(remit keys create x --user orgs/local/users/bob --json"
    " | jq -r .secret)",
)
@click.argument("display_name", metavar="PURPOSE")
@click.option("--user", required=True, help="Who it speaks for: orgs/ORG/users/USER.")
@click.option("--team", default="", help="Team that its spending belongs to: orgs/ORG/teams/TEAM.")
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    default=("member",),
    show_default=True,
    help="What it may do: run agents and read its own runs, or everything in the org; repeatable.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help="Permission that it is limited to, runs.create, or runs for all of runs; repeatable."
    "  [default: whatever its roles may]",
)
@click.option("--expires", type=Moment(), help="When it stops working.  [default: never]")
@client_options
def create(  # noqa: PLR0913 - its options
    *,
    session: Session,
    display_name: str,
    user: str,
    team: str,
    roles: tuple[str, ...],
    scopes: tuple[str, ...],
    expires: datetime | None,
) -> None:
    """Make an API key for PURPOSE and show its secret, which is stored nowhere."""
    request = policy_admin_service_pb2.CreateApiKeyRequest(
        display_name=display_name,
        user=user,
        team=team,
        roles=roles,
        scopes=scopes,
        expire_time=timestamp(expires),
        request_id=new_request_id(),
    )
    made = session.run(lambda edge: _create(edge, request))
    _show_secret(session, made, [made.api_key])


def _show_secret(
    session: Session,
    made: policy_admin_service_pb2.CreateApiKeyResponse
    | policy_admin_service_pb2.RotateApiKeyResponse,
    keys: list[ApiKey],
) -> None:
    if session.output.as_json:
        session.output.document(documents.of_message(made))
        return
    session.output.table(keys, _COLUMNS)
    session.output.line("The secret is shown this once; keep it as you keep passwords:", "yellow")
    session.output.line(made.secret, "bold")


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit keys list\n"
    "  remit keys list --json | jq '.api_keys[] | select(.revoke_time == null).name'",
)
@limit_option
@client_options
def list_keys(*, session: Session, limit: int) -> None:
    """List the API keys of your org, without their secrets, newest first."""
    listing = session.run(lambda edge: _keys(edge, limit))
    session.output.listing("api_keys", listing.items, _COLUMNS, more=listing.more)


@command.command("revoke", epilog="\b\nExamples:\n  remit keys revoke orgs/local/apiKeys/ab12cd34")
@click.argument("name")
@click.option("--request-id", default="", help="Names this request, so that it can be repeated.")
@client_options
def revoke(*, session: Session, name: str, request_id: str) -> None:
    """Revoke the API key NAME at once; revoking it again changes nothing."""
    request = policy_admin_service_pb2.RevokeApiKeyRequest(
        name=name, request_id=request_id or new_request_id()
    )
    key = session.run(lambda edge: _revoke(edge, request))
    if session.output.as_json:
        session.output.document({"api_key": documents.of_message(key)})
    else:
        session.output.line(f"{key.name} was revoked at {local_time(key.revoke_time)}")


@command.command(
    "rotate",
    epilog="\b\nExamples:\n  remit keys rotate orgs/local/apiKeys/ab12cd34\n"
    "  remit keys rotate orgs/local/apiKeys/ab12cd34 --overlap 24h --expires 2028-01-01",
)
@click.argument("name")
@click.option(
    "--overlap",
    type=Length(),
    default="24h",
    show_default=True,
    help="How long the old key works beside the new one, at most 30d; 0s stops it at once.",
)
@click.option(
    "--expires", type=Moment(), help="When the new key stops working.  [default: as the old one]"
)
@click.option("--request-id", default="", help="Names this request, so that it can be repeated.")
@client_options
def rotate(
    *,
    session: Session,
    name: str,
    overlap: timedelta,
    expires: datetime | None,
    request_id: str,
) -> None:
    """Replace the API key NAME: show the secret of a new one, and let the old one end soon.

    The new key speaks for the same user with the same team, roles and scopes.
    """
    request = policy_admin_service_pb2.RotateApiKeyRequest(
        name=name,
        overlap=duration(overlap),
        expire_time=timestamp(expires),
        request_id=request_id or new_request_id(),
    )
    made = session.run(lambda edge: _rotate(edge, request))
    _show_secret(session, made, [made.api_key, made.replaced])


@command.command(
    "webhooks",
    epilog="\b\nExamples:\n  remit keys webhooks\n"
    "  remit keys webhooks --json | jq -r '.public_keys[]'",
)
@client_options
def webhooks(*, session: Session) -> None:
    """Print the public keys that verify the webhooks of your org, the newest first.

    Each message is signed with every one of them, so that a receiver may know any.
    """
    found = session.run(_webhook_keys)
    if session.output.as_json:
        session.output.document(documents.of_message(found))
    else:
        for key in found.public_keys:
            session.output.line(key)


@command.command(
    "bootstrap",
    epilog="\b\nExamples:\n"
    "  remit keys bootstrap --user orgs/acme/users/alice\n"
    "  docker compose exec policy remit keys bootstrap --user orgs/acme/users/alice\n"
    "  kubectl --namespace=remit exec deploy/policy -- remit keys bootstrap"
    " --user orgs/acme/users/alice",
)
@click.option("--user", required=True, help="Whose the key is: orgs/ORG/users/USER.")
def bootstrap(user: str) -> None:
    """Print the first admin key of an org, which only the policy service's own secrets can make.

    Whoever has no key cannot ask for one, so this runs where the policy service runs, with its
    settings: REMIT_POLICY_DSN and REMIT_POLICY_PEPPER_FILE. The key is stored nowhere; until it is
    revoked the same command prints the same key, so revoke it once there are others.
    """
    click.echo(asyncio.run(_bootstrap(user)))


async def _bootstrap(user: str) -> str:
    from remit import names  # noqa: PLC0415 - only this command reaches into the policy service
    from remit.policy.api_keys import Pepper  # noqa: PLC0415 - as above
    from remit.policy.bootstrap import bootstrap_admin  # noqa: PLC0415 - as above
    from remit.policy.settings import PolicySettings  # noqa: PLC0415 - as above
    from remit.postgres import Database  # noqa: PLC0415 - as above
    from remit.secret_files import read_secret  # noqa: PLC0415 - as above

    try:
        names.parse("user", user)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    settings = PolicySettings.load()
    pepper = Pepper(read_secret(settings.pepper_file))
    # Not `Database.of`, which waits for migrations: a person wants to be told.
    async with Database.open(
        settings.dsn, pool_size=1, allow_unsafe_durability=settings.allow_unsafe_durability
    ) as database:
        return await bootstrap_admin(database, pepper, names.org_of(user), user)


async def _webhook_keys(edge: Edge) -> tool_service_pb2.GetWebhookKeysResponse:
    stub = edge.stub(tool_service_pb2_grpc.ToolServiceStub)
    request = tool_service_pb2.GetWebhookKeysRequest()
    return await stub.GetWebhookKeys(request, metadata=edge.metadata)


async def _create(
    edge: Edge, request: policy_admin_service_pb2.CreateApiKeyRequest
) -> policy_admin_service_pb2.CreateApiKeyResponse:
    stub = edge.stub(policy_admin_service_pb2_grpc.PolicyAdminServiceStub)
    return await stub.CreateApiKey(request, metadata=edge.metadata)


async def _keys(edge: Edge, limit: int) -> Listing[ApiKey]:
    stub = edge.stub(policy_admin_service_pb2_grpc.PolicyAdminServiceStub)

    async def fetch(size: int, token: str) -> policy_admin_service_pb2.ListApiKeysResponse:
        request = policy_admin_service_pb2.ListApiKeysRequest(page_size=size, page_token=token)
        return await stub.ListApiKeys(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.api_keys, limit)


async def _rotate(
    edge: Edge, request: policy_admin_service_pb2.RotateApiKeyRequest
) -> policy_admin_service_pb2.RotateApiKeyResponse:
    stub = edge.stub(policy_admin_service_pb2_grpc.PolicyAdminServiceStub)
    return await stub.RotateApiKey(request, metadata=edge.metadata)


async def _revoke(edge: Edge, request: policy_admin_service_pb2.RevokeApiKeyRequest) -> ApiKey:
    stub = edge.stub(policy_admin_service_pb2_grpc.PolicyAdminServiceStub)
    return (await stub.RevokeApiKey(request, metadata=edge.metadata)).api_key
