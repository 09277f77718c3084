"""`remit runs fork`, `retry` and `replay`: go on from where a run stood, or go through it again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

import click

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.cli import documents, exit_codes
from remit.cli.client import Session, client_options
from remit.cli.output import Line
from remit.cli.parameters import Length, Pair, Usd, duration
from remit.cli.run_view import MOST_VALUE_CHARS, when
from remit.cli.wording import shortened

_REQUEST_ID_HELP: Final = (
    "Names this request: given again with the same options, it is the same run."
)


@click.command(
    "fork",
    epilog="\b\nExamples:\n  remit runs fork 01981a2b-... --from 12\n"
    "  remit runs fork 01981a2b-... --step 2 --task 'Answer in French.'\n"
    "  remit runs watch $(remit runs fork 01981a2b-... --step 1 --current)",
)
@click.argument("name")
@click.option("--from", "sequence", type=int, help="Go on after this event of the run.")
@click.option("--step", type=int, help="Go on just before this step.")
@click.option("--task", help="Another task; `-` reads it from standard input.")
@click.option(
    "-c",
    "--context",
    "facts",
    type=Pair(),
    multiple=True,
    help="A fact in the place of all those of the run; repeatable.",
)
@click.option("--no-context", is_flag=True, help="Take over none of the run's facts.")
@click.option("--max-cost", "max_cost_nanos", type=Usd(), help="Most money in USD, such as 0.05.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Most model turns, all counted.")
@click.option("--timeout", type=Length(), help="Most time, such as 90s, 5min or 2h.")
@click.option("--priority", type=click.IntRange(1, 5), help="Which waiting runs go first.")
@click.option("--current", is_flag=True, help="Use the agent's definition as it is now.")
@click.option("--request-id", default="", help=_REQUEST_ID_HELP)
@client_options
def fork(  # noqa: PLR0913 - one parameter an option
    *,
    session: Session,
    name: str,
    sequence: int | None,
    step: int | None,
    task: str | None,
    facts: tuple[tuple[str, str], ...],
    no_context: bool,
    max_cost_nanos: int | None,
    max_steps: int | None,
    timeout: timedelta | None,
    priority: int | None,
    current: bool,
    request_id: str,
) -> None:
    """Start a run that goes on from where the run NAME stood, and print its name.

    It takes over model turns and tool results up to the point, pays for none of them and calls
    nothing of it again. What it does from there has keys, a budget and a record of its own.
    """
    if (sequence is None) == (step is None):
        message = "say where it goes on: --from EVENT or --step STEP, one of them"
        raise click.UsageError(message)
    if facts and no_context:
        message = "--context and --no-context exclude each other"
        raise click.UsageError(message)
    has_context = bool(facts) or no_context
    overrides = agent_service_pb2.RunOverrides(
        task=sys.stdin.read() if task == "-" else task,
        context=agent_service_pb2.RunContext(entries=dict(facts)) if has_context else None,
        limits=run_pb2.RunLimits(
            max_cost_nanos=max_cost_nanos, max_steps=max_steps, max_duration=duration(timeout)
        ),
        priority=priority or 0,
        agent_version="current" if current else "",
    )
    request = agent_service_pb2.ForkRunRequest(overrides=overrides, request_id=request_id)
    if sequence is not None:
        request.from_sequence = sequence
    if step is not None:
        request.from_step = step
    _tell(session, session.run(lambda edge: edge.runs.fork(name, request)))


@click.command(
    "retry",
    epilog="\b\nExamples:\n  remit runs retry 01981a2b-...\n"
    "  remit runs retry 01981a2b-... --step 2",
)
@click.argument("name")
@click.option("--step", type=int, help="Step to begin with.  [default: the last, if it failed]")
@click.option("--request-id", default="", help=_REQUEST_ID_HELP)
@client_options
def retry(*, session: Session, name: str, step: int | None, request_id: str) -> None:
    """Try the last step of the failed run NAME again, in a new run, and print its name.

    The steps before it are taken over: nothing of them is called again or paid again.
    """
    request = agent_service_pb2.ForkRunRequest(request_id=request_id)
    if step is not None:
        request.from_step = step
    _tell(session, session.run(lambda edge: edge.runs.fork(name, request)))


@click.command(
    "replay",
    epilog="\b\nExamples:\n  remit runs replay 01981a2b-...\n"
    "  remit runs replay 01981a2b-... --current\n"
    "  remit runs replay --json 01981a2b-... | jq .divergence.field\n\n" + exit_codes.help_text(),
)
@click.argument("name")
@click.option("--task", help="Replay with another task; `-` reads it from standard input.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Replay with so many model turns.")
@click.option("--current", is_flag=True, help="Use the agent's definition as it is now.")
@client_options
def replay(
    *, session: Session, name: str, task: str | None, max_steps: int | None, current: bool
) -> int:
    """Go through the run NAME again, from its record alone, and name the first difference.

    Nothing is called, spent or written. Ends with 1 where there is a difference.
    """
    overrides = agent_service_pb2.RunOverrides(
        task=sys.stdin.read() if task == "-" else task,
        agent_version="current" if current else "",
    )
    if max_steps is not None:
        overrides.limits.max_steps = max_steps
    found = session.run(lambda edge: edge.runs.replay(name, overrides))
    if session.output.as_json:
        session.output.document(documents.of_message(found))
    else:
        session.output.lines(_replayed(found))
    return exit_codes.FAILED if found.HasField("divergence") else exit_codes.OK


def _replayed(found: agent_service_pb2.ReplayRunResponse) -> Iterator[Line]:
    compared = f"{found.requests_compared} model requests compared"
    yield Line(f"{found.last_sequence} events, {compared}, version {found.agent_version[:12]}")
    if found.requests_unrecorded:
        turns = f"{found.requests_unrecorded} model turns"
        yield Line(f"{turns} are from before it was recorded what was asked", "yellow")
    if not found.HasField("divergence"):
        yield Line("no difference", "green")
        return
    where = found.divergence
    yield Line(f"event {where.sequence}, step {where.step} differs: {where.field}", "bold red")
    yield Line(f"  recorded  {shortened(where.recorded, MOST_VALUE_CHARS)}")
    yield Line(f"  replayed  {shortened(where.replayed, MOST_VALUE_CHARS)}")


def origin(run: run_pb2.Run) -> str:
    """Where a fork took over, in words; empty for a run that is none."""
    if not run.HasField("fork"):
        return ""
    taken = run.fork
    steps = f"{taken.turns} step{'' if taken.turns == 1 else 's'}"
    changed = f"; other: {', '.join(taken.overrides)}" if taken.overrides else ""
    return f"{taken.run} at event {taken.sequence}, {steps} taken over{changed}"


def _tell(session: Session, run: run_pb2.Run) -> None:
    if session.output.as_json:
        session.output.document({"run": documents.of_message(run)})
        return
    session.output.line(run.name)
    if session.output.is_terminal:  # a script wants the name alone
        session.output.line(f"  forked from {origin(run)}", "dim")
        session.output.line(f"  {when(run)}; remit runs watch {run.name}", "dim")
