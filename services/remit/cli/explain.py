"""`remit explain`: a run as one readable story, with what permitted, paid for and recorded it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, explanation_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.cli import documents, exit_codes
from remit.cli.client import Edge, Session, client_options
from remit.cli.output import Line
from remit.cli.parameters import full_name
from remit.cli.run_view import STATE_STYLES, state_name
from remit.cli.wording import last_part, local_time, moment, printable, span, usd

Explanation = agent_service_pb2.ExplainRunResponse
Entry = explanation_pb2.ExplainedEntry
Attempt = explanation_pb2.ExplainedAttempt
_PAGE: Final = 500
_STYLES: Final = {
    Entry.KIND_WAITING: "yellow",
    Entry.KIND_PAUSED: "yellow",
    Entry.KIND_CANCEL_REQUESTED: "yellow",
    Entry.KIND_EFFECT: "magenta",
}
_HELD: Final = reservation_pb2.Reservation.STATE_HELD


@click.command(
    "explain",
    epilog="\b\nExamples:\n  remit explain 01981a2b-...\n"
    "  remit explain --json 01981a2b-... | jq '.entries[].attempts[].intent.leaf_index'\n"
    "  remit explain --json 01981a2b-... | jq .bill.differences\n\n"
    "\b\nExit codes:\n    0  it is explained\n"
    "    3  a part could not be asked: the explanation lacks what it alone knows\n"
    "    any other: it could not be explained, for the reason that the error names",
)
@click.argument("run")
@client_options
def command(*, session: Session, run: str) -> int:
    """Explain RUN: its steps in order, and with each effect what stands behind it.

    Journal, claims, ledger and log are joined: the decision that permitted an effect, what was held
    and posted for it, its attempts, and the leaves of its intent and its outcome. What the journal
    does not name is told too, and the bill is added up to the nano, each difference by name. A
    month that was archived and may have held entries of the run is named. Who reads the log is
    itself recorded in it.
    """
    name = full_name("runs", run)
    explanation = session.run(lambda edge: _explained(edge, name))
    if session.output.as_json:
        session.output.document(documents.of_message(explanation))
    else:
        session.output.lines(story(explanation))
    return exit_codes.UNHEALTHY if explanation.missing else exit_codes.OK


def story(explanation: Explanation) -> Iterator[Line]:
    """The explanation in lines for people."""
    run = explanation.run
    yield Line(f"{run.name}  {state_name(run.state)}", STATE_STYLES.get(run.state, ""))
    yield Line(f"{last_part(run.agent)}, for {run.subject}, {local_time(run.create_time)}")
    if explanation.trace_ids:
        yield Line(f"trace {', '.join(explanation.trace_ids)}", "dim")
    for part in explanation.missing:
        yield Line(
            f"MISSING: {part.part} could not be asked, and what it alone knows is not told:"
            f" {part.reason}: {part.message}",
            "bold red",
        )
    for month in explanation.archived_months:
        yield Line(
            f"ARCHIVED: what the log had of it in {month.month} is not told: leaves"
            f" {month.first_index:,} to {month.last_index:,} are in the tiles, and their payloads"
            f" in {month.month}.archive; `remit audit verify TILES --archive ARCHIVE` proves both",
            "yellow",
        )
    yield Line("")
    for entry in explanation.entries:
        yield from _entry(entry, explanation)
    yield Line("")
    yield from _bill(explanation)


def _entry(entry: Entry, explanation: Explanation) -> Iterator[Line]:
    style = "red" if entry.reason else _STYLES.get(entry.kind, "")
    yield Line(
        f"{_since(entry, explanation):>10}  {_where(entry)}{entry.text}{_took(entry)}", style
    )
    if entry.run:
        yield Line(
            f"{'':10}    {usd(entry.cost_nanos)} with all below it: remit explain {entry.run}"
        )
    for attempt in entry.attempts:
        yield Line(f"{'':10}    {attempt.text}", "dim")
        yield Line(f"{'':10}    {attempt.key.claim}  {money(attempt)}", "dim")


def _since(entry: Entry, explanation: Explanation) -> str:
    """Since the run was accepted."""
    if not entry.HasField("start_time"):
        return "?"
    length = moment(entry.start_time) - moment(explanation.run.create_time)
    seconds = length.total_seconds()
    return f"+{span(seconds)}" if seconds >= 0 else f"-{span(-seconds)}"


def _where(entry: Entry) -> str:
    return f"step {entry.step}: " if entry.step else ""


def _took(entry: Entry) -> str:
    if not entry.HasField("end_time"):
        return ""
    length = moment(entry.end_time) - moment(entry.start_time)
    return f" ({span(max(length.total_seconds(), 0.0))})"


def money(attempt: Attempt) -> str:
    """What was held and posted for an attempt, and at which price."""
    if not attempt.HasField("reservation"):
        return "the ledger knows no money of it"
    reservation = attempt.reservation
    parts = [f"held {usd(reservation.hold_nanos)}"]
    if reservation.state != _HELD:
        parts.append(f"posted {usd(reservation.posted_nanos)}")
    if reservation.overrun_nanos:
        parts.append(f"overrun {usd(reservation.overrun_nanos)}")
    if attempt.price_source == "unlisted":
        parts.append("its price is unknown")
    elif reservation.price.version:
        parts.append(f"at price {reservation.price.version[:12]} ({attempt.price_source})")
    if attempt.HasField("used") and (attempt.used.input_tokens or attempt.used.output_tokens):
        parts.append(f"{attempt.used.input_tokens:,} tokens in, {attempt.used.output_tokens:,} out")
    return ", ".join(parts)


def _bill(explanation: Explanation) -> Iterator[Line]:
    bill = explanation.bill
    yield Line(f"the run says {usd(bill.run_nanos)}", "bold")
    if any(part.part == "cost" for part in explanation.missing):
        yield Line("the ledger could not be asked, so nobody added it up", "bold red")
        return
    yield Line(
        f"the ledger posted {usd(bill.posted_nanos)} for its own effects;"
        f" sub-runs cost {usd(bill.sub_runs_nanos)}"
    )
    if bill.held_nanos:
        yield Line(f"still held: {usd(bill.held_nanos)}", "yellow")
    if bill.overrun_nanos:
        yield Line(f"above its holds, paid by the operator: {usd(bill.overrun_nanos)}", "yellow")
    for found in bill.differences:
        yield Line(f"{usd(found.nanos)}: {found.claim or 'no claim'}: {found.text}", "yellow")
    total = bill.run_nanos + sum(found.nanos for found in bill.differences)
    if total == bill.posted_nanos + bill.sub_runs_nanos:
        with_them = f", with {len(bill.differences)} differences named" if bill.differences else ""
        yield Line(f"that adds up to the nano{with_them}", "green")
    else:
        yield Line(printable("that does NOT add up: tell who runs the mesh"), "bold red")


async def _explained(edge: Edge, run: str) -> Explanation:
    """All pages as one. Raises RemitError."""
    stub = edge.stub(agent_service_pb2_grpc.AgentServiceStub)
    request = agent_service_pb2.ExplainRunRequest(name=run, page_size=_PAGE)
    whole = await stub.ExplainRun(request, metadata=edge.metadata)
    while whole.next_page_token:
        request.page_token = whole.next_page_token
        page = await stub.ExplainRun(request, metadata=edge.metadata)
        whole.entries.extend(page.entries)
        whole.missing.extend(page.missing)
        named = {month.month for month in whole.archived_months}
        whole.archived_months.extend(m for m in page.archived_months if m.month not in named)
        whole.next_page_token = page.next_page_token
    return whole
