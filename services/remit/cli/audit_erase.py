"""`remit audit erase`: destroys the key of a subject, and with it all that the log holds of it."""

from __future__ import annotations

import click

from remit.api.audit.v1 import privacy_service_pb2, privacy_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Session, client_options, new_request_id
from remit.cli.wording import local_time

Erasure = privacy_service_pb2.Erasure


@click.command(
    "erase",
    epilog="\b\nExamples:\n  remit audit erase orgs/local/users/alice\n"
    "  remit audit erase orgs/local/users/alice --yes --request-id ticket-4711",
)
@click.argument("subject")
@click.option("--yes", is_flag=True, help="Do not ask: for scripts.")
@click.option("--request-id", default="", help="Names this request, so that it can be repeated.")
@client_options
def command(*, session: Session, subject: str, yes: bool, request_id: str) -> None:
    """Erase SUBJECT, orgs/ORG/users/USER: destroy the key of what is stored of it.

    Nobody can read that any more, and nothing brings it back. Entries, ledger and proofs stay as
    they are; the erasure is an entry itself. A subject that acts again gets a new key. With it go
    the journals of runs and the recorded results of effects.
    """
    if not yes:
        click.confirm(f"Erase {subject}? It cannot be undone.", abort=True, err=True)
    request = privacy_service_pb2.EraseSubjectRequest(
        subject=subject, request_id=request_id or new_request_id()
    )
    erasure = session.run(lambda edge: _erase(edge, request))
    if session.output.as_json:
        session.output.document({"erasure": documents.of_message(erasure)})
        return
    session.output.line(f"{subject} is erased; leaf {erasure.leaf_index} of the log tells of it")
    session.output.line(f"every replica forgets the key by {local_time(erasure.forget_time)}")


async def _erase(edge: Edge, request: privacy_service_pb2.EraseSubjectRequest) -> Erasure:
    stub = edge.stub(privacy_service_pb2_grpc.PrivacyServiceStub)
    return (await stub.EraseSubject(request, metadata=edge.metadata)).erasure
