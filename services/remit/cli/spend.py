"""`remit spend`: what was spent, by whom or on what."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import click

from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect
from remit.cli.output import Column
from remit.cli.parameters import limit_option, since_option, timestamp, until_option
from remit.cli.wording import usd

Row = cost_report_service_pb2.SpendRow
_DIMENSIONS: Final = ("user", "team", "agent", "item", "run", "day")


def _columns(dimension: str) -> tuple[Column[Row], ...]:
    return (
        Column[Row](dimension, lambda r: r.key, keep=True),
        Column[Row]("spent", lambda r: usd(r.posted_nanos), "right", keep=True),
        Column[Row]("held", lambda r: usd(r.pending_nanos), "right", keep=True),
        Column[Row]("overrun", lambda r: usd(r.overrun_nanos), "right", keep=True),
        Column[Row]("effects", lambda r: f"{r.effects:,}", "right"),
        Column[Row]("tokens in", lambda r: f"{r.usage.input_tokens:,}", "right"),
        Column[Row]("tokens out", lambda r: f"{r.usage.output_tokens:,}", "right"),
    )


@click.command(
    epilog="\b\nExamples:\n  remit spend\n  remit spend --by item --since 7d\n"
    "  remit spend --by day --since 2026-11-01 --until 2026-12-01\n"
    "  remit spend --json | jq .total.posted_nanos"
)
@click.option(
    "--by",
    "dimension",
    type=click.Choice(_DIMENSIONS),
    default="user",
    show_default=True,
    help="What to sum by; item is a model or a tool, day is in UTC.",
)
@since_option
@until_option
@limit_option
@client_options
def command(
    *,
    session: Session,
    dimension: str,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> None:
    """Show what was spent, the dearest first, and the total.

    Held is money of effects under way; overrun is what a bill was above its hold, which the
    operator pays and no budget.
    """
    request = cost_report_service_pb2.ListSpendRequest(
        group_by=cost_report_service_pb2.ListSpendRequest.Dimension.Value(
            f"DIMENSION_{dimension.upper()}"
        ),
        start_time=timestamp(since),
        end_time=timestamp(until),
    )
    total = Row()
    listing = session.run(lambda edge: _spend(edge, request, limit, total))
    if session.output.as_json:
        rows = [documents.of_message(row) for row in listing.items]
        session.output.document(
            {"rows": rows, "total": documents.of_message(total), "more": listing.more}
        )
        return
    total.key = "total"
    session.output.table([*listing.items, total], _columns(dimension))
    if listing.more:
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
