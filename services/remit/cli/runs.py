"""`remit runs`: the runs that there are, one in full, following one, stopping one, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from remit.api.agent.v1 import run_pb2
from remit.cli import documents, exit_codes, runs_fork
from remit.cli.client import Edge, Session, client_options
from remit.cli.output import Column
from remit.cli.parameters import limit_option
from remit.cli.run import Journey, exit_code_of
from remit.cli.run_display import Display, display_for
from remit.cli.run_view import ERASED, continues, ending, state_name, task_of
from remit.cli.runs_top import command as top
from remit.cli.runs_tree import command as tree
from remit.cli.wording import last_part, local_time, seconds, span, usd
from remit.client import ListedRuns

_STATES: Final = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
_TASK_CHARS: Final = 60
_COLUMNS: Final = (
    Column[run_pb2.Run]("run", lambda r: last_part(r.name), keep=True),
    Column[run_pb2.Run]("agent", lambda r: last_part(r.agent), keep=True),
    Column[run_pb2.Run]("state", lambda r: state_name(r.state), keep=True),
    Column[run_pb2.Run]("created", lambda r: local_time(r.create_time), keep=True),
    Column[run_pb2.Run]("cost", lambda r: usd(r.cost_nanos), "right", keep=True),
    Column[run_pb2.Run]("task", lambda r: task_of(r, _TASK_CHARS)),
)


@click.group(
    epilog="\b\nExamples:\n  remit runs list --in-state failed\n  remit runs show 01981a2b-...\n"
    "  remit runs watch 01981a2b-...\n  remit runs cancel 01981a2b-..."
)
def command() -> None:
    """List, show, watch, pause, resume, cancel, fork, retry and replay runs."""


for _command in (top, tree, runs_fork.fork, runs_fork.retry, runs_fork.replay):
    command.add_command(_command)


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit runs list\n  remit runs list --agent clerk --in-state running\n"
    "  remit runs list --json | jq -r '.runs[].name'",
)
@click.option("--agent", default="", help="Only of this agent.")
@click.option("--in-state", type=click.Choice(_STATES), help="Only in this state.")
@click.option("--conversation", default="", help="Only of this conversation.")
@limit_option
@client_options
def list_runs(
    *, session: Session, agent: str, in_state: str | None, conversation: str, limit: int
) -> None:
    """List the runs that you may read, newest first."""
    only = ListedRuns(agent=agent, state=_state(in_state), conversation=conversation)
    listing = session.run(lambda edge: edge.runs.list(only, limit=limit))
    session.output.listing("runs", listing.runs, _COLUMNS, more=listing.more)


@command.command(
    "show",
    epilog="\b\nExamples:\n  remit runs show 01981a2b-...\n"
    "  remit runs show --json 01981a2b-... | jq .run.usage",
)
@click.argument("name")
@client_options
def show(*, session: Session, name: str) -> None:
    """Show the run NAME: its task, its limits, its answer, and what it used."""
    run = session.run(lambda edge: edge.runs.get(name))
    _print_run(session, run)


@command.command(
    "watch",
    epilog="\b\nExamples:\n  remit runs watch 01981a2b-...\n"
    "  remit runs watch --json 01981a2b-... | jq .type\n\n" + exit_codes.help_text(),
)
@click.argument("name")
@click.option(
    "--after", type=click.IntRange(min=0), default=0, help="Skip events up to this sequence."
)
@client_options
def watch(*, session: Session, name: str, after: int) -> int:
    """Follow the run NAME from its first event to its end.

    Ctrl-C stops watching; the run goes on. The exit code is that of `remit run`.
    """
    with display_for(session.output) as display:
        run = session.run(lambda edge: _watched(edge, name, after, display))
        code = exit_code_of(run)
        display.end(run, code)
    return code


@command.command(
    "cancel", epilog="\b\nExamples:\n  remit runs cancel 01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
)
@click.argument("name")
@client_options
def cancel(*, session: Session, name: str) -> None:
    """Ask the run NAME to stop.

    Nothing new starts after the answer; what is under way is asked to stop, and is billed for what
    it used.
    """
    _tell_state(session, session.run(lambda edge: edge.runs.cancel(name)))


@command.command(
    "pause", epilog="\b\nExamples:\n  remit runs pause 01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
)
@click.argument("name")
@client_options
def pause(*, session: Session, name: str) -> None:
    """Halt the run NAME until it is resumed; its time limit stands still.

    Nothing new starts after the answer. A tool call under way ends and is not made again.
    """
    _tell_state(session, session.run(lambda edge: edge.runs.pause(name)))


@command.command(
    "resume", epilog="\b\nExamples:\n  remit runs resume 01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
)
@click.argument("name")
@client_options
def resume(*, session: Session, name: str) -> None:
    """Let the paused run NAME go on where it stood."""
    _tell_state(session, session.run(lambda edge: edge.runs.resume(name)))


@command.command(
    "artifact",
    epilog="\b\nExamples:\n"
    "  remit runs artifact 01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b report.md\n"
    "  remit runs artifact 01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b report.md --out report.md",
)
@click.argument("name")
@click.argument("file")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it there instead of to standard output; an existing file is not overwritten.",
)
@client_options
def artifact(*, session: Session, name: str, file: str, out: Path | None) -> None:
    """Fetch a FILE that the run NAME made."""
    found = session.run(lambda edge: edge.runs.artifact(name, file))
    if out is not None:
        _write_new(out, found.content)
    if session.output.as_json:
        session.output.document({"artifact": documents.of_message(found)})
    elif out is None:
        click.echo(found.content, nl=False)
    else:
        session.output.line(f"{out}: {len(found.content)} bytes, {found.media_type}")


def _tell_state(session: Session, run: run_pb2.Run) -> None:
    if session.output.as_json:
        session.output.document({"run": documents.of_message(run)})
    else:
        session.output.line(f"{run.name} is {state_name(run.state)}")


def _write_new(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as new:
            new.write(content)
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise click.UsageError(message) from error


def _state(name: str | None) -> run_pb2.RunState.ValueType:
    if name is None:
        return run_pb2.RUN_STATE_UNSPECIFIED
    return run_pb2.RunState.Value(f"RUN_STATE_{name.upper()}")


def _print_run(session: Session, run: run_pb2.Run) -> None:
    output = session.output
    if output.as_json:
        output.document({"run": documents.of_message(run)})
        return
    output.facts(
        (
            ("run", run.name),
            ("agent", f"{run.agent} (version {run.agent_version[:12]})"),
            ("by", run.subject),
            ("part of", run.parent),
            ("forked from", runs_fork.origin(run)),
            ("continues", continues(run)),
            ("task", ERASED if run.erased else run.task),
            *((f"context {key}", run.context[key]) for key in sorted(run.context)),
            ("progress", f"{run.percent} %{f', {run.stage}' if run.stage else ''}"),
            ("created", local_time(run.create_time)),
            *_place_in_queue(run),
            ("started", local_time(run.start_time)),
            ("ended", local_time(run.end_time)),
            ("limits", _limits(run.limits)),
            ("events", str(run.last_sequence)),
            *_webhook(run),
        )
    )
    output.lines(ending(run))


def _place_in_queue(run: run_pb2.Run) -> tuple[tuple[str, str], ...]:
    if run.HasField("schedule_time"):
        return (("priority", str(run.priority)), ("not before", local_time(run.schedule_time)))
    return (("priority", str(run.priority)),)


def _webhook(run: run_pb2.Run) -> tuple[tuple[str, str], ...]:
    """Where the run's end is told, and how far that is."""
    if not run.HasField("webhook"):
        return ()
    webhook = run.webhook
    facts = [("webhook", webhook.url), ("told", _told(webhook))]
    if webhook.HasField("error"):
        facts.append(("not told", webhook.error.message))
    return tuple(facts)


def _told(webhook: run_pb2.Webhook) -> str:
    tries = f"{webhook.tries} {'try' if webhook.tries == 1 else 'tries'}"
    match webhook.state:
        case run_pb2.WEBHOOK_STATE_PENDING:
            return f"not yet, after {tries}; next {local_time(webhook.next_try_time)}"
        case run_pb2.WEBHOOK_STATE_DELIVERED:
            return f"{local_time(webhook.end_time)}, after {tries}"
        case run_pb2.WEBHOOK_STATE_FAILED:
            return f"given up {local_time(webhook.end_time)}, after {tries}"
        case _:
            return "when the run ends"


def _limits(limits: run_pb2.RunLimits) -> str:
    longest = span(seconds(limits.max_duration))
    return f"{limits.max_steps} steps, {longest}, {usd(limits.max_cost_nanos)}"


async def _watched(edge: Edge, name: str, after: int, display: Display) -> run_pb2.Run:
    run = await Journey(
        lambda on_break: edge.runs.watch(name, after_sequence=after, on_break=on_break), display
    ).to_end()
    if run.name:
        return run
    display.note(f"  nothing follows event {after}: the run has ended")
    return await edge.runs.get(name)
