"""`remit users`: users of the org that are disabled, and enabled again."""

from __future__ import annotations

import click

from remit.api.policy.v1 import principal_pb2, principal_service_pb2, principal_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Session, client_options, new_request_id
from remit.cli.wording import local_time

_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    epilog="\b\nExamples:\n  remit users disable orgs/local/users/bob\n"
    "  remit users enable orgs/local/users/bob"
)
def command() -> None:
    """Disable users of your org, and enable them again."""


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


def _show(session: Session, principal: principal_pb2.Principal) -> None:
    if session.output.as_json:
        session.output.document({"principal": documents.of_message(principal)})
    elif principal.HasField("disable_time"):
        since = local_time(principal.disable_time)
        session.output.line(f"{principal.name} is disabled since {since}")
    else:
        session.output.line(f"{principal.name} is enabled")


async def _disable(
    edge: Edge, request: principal_service_pb2.DisablePrincipalRequest
) -> principal_pb2.Principal:
    stub = edge.stub(principal_service_pb2_grpc.PrincipalServiceStub)
    return (await stub.DisablePrincipal(request, metadata=edge.metadata)).principal


async def _enable(
    edge: Edge, request: principal_service_pb2.EnablePrincipalRequest
) -> principal_pb2.Principal:
    stub = edge.stub(principal_service_pb2_grpc.PrincipalServiceStub)
    return (await stub.EnablePrincipal(request, metadata=edge.metadata)).principal
