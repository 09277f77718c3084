"""`remit audit`: read the log, export it, and prove offline that an export is what was signed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import click

from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.export import ExportError, ExportSummary, write_export
from remit.cli import audit_erase, documents
from remit.cli.audit_archive import archive
from remit.cli.audit_events import events
from remit.cli.audit_keys import rotate_key
from remit.cli.audit_list import list_events
from remit.cli.audit_reconcile import reconcile
from remit.cli.audit_tail import tail
from remit.cli.audit_verify import verify
from remit.cli.audit_witness import witness
from remit.cli.client import Edge, Session, client_options
from remit.client import is_break
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

Query = audit_query_service_pb2_grpc.AuditQueryServiceStub
MOST_RESUMES: Final = 5
"""How often in a row an export that broke off without a new leaf is taken up again."""


@click.group(
    epilog="\b\nExamples:\n  remit audit list --run 01981a2b-...\n  remit audit export log.export\n"
    "  remit audit verify log.export --key audit.pub"
)
def command() -> None:
    """List, follow, export, verify and witness the audit log; erase subjects."""


for _other in (
    archive,
    audit_erase.command,
    events,
    list_events,
    reconcile,
    rotate_key,
    tail,
    verify,
    witness,
):
    command.add_command(_other)


@command.command(
    "export",
    epilog="\b\nExamples:\n  remit audit export log.export\n"
    "  remit audit export --force /backup/log.export",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@client_options
def export(*, session: Session, file: Path, force: bool) -> None:
    """Export the whole log to FILE, for anybody to verify without this mesh.

    It holds no personal data: users are pseudonyms and details are salted commitments. FILE appears
    only when it is whole.
    """
    if file.exists() and not force:
        raise click.UsageError(f"{file} exists; an export is evidence, so --force replaces it")
    written = session.run(lambda edge: export_to(edge, file))
    if session.output.as_json:
        session.output.document(
            {
                "file": str(file),
                "tree_size": written.tree_size,
                "size_bytes": written.size_bytes,
                "signed_note": written.signed_note,
            }
        )
    else:
        session.output.line(f"{written.tree_size:,} entries, {written.size_bytes:,} bytes: {file}")
        session.output.line(f"verify it with: remit audit verify {file} --key PUBLIC_KEY_FILE")


@command.command(
    "checkpoint",
    epilog="\b\nExamples:\n  remit audit checkpoint > monday.checkpoint\n"
    "  remit audit verify log.export --key audit.pub --checkpoint monday.checkpoint",
)
@client_options
def checkpoint(*, session: Session) -> None:
    """Print the newest signed checkpoint, to be kept outside and compared with later exports."""
    found = session.run(_checkpoint)
    if session.output.as_json:
        session.output.document(documents.of_message(found))
    else:
        click.echo(found.signed_note, nl=False)


async def export_to(edge: Edge, file: Path) -> ExportSummary:
    """Writes an export of the whole log. Raises RemitError."""
    try:
        return await write_export(file, _export_messages(edge.stub(Query), edge))
    except ExportError as error:
        raise RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, str(error)) from error
    except OSError as error:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{file} cannot be written: {error.strerror}",
        ) from error


async def _export_messages(
    stub: Query, edge: Edge
) -> AsyncIterator[audit_query_service_pb2.ExportLogResponse]:
    """The messages of one export, across broken streams: leaves are counted."""
    request = audit_query_service_pb2.ExportLogRequest()
    failures = 0
    while True:
        try:
            stream = aiter(stub.ExportLog(request, metadata=edge.metadata))
            async with reading(stream):
                async for message in stream:
                    yield message
                    failures = 0
                    _advance(request, message)
        except RemitError as error:
            failures += 1
            if failures > MOST_RESUMES or not is_break(error):
                raise
        else:
            return


def _advance(
    request: audit_query_service_pb2.ExportLogRequest,
    message: audit_query_service_pb2.ExportLogResponse,
) -> None:
    if message.HasField("checkpoint"):
        request.tree_size = message.checkpoint.tree_size
    if message.leaves:
        request.start_index = message.sequence + len(message.leaves)


async def _checkpoint(edge: Edge) -> event_pb2.Checkpoint:
    stub = edge.stub(Query)
    request = audit_query_service_pb2.GetCheckpointRequest()
    return (await stub.GetCheckpoint(request, metadata=edge.metadata)).checkpoint
