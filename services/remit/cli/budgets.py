"""`remit budgets`: how much each account may spend in a period, and when that is told."""

from __future__ import annotations

from collections.abc import Sequence
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
BudgetAlert = cost_report_service_pb2.BudgetAlert
_PERIODS: Final = ("run", "day", "month", "total")
_PREFIX: Final = "PERIOD_"
_MOST_PERCENT: Final = 1000


def _period_of(row: Budget | BudgetAlert) -> str:
    known = reservation_pb2.Period.DESCRIPTOR.values_by_number.get(row.period)
    return known.name.removeprefix(_PREFIX).lower() if known else "unknown"


def _left(budget: Budget) -> str:
    return usd(budget.limit_nanos - budget.posted_nanos - budget.pending_nanos)


def _at_limit(row: Budget | BudgetAlert) -> str:
    return "tells" if row.enforcement == reservation_pb2.ENFORCEMENT_SOFT else "refuses"


def _percents(percents: Sequence[int]) -> str:
    return " ".join(f"{percent} %" for percent in percents) or "-"


_COLUMNS: Final = (
    Column[Budget]("account", lambda b: b.account, keep=True),
    Column[Budget]("period", _period_of, keep=True),
    Column[Budget]("limit", lambda b: usd(b.limit_nanos), "right", keep=True),
    Column[Budget]("spent", lambda b: usd(b.posted_nanos), "right", keep=True),
    Column[Budget]("held", lambda b: usd(b.pending_nanos), "right", keep=True),
    Column[Budget]("left", _left, "right", keep=True),
    Column[Budget]("reached", lambda b: _percents(b.reached_percents[-1:]), "right"),
    Column[Budget]("at limit", _at_limit),
    Column[Budget]("alerts at", lambda b: _percents(b.alert_percents)),
    Column[Budget]("renews", lambda b: local_time(b.renew_time), keep=True),
    Column[Budget]("set by", lambda b: "default" if b.is_default else "admin", keep=True),
)
_ALERT_COLUMNS: Final = (
    Column[BudgetAlert]("time", lambda a: local_time(a.fire_time), keep=True),
    Column[BudgetAlert]("account", lambda a: a.account, keep=True),
    Column[BudgetAlert]("period", _period_of, keep=True),
    Column[BudgetAlert]("since", lambda a: local_time(a.start_time)),
    Column[BudgetAlert]("reached", lambda a: f"{a.percent} %", "right", keep=True),
    Column[BudgetAlert]("of", lambda a: usd(a.limit_nanos), "right", keep=True),
    Column[BudgetAlert]("spent", lambda a: usd(a.posted_nanos), "right", keep=True),
    Column[BudgetAlert]("at limit", _at_limit),
    Column[BudgetAlert]("by", lambda a: a.subject),
    Column[BudgetAlert]("run", lambda a: a.run or "-"),
)


