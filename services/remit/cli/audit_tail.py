"""`remit audit tail`: the log as it grows, across every break of the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import click

from remit.api.audit.v1 import audit_query_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import documents
from remit.cli.audit_list import (
    Filters,
    LoggedEvent,
    Query,
    archived_line,
    filter_options,
    kind_word,
    outcome_word,
)
from remit.cli.client import Edge, Session, client_options
from remit.cli.output import Output
from remit.cli.wording import local_time
from remit.client import is_break
from remit.client.breaks import silent
from remit.client.resumption import Patience, Resumption
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

MOST_AWAY_S: Final = 300.0
"""How long a mesh that has answered before may be away before a tail is given up."""


@click.command(
    "tail",
    epilog="\b\nExamples:\n  remit audit tail\n  remit audit tail --kind admin --json\n"
    "  remit audit tail --after 0 --run 01981a2b-...",
)
@filter_options
@click.option(
    "--after",
    metavar="COUNT",
    type=click.IntRange(0),
    help="Begin behind the first COUNT entries of the log; 0 is its beginning.  [default: now; with"
    " --since, the beginning]",
)
@client_options
def tail(*, session: Session, filters: Filters, after: int | None) -> None:
    """Follow the events of your org, oldest first, until Ctrl-C.

    A broken stream is resumed behind the last entry seen. That somebody follows the log is an entry
    of its own, one for each time the stream is opened.
    """
    request = audit_query_service_pb2.TailEventsRequest(
        **filters.fields(),
        after_sequence=after or 0,
        new_only=after is None and filters.since is None,
    )
    session.run(lambda edge: _followed(edge, request, session.output))


async def pieces(
    edge: Edge,
    request: audit_query_service_pb2.TailEventsRequest,
    *,
    resumption: Resumption | None = None,
    on_break: Callable[[RemitError], None] = lambda _: None,
) -> AsyncIterator[audit_query_service_pb2.TailEventsResponse]:
    """The messages of a tail; one that broke is opened again behind the last message.

    Raises RemitError: the server refused, or was away for too long.
    """
    resumption = resumption or Resumption(Patience())
    clock, failures = resumption.clock, 0
    give_up = clock.monotonic() + resumption.patience.unanswered_s
    while True:
        try:
            async for message in _opened(edge, request, resumption.patience.silence_s):
                request.after_sequence, request.new_only = message.sequence, False
                failures, give_up = 0, clock.monotonic() + MOST_AWAY_S
                yield message
        except RemitError as error:
            failures += 1
            pause_s = resumption.pause_s(failures, error)
            if not is_break(error) or clock.monotonic() + pause_s >= give_up:
                raise
            on_break(error)
            await resumption.pause(pause_s)
        else:
            return


async def _opened(
    edge: Edge, request: audit_query_service_pb2.TailEventsRequest, silence_s: float
) -> AsyncIterator[audit_query_service_pb2.TailEventsResponse]:
    """One stream's messages. Raises DEPENDENCY_UNAVAILABLE too where it falls silent or is cut."""
    call = edge.stub(Query).TailEvents(request, metadata=edge.metadata)
    async with reading(aiter(call)) as stream:
        messages = aiter(stream)
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    message = await anext(messages, None)
            except TimeoutError as error:
                raise silent(silence_s) from error
            if message is None:
                break
            yield message
    if not request.until_now:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            f"the stream ended after {request.after_sequence} entries, though the log goes on",
        )


async def _followed(
    edge: Edge, request: audit_query_service_pb2.TailEventsRequest, output: Output
) -> None:
    async for message in pieces(
        edge, request, on_break=lambda error: output.warn(f"{error.message}; resuming")
    ):
        for month in message.archived_months:
            output.warn(archived_line(month))
        for event in message.events:
            _show(output, event)


def _show(output: Output, logged: LoggedEvent) -> None:
    if output.as_json:
        output.document(documents.of_message(logged))
        return
    event = logged.event
    output.line(
        f"{logged.leaf_index:>9}  {local_time(logged.append_time)}  {kind_word(logged):<8}"
        f"{outcome_word(logged):<10}{event.action}  {event.resource or '-'}  {event.subject or '-'}"
    )
