"""`remit policy shadow`: a candidate beside the policies in force, and what it would decide."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

import click

from remit.api.policy.v1 import (
    permission_pb2,
    policy_set_service_pb2,
    policy_set_service_pb2_grpc,
)
from remit.cli import documents
from remit.cli.client import Edge, Session, client_options, new_request_id
from remit.cli.output import Column, Output
from remit.cli.parameters import Length, duration
from remit.cli.policy_files import policy_files
from remit.cli.wording import local_time

Shadow = policy_set_service_pb2.PolicyShadow
Change = policy_set_service_pb2.DecisionChange
_DECISIONS: Final = {
    permission_pb2.DECISION_ALLOW: "allow",
    permission_pb2.DECISION_DENY: "deny",
    permission_pb2.DECISION_APPROVAL_REQUIRED: "ask",
}
_ENDS: Final = {
    Shadow.END_STOPPED: "stopped",
    Shadow.END_EXPIRED: "over, its time is up",
    Shadow.END_PUSHED: "in force, it was pushed",
    Shadow.END_REPLACED: "replaced by another",
    Shadow.END_BROKEN: "broken: it does not fit the schema of this Remit; start it again",
}
_COLUMNS: Final = (
    Column[Change]("decisions", lambda c: f"{c.count:,}", "right", keep=True),
    Column[Change]("in force", lambda c: _DECISIONS.get(c.before, "?"), keep=True),
    Column[Change]("would be", lambda c: _DECISIONS.get(c.after, "?"), keep=True),
    Column[Change]("action", lambda c: c.action, keep=True),
    Column[Change]("first difference", lambda c: c.policy_id or "-", keep=True),
    Column[Change]("last resource", lambda c: c.resource, keep=True),
    Column[Change]("last", lambda c: local_time(c.decision_time)),
    Column[Change]("reason", lambda c: c.reason),
)

_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    "shadow",
    epilog="\b\nExamples:\n  remit policy shadow start policies -m 'mail for the core team'\n"
    "  remit policy shadow show\n  remit policy shadow stop",
)
def shadow() -> None:
    """Let policies see what is decided, without deciding, and show what they would change.

    One candidate at a time, for the whole mesh; admins of the org that operates it start it.
    """


@shadow.command(
    "start",
    epilog="\b\nExamples:\n  remit policy shadow start policies\n"
    "  remit policy shadow start policies --for 24h -m 'mail for the core team'",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--for",
    "lifetime",
    type=Length(),
    default=None,
    help="How long it sees decisions: a minute to 30 days.  [default: 7 days]",
)
@click.option("-m", "--message", default="", help="Why, for who looks and the audit log.")
@_request_id
@client_options
def start(
    *, session: Session, folder: Path, lifetime: timedelta | None, message: str, request_id: str
) -> None:
    """Let the *.cedar files in FOLDER see every decision from now on.

    They are checked as by a push. A candidate that is there already ends.
    """
    request = policy_set_service_pb2.StartPolicyShadowRequest(
        files=policy_files(folder),
        lifetime=duration(lifetime),
        message=message,
        request_id=request_id or new_request_id(),
    )

    async def work(edge: Edge) -> Shadow:
        return (await _stub(edge).StartPolicyShadow(request, metadata=edge.metadata)).shadow

    _show(session.output, session.run(work))


@shadow.command(
    "show",
    epilog="\b\nExamples:\n  remit policy shadow show\n"
    "  remit policy shadow show --json | jq '.shadow.newly_denied'",
)
@client_options
def show(*, session: Session) -> None:
    """Show what the newest candidate would have decided otherwise, ended or not."""

    async def work(edge: Edge) -> Shadow:
        request = policy_set_service_pb2.GetPolicyShadowRequest()
        return (await _stub(edge).GetPolicyShadow(request, metadata=edge.metadata)).shadow

    _show(session.output, session.run(work))


@shadow.command("stop", epilog="\b\nExamples:\n  remit policy shadow stop")
@_request_id
@client_options
def stop(*, session: Session, request_id: str) -> None:
    """End the candidate; what it would have decided is kept."""
    request = policy_set_service_pb2.StopPolicyShadowRequest(
        request_id=request_id or new_request_id()
    )

    async def work(edge: Edge) -> Shadow:
        return (await _stub(edge).StopPolicyShadow(request, metadata=edge.metadata)).shadow

    _show(session.output, session.run(work))


def _stub(edge: Edge) -> policy_set_service_pb2_grpc.PolicySetServiceStub:
    return edge.stub(policy_set_service_pb2_grpc.PolicySetServiceStub)


def _show(output: Output, found: Shadow) -> None:
    if output.as_json:
        output.document({"shadow": documents.of_message(found)})
        return
    if found.changes:
        output.table(found.changes, _COLUMNS)
    if found.unlisted:
        output.line(f"… and {found.unlisted:,} more, of other kinds", "yellow")
    output.line(
        f"{found.policy_count} policies by {found.author}, since {local_time(found.create_time)}: "
        + _standing(found)
    )
    output.line(
        f"of {_seen(found):,} decisions {found.newly_denied:,} would be denied,"
        f" {found.newly_allowed:,} allowed and {found.newly_asked:,} asked about that were not"
    )
    if found.failed:
        fault = f"{found.failed:,} could not be decided: a policy failed, which denies"
        output.line(fault, "red")
    if found.dropped:
        output.line(f"{found.dropped:,} were too many at once and were not seen", "yellow")


def _standing(found: Shadow) -> str:
    if found.end == Shadow.END_UNSPECIFIED:
        return f"sees decisions until {local_time(found.expire_time)}"
    return _ENDS.get(found.end, "ended")


def _seen(found: Shadow) -> int:
    newly = found.newly_denied + found.newly_allowed + found.newly_asked
    return found.agreed + newly + found.failed