_per = click.option(
    "--per",
    "period",
    type=click.Choice(_PERIODS),
    default="month",
    show_default=True,
    help="When it renews, by the calendar in UTC: total never does; run: each run has it anew.",
)
_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    epilog="\b\nExamples:\n  remit budgets list\n  remit budgets set orgs/local 25 --per month\n"
    "  remit budgets alerts"
)
def command() -> None:
    """List, set and delete budgets; list their alerts. Also `remit budget`.

    An effect starts only if its upper bound fits the budget of every account above it: org, team,
    user, agent and run. An org without a budget of its own has the default of settings. Alerts are
    fired when 80 and 100 % of a budget are spent, or at other shares; a soft budget refuses nothing
    and fires alerts alone.
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
    "  remit budgets set orgs/local 0.10 --per run\n"
    "  remit budgets set orgs/local/teams/core 10 --soft --alert-at 50 --alert-at 100\n"
    "  remit budgets set orgs/local 0 --per total",
)
@click.argument("account")
@click.argument("limit_nanos", metavar="USD", type=Usd())
@_per
@click.option(
    "--soft",
    is_flag=True,
    help="Refuse nothing at the limit, fire alerts alone.  [default: refuse]",
)
@click.option(
    "--alert-at",
    "alert_percents",
    type=click.IntRange(1, _MOST_PERCENT),
    metavar="PERCENT",
    multiple=True,
    help="Share of the limit at which an alert is fired; repeatable.  [default: that of settings]",
)
@_request_id
@client_options
def set_budget(  # noqa: PLR0913 - an option each
    *,
    session: Session,
    account: str,
    limit_nanos: int,
    period: str,
    soft: bool,
    alert_percents: tuple[int, ...],
    request_id: str,
) -> None:
    """Let ACCOUNT spend at most USD per period; a budget that is there is replaced.

    A limit below what is spent already stops new effects at once; 0 stops them all. ACCOUNT may be
    one that has spent nothing yet. Per run limits each run below ACCOUNT, with its sub-runs.
    """
    enforcement = reservation_pb2.ENFORCEMENT_SOFT if soft else reservation_pb2.ENFORCEMENT_HARD
    request = cost_report_service_pb2.SetBudgetRequest(
        account=account,
        period=_period(period),
        limit_nanos=limit_nanos,
        enforcement=enforcement,
        alert_percents=alert_percents,
        request_id=request_id or new_request_id(),
    )
    budget = session.run(lambda edge: _set(edge, request))
    if session.output.as_json:
        session.output.document({"budget": documents.of_message(budget)})
    else:
        session.output.table([budget], _COLUMNS)
    if budget.over_nanos:
        effect = "it refuses nothing" if soft else "no new effect starts that costs anything"
        session.output.warn(f"{account} is {usd(budget.over_nanos)} above this limit; {effect}")


@command.command(
    "delete",
    epilog="\b\nExamples:\n  remit budgets delete orgs/local/users/alice --per day\n"
    "  remit budgets delete orgs/local",
)
@click.argument("account")
@_per
@_request_id
@client_options
def delete_budget(*, session: Session, account: str, period: str, request_id: str) -> None:
    """Delete the budget of ACCOUNT for a period, and show what applies to it now.

    An org whose last budget that refuses is deleted has the default of settings again.
    """
    request = cost_report_service_pb2.DeleteBudgetRequest(
        account=account, period=_period(period), request_id=request_id or new_request_id()
    )
    deleted = session.run(lambda edge: _delete(edge, request))
    if session.output.as_json:
        session.output.document(documents.of_message(deleted))
        return
    limit = usd(deleted.budget.limit_nanos)
    session.output.line(f"the budget of {account} per {period}, {limit}, is deleted")
    if deleted.remaining:
        session.output.table(deleted.remaining, _COLUMNS)
    else:
        session.output.line(f"{account} has no budget now; those of the accounts above it apply")


@command.command(
    "alerts",
    epilog="\b\nExamples:\n  remit budgets alerts\n"
    "  remit budgets alerts orgs/local/users/alice --limit 5\n"
    "  remit budgets alerts --json | jq '.alerts[] | select(.percent >= 100)'",
)
@click.argument("account", default="", required=False)
@limit_option
@client_options
def list_alerts(*, session: Session, account: str, limit: int) -> None:
    """List the alerts of the budgets of your org, or of ACCOUNT alone, the latest first."""
    listing = session.run(lambda edge: _alerts(edge, account, limit))
    session.output.listing("alerts", listing.items, _ALERT_COLUMNS, more=listing.more)


async def _budgets(edge: Edge, limit: int) -> Listing[Budget]:
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)

    async def fetch(size: int, token: str) -> cost_report_service_pb2.ListBudgetsResponse:
        request = cost_report_service_pb2.ListBudgetsRequest(page_size=size, page_token=token)
        return await stub.ListBudgets(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.budgets, limit)


async def _set(edge: Edge, request: cost_report_service_pb2.SetBudgetRequest) -> Budget:
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)
    return (await stub.SetBudget(request, metadata=edge.metadata)).budget


async def _delete(
    edge: Edge, request: cost_report_service_pb2.DeleteBudgetRequest
) -> cost_report_service_pb2.DeleteBudgetResponse:
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)
    return await stub.DeleteBudget(request, metadata=edge.metadata)


async def _alerts(edge: Edge, account: str, limit: int) -> Listing[BudgetAlert]:
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)

    async def fetch(size: int, token: str) -> cost_report_service_pb2.ListBudgetAlertsResponse:
        request = cost_report_service_pb2.ListBudgetAlertsRequest(
            account=account, page_size=size, page_token=token
        )
        return await stub.ListBudgetAlerts(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.alerts, limit)


def _period(word: str) -> reservation_pb2.Period.ValueType:
    return reservation_pb2.Period.Value(f"{_PREFIX}{word.upper()}")
