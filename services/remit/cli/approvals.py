"""`remit approvals`: what waits for people, and their decisions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import click
from google.protobuf import json_format

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import approval_pb2, approval_service_pb2, approval_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column, Output
from remit.cli.parameters import limit_option
from remit.cli.wording import local_time, usd
from remit.client import is_break
from remit.client.breaks import silent
from remit.client.resumption import Patience, Resumption
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

Approval = approval_pb2.Approval
_PREFIX: Final = "APPROVAL_STATE_"
_STATES: Final = tuple(
    name.removeprefix(_PREFIX).lower() for name in approval_pb2.ApprovalState.keys()[1:]
)
MOST_AWAY_S: Final = 300.0
"""How long a mesh that has answered before may be away before a watch is given up."""


def _state(approval: Approval) -> str:
    known = approval_pb2.ApprovalState.DESCRIPTOR.values_by_number.get(approval.state)
    return known.name.removeprefix(_PREFIX) if known else "unknown"


def _who(approval: Approval) -> str:
    return "; ".join(f"{rule.quorum} of {' or '.join(rule.approvers)}" for rule in approval.rules)


_COLUMNS: Final = (
    Column[Approval]("approval", lambda a: a.name, keep=True),
    Column[Approval]("state", _state, keep=True),
    Column[Approval]("what", lambda a: f"{a.action} {a.resource}"),
    Column[Approval]("for", lambda a: a.requester, keep=True),
    Column[Approval]("run", lambda a: a.run or "-", keep=True),
    Column[Approval]("costs at most", lambda a: usd(a.cost_bound_nanos), "right", keep=True),
    Column[Approval]("asked of", _who),
    Column[Approval]("until", lambda a: local_time(a.expire_time), keep=True),
)


def _full_name(value: str) -> str:
    """The name of an approval; its id alone will do. Raises BadParameter."""
    name = value if value.startswith("approvals/") else f"approvals/{value}"
    if not names.is_name("approval", name):
        message = f"{value!r} is no approval, such as approvals/01981a2b-..."
        raise click.BadParameter(message)
    return name


_name_argument = click.argument("name")
_reason_option = click.option("--reason", default="", help="Why, for who asked and for the log.")
_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)
_digest_option = click.option(
    "--digest", default="", help="Digest that `show` told, in hex; another one is refused."
)


@click.group(
    epilog="\b\nExamples:\n  remit approvals list\n  remit approvals show approvals/01981a2b-...\n"
    "  remit approvals approve approvals/01981a2b-... --reason 'checked the recipient'"
)
def command() -> None:
    """List, show and follow what waits for approval; approve or deny it."""


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit approvals list\n"
    "  remit approvals list --in-state all --limit 100\n"
    "  remit approvals list --run runs/01981a2b-... --json",
)
@click.option(
    "--in-state",
    "stands",
    type=click.Choice([*_STATES, "all"]),
    default="pending",
    show_default=True,
    help="Where they stand.",
)
@click.option("--run", default="", help="Only those of this run: runs/RUN.")
@limit_option
@client_options
def list_approvals(*, session: Session, stands: str, run: str, limit: int) -> None:
    """List the approvals that you asked for or may give, the newest first."""
    wanted = approval_pb2.APPROVAL_STATE_UNSPECIFIED
    if stands != "all":
        wanted = approval_pb2.ApprovalState.Value(_PREFIX + stands.upper())
    request = approval_service_pb2.ListApprovalsRequest(state=wanted, run=run)
    listing = session.run(lambda edge: _listed(edge, request, limit))
    session.output.listing("approvals", listing.items, _COLUMNS, more=listing.more)


@command.command("show", epilog="\b\nExamples:\n  remit approvals show approvals/01981a2b-...")
@_name_argument
@client_options
def show(*, session: Session, name: str) -> None:
    """Show exactly what would be done if the approval NAME were given, and who may give it."""
    full_name = _full_name(name)
    _print(session.output, session.run(lambda edge: _got(edge, full_name)))


@command.command(
    "approve",
    epilog="\b\nExamples:\n  remit approvals approve approvals/01981a2b-...\n"
    "  remit approvals approve approvals/01981a2b-... --digest 5f3c... --reason 'as agreed'",
)
@_name_argument
@_reason_option
@_digest_option
@_request_id
@client_options
def approve(*, session: Session, name: str, reason: str, digest: str, request_id: str) -> None:
    """Approve what NAME asks for, exactly as it is."""
    _decide(session, name, approval_pb2.APPROVAL_VERDICT_APPROVE, reason, digest, request_id)


@command.command(
    "deny",
    epilog="\b\nExamples:\n  remit approvals deny approvals/01981a2b-... --reason 'wrong address'",
)
@_name_argument
@click.option("--reason", required=True, help="Why, for who asked and for the log.")
@_digest_option
@_request_id
@client_options
def deny(*, session: Session, name: str, reason: str, digest: str, request_id: str) -> None:
    """Deny what NAME asks for; one who denies is enough."""
    _decide(session, name, approval_pb2.APPROVAL_VERDICT_DENY, reason, digest, request_id)


@command.command(
    "watch",
    epilog="\b\nExamples:\n  remit approvals watch\n  remit approvals watch --after 0 --json",
)
@click.option(
    "--after",
    type=click.IntRange(0),
    default=0,
    help="Go on after this sequence.  [default: begin with what is pending]",
)
@client_options
def watch(*, session: Session, after: int) -> None:
    """Follow the approvals that concern you, from the pending ones on, until Ctrl-C."""
    request = approval_service_pb2.WatchApprovalsRequest(after_sequence=after)
    session.run(lambda edge: _followed(edge, request, session.output))


def _decide(
    session: Session,
    name: str,
    verdict: approval_pb2.ApprovalVerdict.ValueType,
    reason: str,
    digest: str,
    request_id: str,
) -> None:
    request = approval_service_pb2.DecideApprovalRequest(
        name=_full_name(name),
        verdict=verdict,
        reason=reason,
        digest=_digest(digest),
        request_id=request_id or new_request_id(),
    )
    _print(session.output, session.run(lambda edge: _decided(edge, request, session.output)))


def _digest(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        message = f"--digest {text!r} is not in hex"
        raise click.UsageError(message) from error


def _print(output: Output, approval: Approval) -> None:
    if output.as_json:
        output.document({"approval": documents.of_message(approval)})
        return
    output.facts(
        [
            ("approval", approval.name),
            ("state", _state(approval)),
            ("what", f"{approval.action} {approval.resource}"),
            ("arguments", _arguments(approval)),
            ("repeats", _repeats(approval)),
            ("costs at most", usd(approval.cost_bound_nanos)),
            ("for", " ".join(filter(None, (approval.requester, approval.team)))),
            ("agent", approval.agent),
            ("run", approval.run),
            ("because", approval.policy_reason),
            ("policies", f"{', '.join(approval.policy_ids)} (epoch {approval.policy_epoch})"),
            ("asked of", _who(approval)),
            *(("said", _said(vote)) for vote in approval.votes),
            ("until", local_time(approval.expire_time)),
            ("digest", approval.digest.hex()),
        ]
    )


def _arguments(approval: Approval) -> str:
    if not approval.HasField("arguments"):
        return ""
    return documents.to_line(json_format.MessageToDict(approval.arguments))


def _repeats(approval: Approval) -> str:
    if not approval.repeats_claim:
        return ""
    return f"{approval.repeats_claim}, of which nobody knows whether it took effect"


def _said(vote: approval_pb2.ApprovalVote) -> str:
    word = approval_pb2.ApprovalVerdict.Name(vote.verdict).removeprefix("APPROVAL_VERDICT_")
    why = f": {vote.reason}" if vote.reason else ""
    return f"{vote.subject} {word} at {local_time(vote.create_time)}{why}"


def _stub(edge: Edge) -> approval_service_pb2_grpc.ApprovalServiceStub:
    return edge.stub(approval_service_pb2_grpc.ApprovalServiceStub)


async def _listed(
    edge: Edge, request: approval_service_pb2.ListApprovalsRequest, limit: int
) -> Listing[Approval]:
    async def fetch(size: int, token: str) -> approval_service_pb2.ListApprovalsResponse:
        request.page_size, request.page_token = size, token
        return await _stub(edge).ListApprovals(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.approvals, limit)


async def _got(edge: Edge, name: str) -> Approval:
    request = approval_service_pb2.GetApprovalRequest(name=name)
    return (await _stub(edge).GetApproval(request, metadata=edge.metadata)).approval


async def _decided(
    edge: Edge, request: approval_service_pb2.DecideApprovalRequest, output: Output
) -> Approval:
    if not request.digest:
        # What is decided about is shown first, and nothing else than that is decided about.
        seen = await _got(edge, request.name)
        if not output.as_json:
            _print(output, seen)
        request.digest = seen.digest
    return (await _stub(edge).DecideApproval(request, metadata=edge.metadata)).approval


async def _followed(
    edge: Edge, request: approval_service_pb2.WatchApprovalsRequest, output: Output
) -> None:
    async for message in _pieces(edge, request, output):
        if not message.HasField("approval"):
            continue
        approval = message.approval
        if output.as_json:
            output.document(documents.of_message(message))
        else:
            output.line(
                f"{_state(approval):<9} {approval.name}  {approval.action}  {approval.resource}"
                f"  {approval.requester}  {approval.run or '-'}"
            )


async def _pieces(
    edge: Edge, request: approval_service_pb2.WatchApprovalsRequest, output: Output
) -> AsyncIterator[approval_service_pb2.WatchApprovalsResponse]:
    """The messages of a watch; one that broke is opened again after the last sequence.

    Raises RemitError: the server refused, or was away for too long.
    """
    resumption = Resumption(Patience())
    clock, failures = resumption.clock, 0
    give_up = clock.monotonic() + resumption.patience.unanswered_s
    while True:
        try:
            async for message in _opened(edge, request, resumption.patience.silence_s):
                # Before the first heartbeat some of what is pending may not have been shown yet.
                if request.after_sequence or not message.HasField("approval"):
                    request.after_sequence = message.sequence
                failures, give_up = 0, clock.monotonic() + MOST_AWAY_S
                yield message
        except RemitError as error:
            failures += 1
            pause_s = resumption.pause_s(failures, error)
            if not is_break(error) or clock.monotonic() + pause_s >= give_up:
                raise
            output.warn(f"{error.message}; resuming")
            await resumption.pause(pause_s)


async def _opened(
    edge: Edge, request: approval_service_pb2.WatchApprovalsRequest, silence_s: float
) -> AsyncIterator[approval_service_pb2.WatchApprovalsResponse]:
    """One stream's messages. Raises DEPENDENCY_UNAVAILABLE too where it falls silent or is cut."""
    call = _stub(edge).WatchApprovals(request, metadata=edge.metadata)
    async with reading(aiter(call)) as stream:
        messages = aiter(stream)
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    message = await anext(messages, None)
            except TimeoutError as error:
                raise silent(silence_s) from error
            if message is None:
                break
            yield message
    raise RemitError(
        error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"the stream ended after sequence {request.after_sequence}, though it goes on",
    )
