"""`remit cost check`: the whole ledger against the claims, and what to do where they part."""

from __future__ import annotations

from typing import Final

import click

from remit.api.cost.v1 import (
    cost_report_service_pb2,
    cost_report_service_pb2_grpc,
    ledger_difference_pb2,
)
from remit.cli import checks, exit_codes
from remit.cli.client import Edge, Session, client_options
from remit.cli.output import Column, Output

Found = ledger_difference_pb2.LedgerDifference
Step = cost_report_service_pb2.CheckLedgerResponse
Reports = cost_report_service_pb2_grpc.CostReportServiceStub
_COUNTS: Final = ("reservations", "attempts", "resolved_late")
_COLUMNS: Final = (
    Column[Found]("difference", checks.kind_of, keep=True),
    Column[Found]("claim", lambda f: f.claim or "-", keep=True),
    Column[Found]("attempt", lambda f: str(f.attempt or "-"), "right"),
    Column[Found]("service", lambda f: f.service or "-"),
    Column[Found]("account", lambda f: f.account or "-"),
    Column[Found]("explanation", lambda f: f.explanation),
)


@click.group(epilog="\b\nExamples:\n  remit cost check\n  remit cost check --json")
def command() -> None:
    """Check the ledger."""


@command.command(
    "check",
    epilog="\b\nExamples:\n  remit cost check\n"
    "  remit cost check --json | jq '.differences[].explanation'\n\n"
    "\b\nExit codes:\n    0  ledger and claims agree\n"
    "    9  they do not; each difference is named and explained\n"
    "    any other: it could not be checked, for the reason that the error names",
)
@client_options
def check(*, session: Session) -> int:
    """Check the whole ledger against the claims of model and tool calls, and against itself.

    Every hold must have its claim and every claim its hold, and what is posted must be what the
    claim was billed. Differences of your org are named; those of others are counted, and the log of
    the cost service names them. It changes nothing.
    """
    result = session.run(lambda edge: _checked(edge, session.output))
    _show(session.output, result)
    return exit_codes.OK if result.is_clean else exit_codes.DIFFERENT


async def _checked(edge: Edge, output: Output) -> checks.Result[Step]:
    stub, request = edge.stub(Reports), cost_report_service_pb2.CheckLedgerRequest()
    return await checks.followed(
        lambda asked: stub.CheckLedger(asked, metadata=edge.metadata),
        request,
        _COUNTS,
        checks.progress(output, "the ledger"),
    )


def _show(output: Output, result: checks.Result[Step]) -> None:
    counts = result.counts
    if output.as_json:
        output.document({"agrees": result.is_clean, **counts, **result.document()})
        return
    compared = f"{counts['reservations']:,} reservations and {counts['attempts']:,} attempts"
    if counts["resolved_late"]:
        output.line(
            f"{counts['resolved_late']:,} effects in doubt were resolved after their whole holds"
            " had been posted; that stays so"
        )
    if result.is_clean:
        output.line(f"cost: ledger and claims agree: {compared}", "green")
        return
    checks.show_differences(output, result, _COLUMNS, "cost")
    output.line(f"cost: ledger and claims DIFFER in {result.places}: {compared}", "bold red")
