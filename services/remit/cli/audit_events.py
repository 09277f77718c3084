"""`remit audit events`: the events that somebody may read, as a file for analysis."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import click

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.export import replacing
from remit.cli import documents
from remit.cli.audit_list import Filters, archived_line, filter_options
from remit.cli.audit_tail import pieces
from remit.cli.client import Edge, Session, client_options
from remit.cli.event_files import FORMATS
from remit.rpc.errors import RemitError


@dataclass(frozen=True)
class _Written:
    """How many events, and how many of the log's entries were looked at for them.

    `missed`: dropped months among those entries, whose events are not in the file.
    """

    events: int
    log_size: int
    missed: list[event_pb2.ArchivedMonth]


@click.command(
    "events",
    epilog="\b\nExamples:\n  remit audit events may.jsonl --since 2026-05-01 --until 2026-06-01\n"
    "  remit audit events refused.parquet --format parquet --outcome refused",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--format",
    "file_format",
    type=click.Choice([*FORMATS]),
    default="jsonl",
    show_default=True,
    help="JSON lines, or Parquet (needs the extra remit[parquet]).",
)
@filter_options
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@client_options
def events(
    *, session: Session, file: Path, file_format: str, filters: Filters, force: bool
) -> None:
    """Write the events of your org to FILE, oldest first, for analysis.

    They are what `remit audit list` shows, details included, up to now. `remit audit export` writes
    the proof: the log itself, without details. FILE appears only when it is whole.
    """
    if file.exists() and not force:
        raise click.UsageError(f"{file} exists; --force replaces it")
    request = audit_query_service_pb2.TailEventsRequest(**filters.fields(), until_now=True)
    written = session.run(lambda edge: _write(edge, request, file, file_format))
    size_bytes = file.stat().st_size
    if session.output.as_json:
        session.output.document(
            {
                "file": str(file),
                "format": file_format,
                "events": written.events,
                "log_size": written.log_size,
                "size_bytes": size_bytes,
                "archived_months": [documents.of_message(month) for month in written.missed],
            }
        )
    else:
        session.output.line(
            f"{written.events:,} events of {written.log_size:,} entries, {size_bytes:,} bytes:"
            f" {file}"
        )
        for month in written.missed:
            session.output.line(archived_line(month), "yellow")


async def _write(
    edge: Edge, request: audit_query_service_pb2.TailEventsRequest, path: Path, file_format: str
) -> _Written:
    """Writes the events, across broken streams. Raises RemitError."""
    count, missed = 0, dict[str, event_pb2.ArchivedMonth]()
    try:
        with replacing(path) as file, contextlib.closing(FORMATS[file_format](file)) as rows:
            async for message in pieces(edge, request):
                missed.update({month.month: month for month in message.archived_months})
                for event in message.events:
                    rows.put(event)
                count += len(message.events)
    except OSError as error:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{path} cannot be written: {error.strerror}",
        ) from error
    return _Written(count, request.after_sequence, list(missed.values()))
