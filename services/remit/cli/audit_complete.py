"""`remit audit verify --complete`: whether the log has all that happened, asked of the mesh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import click

from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    log_difference_pb2,
)
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import documents, exit_codes
from remit.cli.client import Edge, Session
from remit.cli.output import Column, Output
from remit.cli.wording import local_time
from remit.client import is_break
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

Found = log_difference_pb2.LogDifference
Step = audit_query_service_pb2.CheckCompletenessResponse
Query = audit_query_service_pb2_grpc.AuditQueryServiceStub
MOST_RESUMES: Final = 5
"""How often in a row a check that broke off without a step is taken up again."""
MOST_SHOWN: Final = 200
_WHOLE: Final = 100
_COUNTS: Final = ("attempts", "events", "reservations", "calls", "after_cut")

complete_option = click.option(
    "--complete",
    is_flag=True,
    help="Ask a running mesh whether the log has all that happened, instead of verifying FILE: log,"
    " ledger, claims and journals are compared. It needs no FILE and no --key.",
)


def _kind(found: Found) -> str:
    known = Found.Kind.DESCRIPTOR.values_by_number.get(found.kind)
    return (known.name if known else "KIND_UNKNOWN").removeprefix("KIND_").lower().replace("_", " ")


_COLUMNS: Final = (
    Column[Found]("difference", _kind, keep=True),
    Column[Found]("claim", lambda f: f.claim, keep=True),
    Column[Found]("attempt", lambda f: str(f.attempt or "-"), "right"),
    Column[Found](
        "leaf", lambda f: str(f.leaf_index) if f.HasField("leaf_index") else "-", "right"
    ),
    Column[Found]("service", lambda f: f.service or "-"),
    Column[Found]("explanation", lambda f: f.explanation),
)


@dataclass
class Result:
    """What a check compared and found."""

    percent: int = 0
    first: Step | None = None
    """Its cut is the one that all of the check has passed."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    elsewhere: int = 0
    count: int = 0
    shown: list[Found] = field(default_factory=list)
    """The first of them."""

    def add(self, step: Step) -> None:
        """Counts a step."""
        self.first = self.first or step
        self.percent = step.percent
        for name in _COUNTS:
            self.counts[name] += getattr(step, name)
        self.elsewhere += step.differences_elsewhere
        self.count += len(step.differences)
        self.shown += step.differences[: MOST_SHOWN - len(self.shown)]

    @property
    def is_complete(self) -> bool:
        """Whether nothing differs, of whichever org."""
        return not (self.count or self.elsewhere)


def check_completeness(session: Session) -> int:
    """Runs a whole check and prints it; returns the exit code. Raises RemitError."""
    result = session.run(lambda edge: _checked(edge, session.output))
    _show(session.output, result)
    return exit_codes.OK if result.is_complete else exit_codes.DIFFERENT


async def _checked(edge: Edge, output: Output) -> Result:
    """A whole check, across broken streams. Raises RemitError when it cannot be ended."""
    stub, request = edge.stub(Query), audit_query_service_pb2.CheckCompletenessRequest()
    result, failures = Result(), 0
    pending: list[Step] = []
    while True:
        try:
            stream = aiter(stub.CheckCompleteness(request, metadata=edge.metadata))
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
        click.echo(f"\rchecking the log: {percent:3} %", nl=percent == _WHOLE, err=True)


def _show(output: Output, result: Result) -> None:
    cut = result.first or Step()
    if output.as_json:
        output.document(
            {
                "complete": result.is_complete,
                "cut_time": documents.of_message(cut).get("cut_time"),
                "tree_size": cut.tree_size,
                **result.counts,
                "differences": [documents.of_message(found) for found in result.shown],
                "more": result.count > len(result.shown),
                "differences_elsewhere": result.elsewhere,
            }
        )
        return
    counts = result.counts
    compared = (
        f"{counts['attempts']:,} attempts, {counts['events']:,} entries,"
        f" {counts['reservations']:,} reservations and {counts['calls']:,} calls of journals,"
        f" before {local_time(cut.cut_time)}"
    )
    if result.is_complete:
        output.line(f"audit: the log is complete: {compared}", "green")
        return
    if result.shown:
        output.table(result.shown, _COLUMNS)
        for kind, step in {_kind(found): found.next_step for found in result.shown}.items():
            output.line(f"{kind}: {step}")
    if result.count > len(result.shown):
        output.line(f"… there are {result.count - len(result.shown):,} more", "yellow")
    if result.elsewhere:
        output.line(
            f"{result.elsewhere:,} differences of other orgs: see the log of audit", "yellow"
        )
    places = f"{result.count + result.elsewhere:,} places"
    output.line(f"audit: the log is NOT complete, in {places}: {compared}", "bold red")
