"""`remit audit list`: the events that somebody asks for, and how an event is shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import click

from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect
from remit.cli.output import Column
from remit.cli.parameters import full_name, limit_option, since_option, timestamp, until_option
from remit.cli.wording import last_part, local_time

LoggedEvent = audit_query_service_pb2.LoggedEvent
Query = audit_query_service_pb2_grpc.AuditQueryServiceStub

_KIND: Final = "EVENT_KIND_"
_OUTCOME: Final = "OUTCOME_"


def _words(names: list[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix).lower() for name in names if not name.endswith("UNSPECIFIED")]


@dataclass(frozen=True)
class Filters:
    """Which events are asked for, as the options say it."""

    run: str
    claim: str
    subject: str
    action: str
    kind: str | None
    outcome: str | None
    since: datetime | None
    until: datetime | None

    def fields(self) -> dict[str, Any]:
        """The fields of a request, alike for each that has filters."""
        return {
            "run": full_name("runs", self.run) if self.run else "",
            "claim": full_name("claims", self.claim) if self.claim else "",
            "subject": full_name("users", self.subject) if self.subject else "",
            "action": self.action,
            "kind": event_pb2.EventKind.Value(_KIND + (self.kind or "unspecified").upper()),
            "outcome": event_pb2.Outcome.Value(_OUTCOME + (self.outcome or "unspecified").upper()),
            "start_time": timestamp(self.since),
            "end_time": timestamp(self.until),
        }


_OPTIONS: Final = (
    click.option("--run", default="", help="Only of this run."),
    click.option("--claim", default="", help="Only of this effect."),
    click.option("--subject", metavar="USER", default="", help="Only of this user of your org."),
    click.option("--action", default="", help="Only of this action, such as tools.call."),
    click.option(
        "--kind", type=click.Choice(_words(event_pb2.EventKind.keys(), _KIND)), help="Only of it."
    ),
    click.option(
        "--outcome",
        type=click.Choice(_words(event_pb2.Outcome.keys(), _OUTCOME)),
        help="Only what ended so.",
    ),
    since_option,
    until_option,
)


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say which events; the function gets them as `filters`."""

    @functools.wraps(function)
    def with_filters(**options: Any) -> Any:  # noqa: ANN401 - a command's own options and result
        stated = {name: options.pop(name) for name in Filters.__dataclass_fields__}
        return function(filters=Filters(**stated), **options)

    for option in reversed(_OPTIONS):
        with_filters = option(with_filters)
    return with_filters


def kind_word(logged: LoggedEvent) -> str:
    """The kind of an event in one word."""
    known = event_pb2.EventKind.DESCRIPTOR.values_by_number.get(logged.event.kind)
    return _word(known.name if known else None, _KIND)


def outcome_word(logged: LoggedEvent) -> str:
    """How an event ended, in one word; a dash where it has not."""
    if logged.event.outcome == event_pb2.OUTCOME_UNSPECIFIED:
        return "-"
    known = event_pb2.Outcome.DESCRIPTOR.values_by_number.get(logged.event.outcome)
    return _word(known.name if known else None, _OUTCOME)


def _word(name: str | None, prefix: str) -> str:
    return (name or "unknown").removeprefix(prefix).lower()


_COLUMNS: Final = (
    Column[LoggedEvent]("leaf", lambda e: str(e.leaf_index), "right", keep=True),
    Column[LoggedEvent]("time", lambda e: local_time(e.append_time), keep=True),
    Column[LoggedEvent]("kind", kind_word, keep=True),
    Column[LoggedEvent]("outcome", outcome_word, keep=True),
    Column[LoggedEvent]("action", lambda e: e.event.action, keep=True),
    Column[LoggedEvent]("resource", lambda e: e.event.resource),
    Column[LoggedEvent]("by", lambda e: e.event.subject),
    Column[LoggedEvent]("run", lambda e: last_part(e.event.run) or "-"),
)


def archived_line(month: event_pb2.ArchivedMonth) -> str:
    """What a person is told of a month whose events are in no list any more."""
    return (
        f"{month.month} was archived: leaves {month.first_index:,} to {month.last_index:,} are in"
        " the tiles, and not here"
    )


@click.command(
    "list",
    epilog="\b\nExamples:\n  remit audit list --since 1h\n  remit audit list --run 01981a2b-...\n"
    "  remit audit list --subject alice --outcome refused\n"
    "  remit audit list --kind admin --json | jq '.events[].event.action'",
)
@filter_options
@limit_option
@client_options
def list_events(*, session: Session, filters: Filters, limit: int) -> None:
    """List the events of your org, newest first: what was intended, and how it ended."""
    request = audit_query_service_pb2.ListEventsRequest(**filters.fields())
    found, missed = session.run(lambda edge: _events(edge, request, limit))
    output = session.output
    if output.as_json:
        output.document(
            {
                "events": [documents.of_message(event) for event in found.items],
                "more": found.more,
                "archived_months": [documents.of_message(month) for month in missed],
            }
        )
        return
    output.listing("events", found.items, _COLUMNS, more=found.more)
    for month in missed:
        output.line(archived_line(month), "yellow")


async def _events(
    edge: Edge, request: audit_query_service_pb2.ListEventsRequest, limit: int
) -> tuple[Listing[LoggedEvent], list[event_pb2.ArchivedMonth]]:
    stub = edge.stub(Query)
    missed: dict[str, event_pb2.ArchivedMonth] = {}

    async def fetch(size: int, token: str) -> audit_query_service_pb2.ListEventsResponse:
        request.page_size, request.page_token = size, token
        page = await stub.ListEvents(request, metadata=edge.metadata)
        missed.update({month.month: month for month in page.archived_months})
        return page

    listing = await collect(fetch, lambda page: page.events, limit)
    return listing, [missed[month] for month in sorted(missed, reverse=True)]
