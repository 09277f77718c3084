"""`remit spend`: what was spent, by whom or on what; the bill of a run; exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import click
from click.core import ParameterSource

from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from remit.cli import documents, focus
from remit.cli.client import Edge, Listing, Session, client_options, collect
from remit.cli.csv_lines import plain_usd, write_csv
from remit.cli.output import Column
from remit.cli.parameters import full_name, limit_option, since_option, timestamp, until_option
from remit.cli.spend_table import show, spent
from remit.cli.spend_tree import show_run
from remit.cli.wording import usd

Row = cost_report_service_pb2.SpendRow
_DIMENSIONS: Final = ("user", "team", "agent", "item", "model", "tool", "run", "day", "month")
_TIMES: Final = frozenset({"day", "month"})
_MOST_EXPORTED: Final = 1_000_000
_CHARGES_OF_A_PAGE: Final = 200
_CSV: Final[Sequence[tuple[str, Callable[[Row], str]]]] = (
    ("spent_usd", lambda r: plain_usd(r.posted_nanos)),
    ("held_usd", lambda r: plain_usd(r.pending_nanos)),
    ("overrun_usd", lambda r: plain_usd(r.overrun_nanos)),
    ("effects", lambda r: str(r.effects)),
    ("calls", lambda r: str(r.usage.calls)),
    ("input_tokens", lambda r: str(r.usage.input_tokens)),
    ("cached_input_tokens", lambda r: str(r.usage.cached_input_tokens)),
    ("output_tokens", lambda r: str(r.usage.output_tokens)),
    ("unpriced_effects", lambda r: str(r.unpriced_effects)),
)


def _columns(dimension: str) -> tuple[Column[Row], ...]:
    return (
        Column[Row](dimension, lambda r: r.key, keep=True),
        Column[Row]("spent", spent, "right", keep=True),
        Column[Row]("held", lambda r: usd(r.pending_nanos), "right", keep=True),
        Column[Row]("overrun", lambda r: usd(r.overrun_nanos), "right", keep=True),
        Column[Row]("effects", lambda r: f"{r.effects:,}", "right"),
        Column[Row]("tokens in", lambda r: f"{r.usage.input_tokens:,}", "right"),
        Column[Row]("tokens out", lambda r: f"{r.usage.output_tokens:,}", "right"),
    )


@click.command(
    epilog="\b\nExamples:\n  remit spend\n  remit spend --by model --since 7d\n"
    "  remit spend --by day --since 2026-11-01 --until 2026-12-01\n"
    "  remit spend --run 01981a2b-...\n  remit spend --by team --csv > spend.csv\n"
    "  remit spend --focus --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z > focus.csv\n"
    "  remit spend --json | jq .total.posted_nanos"
)
@click.option(
    "--by",
    "dimension",
    type=click.Choice(_DIMENSIONS),
    default="user",
    show_default=True,
    help="What to sum by; item is a model or a tool, day and month are in UTC.",
)
@click.option("--run", metavar="NAME", help="Show the bill of this run and the runs below it.")
@click.option("--csv", "as_csv", is_flag=True, help="The table as CSV, all of its rows.")
@click.option(
    "--focus", "as_focus", is_flag=True, help="All charges as CSV in the columns of FOCUS 1.2."
)
@since_option
@until_option
@limit_option
@client_options
def command(  # noqa: PLR0913 - one for each option
    *,
    session: Session,
    dimension: str,
    run: str | None,
    as_csv: bool,
    as_focus: bool,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> None:
    """Show what was spent, the dearest first, and the total. Days and months are in order of time.

    Held is money of effects under way; overrun is what a bill was above its hold, which the
    operator pays and no budget. Unknown is what effects cost whose price nobody knew. With --run,
    whole is a run with all below it, and the rest its own.
    """
    _check_options(run, as_csv=as_csv, as_focus=as_focus, as_json=session.output.as_json)
    if run is not None:
        show_run(session, full_name("runs", run), as_csv=as_csv)
    elif as_focus:
        span = cost_report_service_pb2.ListChargesRequest(
            start_time=timestamp(since), end_time=timestamp(until)
        )
        session.run(lambda edge: _export_focus(edge, span))
    else:
        request = cost_report_service_pb2.ListSpendRequest(
            group_by=cost_report_service_pb2.ListSpendRequest.Dimension.Value(
                f"DIMENSION_{dimension.upper()}"
            ),
            start_time=timestamp(since),
            end_time=timestamp(until),
        )
        _show_sums(session, request, dimension, limit, as_csv=as_csv)


def _check_options(run: str | None, *, as_csv: bool, as_focus: bool, as_json: bool) -> None:
    """Refuses options that contradict each other or would be ignored."""
    forms = {"--csv": as_csv, "--focus": as_focus, "--json": as_json}
    chosen = [flag for flag, is_on in forms.items() if is_on]
    if len(chosen) > 1:
        message = f"{' and '.join(chosen)} are two forms of output; choose one"
        raise click.UsageError(message)
    if as_focus:
        _refuse("--focus", "run", "dimension", "limit")
    elif run is not None:
        _refuse("--run", "dimension", "since", "until", "limit")


def _refuse(flag: str, *others: str) -> None:
    for name in filter(_is_given, others):
        message = f"{'--by' if name == 'dimension' else f'--{name}'} does not go with {flag}"
        raise click.UsageError(message)


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not ParameterSource.DEFAULT


def _show_sums(
    session: Session,
    request: cost_report_service_pb2.ListSpendRequest,
    dimension: str,
    limit: int,
    *,
    as_csv: bool,
) -> None:
    if as_csv and not _is_given("limit"):
        limit = _MOST_EXPORTED
    total = Row()
    listing = session.run(lambda edge: _spend(edge, request, limit, total))
    # They come from the latest back, so that a limit leaves the oldest out.
    rows = listing.items[::-1] if dimension in _TIMES else listing.items
    if as_csv:
        lines = ([row.key, *(cell(row) for _, cell in _CSV)] for row in rows)
        write_csv([[dimension, *(head for head, _ in _CSV)], *lines])
    elif session.output.as_json:
        found = [documents.of_message(row) for row in rows]
        session.output.document(
            {"rows": found, "total": documents.of_message(total), "more": listing.more}
        )
    else:
        total.key = "total"
        show(
            session.output,
            [*rows, total],
            _columns(dimension),
            lambda row: None if row is total else row.posted_nanos,
        )
    if listing.more and as_csv:
        session.output.warn("there are more rows; raise --limit")
    elif listing.more and not session.output.as_json:
        session.output.line("… there are more; raise --limit. The total is of all.", "yellow")


async def _spend(
    edge: Edge, request: cost_report_service_pb2.ListSpendRequest, limit: int, total: Row
) -> Listing[Row]:
    """The rows; `total` takes the sum over all pages."""
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)

    async def fetch(size: int, token: str) -> cost_report_service_pb2.ListSpendResponse:
        request.page_size, request.page_token = size, token
        page = await stub.ListSpend(request, metadata=edge.metadata)
        total.CopyFrom(page.total)
        return page

    return await collect(fetch, lambda page: page.rows, limit)


async def _export_focus(edge: Edge, request: cost_report_service_pb2.ListChargesRequest) -> None:
    """Writes every charge, a page at a time: an export may be longer than memory."""
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)
    request.page_size = _CHARGES_OF_A_PAGE
    write_csv([focus.COLUMNS])
    while True:
        page = await stub.ListCharges(request, metadata=edge.metadata)
        rows = (row for charge in page.charges for row in focus.rows_of(charge))
        write_csv([row.get(column, "") for column in focus.COLUMNS] for row in rows)
        request.page_token = page.next_page_token
        if not request.page_token:
            return
