"""`remit cost check`: the whole ledger against the claims, and what to do where they part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import click

from remit.api.cost.v1 import (
    cost_report_service_pb2,
    cost_report_service_pb2_grpc,
    ledger_difference_pb2,
)
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import documents, exit_codes
from remit.cli.client import Edge, Session, client_options
from remit.cli.output import Column, Output
from remit.client import is_break
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

Found = ledger_difference_pb2.LedgerDifference
Step = cost_report_service_pb2.CheckLedgerResponse
Reports = cost_report_service_pb2_grpc.CostReportServiceStub
MOST_RESUMES: Final = 5
"""How often in a row a check that broke off without a step is taken up again."""
MOST_SHOWN: Final = 200
_WHOLE: Final = 100


def _kind(found: Found) -> str:
    known = Found.Kind.DESCRIPTOR.values_by_number.get(found.kind)
    return (known.name if known else "KIND_UNKNOWN").removeprefix("KIND_").lower().replace("_", " ")


_COLUMNS: Final = (
    Column[Found]("difference", _kind, keep=True),
    Column[Found]("claim", lambda f: f.claim or "-", keep=True),
    Column[Found]("attempt", lambda f: str(f.attempt or "-"), "right"),
    Column[Found]("service", lambda f: f.service or "-"),
    Column[Found]("account", lambda f: f.account or "-"),
    Column[Found]("explanation", lambda f: f.explanation),
)


@dataclass
class Result:
    """What a check compared and found."""

    percent: int = 0
    reservations: int = 0
    attempts: int = 0
    resolved_late: int = 0
    elsewhere: int = 0
    count: int = 0
    shown: list[Found] = field(default_factory=list)
    """The first of them."""

    def add(self, step: Step) -> None:
        """Counts a step."""
        self.percent = step.percent
        self.reservations += step.reservations
        self.attempts += step.attempts
        self.resolved_late += step.resolved_late
        self.elsewhere += step.differences_elsewhere
        self.count += len(step.differences)
        self.shown += step.differences[: MOST_SHOWN - len(self.shown)]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs, of whichever org."""
        return not (self.count or self.elsewhere)


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
    return exit_codes.OK if result.agrees else exit_codes.DIFFERENT


async def _checked(edge: Edge, output: Output) -> Result:
    """A whole check, across broken streams. Raises RemitError when it cannot be ended."""
    stub, request = edge.stub(Reports), cost_report_service_pb2.CheckLedgerRequest()
    result, failures = Result(), 0
    pending: list[Step] = []
    while True:
        try:
            stream = aiter(stub.CheckLedger(request, metadata=edge.metadata))
            async with reading(stream):
                async for step in stream:
                    pending.append(step)
                    if step.resume_token != request.resume_token or step.percent == _WHOLE:
                        _count(result, pending)
                        request.resume_token, failures = step.resume_token, 0
                    _progress(output, step.percent)
            _check_ended(result)
        except RemitError as error:
            failures += 1
            pending.clear()  # these steps come again
            if failures > MOST_RESUMES or not is_break(error):
                raise
        else:
            return result


def _check_ended(result: Result) -> None:
    """A stream that was cut may look like one that ended."""
    if result.percent < _WHOLE:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            f"the check broke off at {result.percent} %",
        )


def _count(result: Result, pending: list[Step]) -> None:
    for step in pending:
        result.add(step)
    pending.clear()


def _progress(output: Output, percent: int) -> None:
    """Tells a person who waits how far it is."""
    if output.is_terminal and not output.as_json:
        click.echo(f"\rchecking the ledger: {percent:3} %", nl=percent == _WHOLE, err=True)


def _show(output: Output, result: Result) -> None:
    if output.as_json:
        output.document(
            {
                "agrees": result.agrees,
                "reservations": result.reservations,
                "attempts": result.attempts,
                "resolved_late": result.resolved_late,
                "differences": [documents.of_message(found) for found in result.shown],
                "more": result.count > len(result.shown),
                "differences_elsewhere": result.elsewhere,
            }
        )
        return
    compared = f"{result.reservations:,} reservations and {result.attempts:,} attempts"
    if result.resolved_late:
        output.line(
            f"{result.resolved_late:,} effects in doubt were resolved after their whole holds had"
            " been posted; that stays so"
        )
    if result.agrees:
        output.line(f"cost: ledger and claims agree: {compared}", "green")
        return
    if result.shown:
        output.table(result.shown, _COLUMNS)
        for kind, step in {_kind(found): found.next_step for found in result.shown}.items():
            output.line(f"{kind}: {step}")
    if result.count > len(result.shown):
        output.line(f"… there are {result.count - len(result.shown):,} more", "yellow")
    if result.elsewhere:
        output.line(
            f"{result.elsewhere:,} differences of other orgs: see the log of cost", "yellow"
        )
    output.line(
        f"cost: ledger and claims DIFFER in {result.count + result.elsewhere:,} places: {compared}",
        "bold red",
    )
