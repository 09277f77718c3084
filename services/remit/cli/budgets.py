"""`remit budgets`: how much each account may spend in a period."""

from __future__ import annotations

from typing import Final

import click

from remit.api.cost.v1 import (
    cost_report_service_pb2,
    cost_report_service_pb2_grpc,
    reservation_pb2,
)
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column
from remit.cli.parameters import Usd, limit_option
from remit.cli.wording import local_time, usd

Budget = reservation_pb2.Budget
_PERIODS: Final = ("total", "day", "month")
_PREFIX: Final = "PERIOD_"


def _period_of(budget: Budget) -> str:
    known = reservation_pb2.Period.DESCRIPTOR.values_by_number.get(budget.period)
    return known.name.removeprefix(_PREFIX).lower() if known else "unknown"


def _left(budget: Budget) -> str:
    return usd(budget.limit_nanos - budget.posted_nanos - budget.pending_nanos)


_COLUMNS: Final = (
    Column[Budget]("account", lambda b: b.account, keep=True),
    Column[Budget]("period", _period_of, keep=True),
    Column[Budget]("limit", lambda b: usd(b.limit_nanos), "right", keep=True),
    Column[Budget]("spent", lambda b: usd(b.posted_nanos), "right", keep=True),
    Column[Budget]("held", lambda b: usd(b.pending_nanos), "right", keep=True),
    Column[Budget]("left", _left, "right", keep=True),
    Column[Budget]("renews", lambda b: local_time(b.renew_time), keep=True),
    Column[Budget]("set by", lambda b: "default" if b.is_default else "admin", keep=True),
)


@click.group(
    epilog="\b\nExamples:\n  remit budgets list\n  remit budgets set orgs/local 25 --per month"
)
def command() -> None:
    """List and set budgets.

    An effect starts only if its upper bound fits the budget of every account above it: org, team,
    user, agent and run.
    """


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit budgets list\n"
    "  remit budgets list --json | jq '.budgets[] | select(.posted_nanos > .limit_nanos / 2)'",
)
@limit_option
@client_options
def list_budgets(*, session: Session, limit: int) -> None:
    """List the budgets of your org, with what is spent, held and left in the period."""
    listing = session.run(lambda edge: _budgets(edge, limit))
    session.output.listing("budgets", listing.items, _COLUMNS, more=listing.more)


@command.command(
    "set",
    epilog="\b\nExamples:\n  remit budgets set orgs/local 25 --per month\n"
    "  remit budgets set orgs/local/users/alice 0.50 --per day\n"
    "  remit budgets set orgs/local 0 --per total",
)
@click.argument("account")
@click.argument("limit_nanos", metavar="USD", type=Usd())
@click.option(
    "--per",
    "period",
    type=click.Choice(_PERIODS),
    default="month",
    show_default=True,
    help="When it renews, by the calendar in UTC; total never does.",
)
@click.option("--request-id", default="", help="Names this request, so that it can be repeated.")
@client_options
def set_budget(
    *, session: Session, account: str, limit_nanos: int, period: str, request_id: str
) -> None:
    """Let ACCOUNT spend at most USD per period.

    A limit below what is spent already stops new effects at once; 0 stops them all.
    """
    request = cost_report_service_pb2.SetBudgetRequest(
        account=account,
        period=reservation_pb2.Period.Value(f"{_PREFIX}{period.upper()}"),
        limit_nanos=limit_nanos,
        request_id=request_id or new_request_id(),
    )
    budget = session.run(lambda edge: _set(edge, request))
    if session.output.as_json:
        session.output.document({"budget": documents.of_message(budget)})
    else:
        session.output.table([budget], _COLUMNS)


async def _budgets(edge: Edge, limit: int) -> Listing[Budget]:
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)

    async def fetch(size: int, token: str) -> cost_report_service_pb2.ListBudgetsResponse:
        request = cost_report_service_pb2.ListBudgetsRequest(page_size=size, page_token=token)
        return await stub.ListBudgets(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.budgets, limit)


async def _set(edge: Edge, request: cost_report_service_pb2.SetBudgetRequest) -> Budget:
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)
    return (await stub.SetBudget(request, metadata=edge.metadata)).budget
