"""`remit policy simulate`: which recorded decisions a candidate would change."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import (
    permission_pb2,
    policy_set_service_pb2,
    policy_set_service_pb2_grpc,
)
from remit.cli import documents
from remit.cli.checks import MOST_RESUMES
from remit.cli.client import Edge, Session, client_options
from remit.cli.output import Column, Output
from remit.cli.parameters import Moment, timestamp
from remit.cli.policy_files import policy_files
from remit.cli.wording import local_time
from remit.client import is_break
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

Change = policy_set_service_pb2.DecisionChange
Step = policy_set_service_pb2.SimulatePolicyResponse
MOST_SHOWN: Final = 200
_COUNTS: Final = ("decisions", "questions", "erased", "newly_denied", "newly_allowed")


def _would_be(change: Change) -> str:
    allowed = change.after == permission_pb2.DECISION_ALLOW
    return "allowed" if allowed else "denied"


_COLUMNS: Final = (
    Column[Change]("would be", _would_be, keep=True),
    Column[Change]("decisions", lambda c: f"{c.count:,}", "right"),
    Column[Change]("subject", lambda c: c.subject, keep=True),
    Column[Change]("action", lambda c: c.action, keep=True),
    Column[Change]("resource", lambda c: c.resource, keep=True),
    Column[Change]("first difference", lambda c: c.policy_id or "-", keep=True),
    Column[Change]("last", lambda c: local_time(c.decision_time), keep=True),
    Column[Change]("reason", lambda c: c.reason),
)


@dataclass
class _Preview:
    """What came so far."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    shown: list[Change] = field(default_factory=list)
    more: int = 0
    done: bool = False

    def add(self, step: Step) -> None:
        for name in _COUNTS:
            self.counts[name] += getattr(step, name)
        room = MOST_SHOWN - len(self.shown)
        self.shown += step.changes[:room]
        self.more += len(step.changes[room:])
        self.done = step.done


@click.command(
    epilog="\b\nExamples:\n  remit policy simulate policies\n"
    "  remit policy simulate policies --since 24h\n"
    "  remit policy simulate policies --json | jq '.newly_denied'",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--since", type=Moment(), help="The earliest decisions.  [default: all]")
@click.option("--until", type=Moment(), help="The end of the latest.  [default: now]")
@click.option(
    "--most",
    type=click.IntRange(1, 1_000_000),
    default=100_000,
    show_default=True,
    help="Look at no more decisions, the latest ones.",
)
@client_options
def simulate(
    *,
    session: Session,
    folder: Path,
    since: datetime | None,
    until: datetime | None,
    most: int,
) -> None:
    """Ask recorded decisions again of the policies in FOLDER and show which would change.

    Nothing is put in force. Decisions that no policy can tell apart are shown together, with the
    first rule that makes the difference.
    """
    request = policy_set_service_pb2.SimulatePolicyRequest(
        files=policy_files(folder),
        start_time=timestamp(since),
        end_time=timestamp(until),
        max_decisions=most,
    )
    _show(session.output, session.run(lambda edge: _simulated(edge, request, session.output)))


async def _simulated(
    edge: Edge, request: policy_set_service_pb2.SimulatePolicyRequest, output: Output
) -> _Preview:
    stub = edge.stub(policy_set_service_pb2_grpc.PolicySetServiceStub)
    preview = _Preview()
    failures = 0
    while not preview.done:
        try:
            stream = aiter(stub.SimulatePolicy(request, metadata=edge.metadata))
            async with reading(stream):
                async for step in stream:
                    preview.add(step)
                    request.resume_token, failures = step.resume_token, 0
                    _tell(output, preview)
            _check_ended(preview)
        except RemitError as error:
            failures += 1
            if failures > MOST_RESUMES or not is_break(error):
                raise
    return preview


def _check_ended(preview: _Preview) -> None:
    """A stream that was cut may look like one that ended."""
    if not preview.done:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            f"the preview broke off after {preview.counts['decisions']:,} decisions",
        )


def _tell(output: Output, preview: _Preview) -> None:
    if output.is_terminal and not output.as_json:
        looked_at = f"\r{preview.counts['decisions']:,} decisions looked at"
        click.echo(looked_at, nl=preview.done, err=True)


def _show(output: Output, preview: _Preview) -> None:
    counts = preview.counts
    if output.as_json:
        changes = [documents.of_message(change) for change in preview.shown]
        output.document({**counts, "changes": changes, "more": preview.more > 0})
        return
    if preview.shown:
        output.table(preview.shown, _COLUMNS)
    if preview.more:
        output.line(f"… there are {preview.more:,} more", "yellow")
    output.line(
        f"of {counts['decisions']:,} decisions {counts['newly_denied']:,} would be denied and"
        f" {counts['newly_allowed']:,} allowed that were not"
    )
    if counts["erased"]:
        output.line(f"{counts['erased']:,} were of erased subjects and cannot be tried", "yellow")
