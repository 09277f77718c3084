"""`remit runs top`: the runs that go on, as a table that stays fresh in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from remit.api.agent.v1 import run_pb2
from remit.cli import documents, exit_codes
from remit.cli.client import Edge, Session, client_options
from remit.cli.interrupts import on_interrupt
from remit.cli.output import Column, Output
from remit.cli.parameters import Length
from remit.cli.run_view import state_name
from remit.cli.wording import age, last_part, moment, printable, usd
from remit.client import ListedRuns, is_break
from remit.rpc.clock import Clock, SystemClock
from remit.rpc.errors import RemitError

_GOING_ON: Final = (
    run_pb2.RUN_STATE_RUNNING,
    run_pb2.RUN_STATE_PAUSED,
    run_pb2.RUN_STATE_QUEUED,
)
_SHORTEST_S: Final = 0.2
_LONGEST_S: Final = 3_600.0
_HEAD_LINES: Final = 4
"""Lines of a terminal that are no runs: two of the head, the columns' names, the cursor's."""


@dataclass(frozen=True)
class Snapshot:
    """The runs at one time: those that go on first, then those that ended last."""

    runs: tuple[run_pb2.Run, ...]
    counts: tuple[tuple[str, int], ...]
    """How many there are of each state that goes on, up to the limit."""
    limit: int
    time: datetime

    @property
    def head(self) -> str:
        """The counts in words; at the limit they may be more."""
        told = (f"{n}{'+' if n >= self.limit else ''} {state}" for state, n in self.counts)
        return ", ".join(told)


@click.command(
    "top",
    epilog="\b\nExamples:\n  remit runs top\n  remit runs top --agent clerk --interval 5s\n"
    "  remit runs top --json | jq '.counts'",
)
@click.option("--agent", default="", help="Only of this agent.")
@click.option(
    "--interval",
    type=Length(),
    default="2s",
    show_default=True,
    help="How often a terminal is refreshed, from 200ms to 1h.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 200),
    default=50,
    show_default=True,
    help="Show at most this many; a terminal shows as many as fit.",
)
@client_options
def command(*, session: Session, agent: str, interval: timedelta, limit: int) -> int:
    """Show the runs that go on, then the newest that ended: state, stage, percent, cost and age.

    In a terminal the table stays fresh until Ctrl-C, which ends it with code 0; while the mesh is
    away it says so and keeps what it knows. Into a pipe, or with --json, it is printed once.
    """
    if not _SHORTEST_S <= interval.total_seconds() <= _LONGEST_S:
        raise click.BadParameter("must be from 200ms to 1h", param_hint="--interval")
    clock = SystemClock()
    if session.output.as_json or not session.output.is_terminal:
        _print(session.output, session.run(lambda edge: snapshot(edge, agent, limit, clock)))
    else:
        session.run(lambda edge: _stay_fresh(edge, session.output, agent, interval, limit))
    return exit_codes.OK


async def snapshot(edge: Edge, agent: str, limit: int, clock: Clock) -> Snapshot:
    """The runs as they are now. Raises RemitError."""
    asked = [ListedRuns(agent=agent, state=state) for state in _GOING_ON]
    lists = await asyncio.gather(
        *(edge.runs.list(only, limit=limit) for only in (*asked, ListedRuns(agent=agent)))
    )
    *going_on, newest = (found.runs for found in lists)
    # A run that changes its state between two answers is shown once, in its first.
    by_name: dict[str, run_pb2.Run] = {}
    for run in (run for runs in (*going_on, newest) for run in runs):
        by_name.setdefault(run.name, run)
    names = (state_name(state) for state in _GOING_ON)
    counts = tuple((name, len(runs)) for name, runs in zip(names, going_on, strict=True))
    return Snapshot(tuple(by_name.values())[:limit], counts, limit, clock.now())


def columns(now: datetime) -> tuple[Column[run_pb2.Run], ...]:
    """The columns of the table, which tell ages at a time."""
    return (
        Column("agent", lambda run: last_part(run.agent), keep=True),
        Column("state", lambda run: state_name(run.state), keep=True),
        Column("stage", lambda run: _stage(run, now), keep=True),
        Column("%", lambda run: str(run.percent), "right", keep=True),
        Column("cost", lambda run: usd(run.cost_nanos), "right", keep=True),
        Column(
            "age",
            lambda run: age((now - moment(run.create_time)).total_seconds()),
            "right",
            keep=True,
        ),
        # The longest comes last, and alone is folded where a terminal is narrow.
        Column("run", lambda run: last_part(run.name)),
    )


def _stage(run: run_pb2.Run, now: datetime) -> str:
    if run.state == run_pb2.RUN_STATE_QUEUED and run.HasField("schedule_time"):
        wait_s = (moment(run.schedule_time) - now).total_seconds()
        return f"starts in {age(wait_s)}" if wait_s > 0 else run.stage
    return run.stage


def _print(output: Output, taken: Snapshot) -> None:
    if output.as_json:
        output.document(
            {
                "time": taken.time.isoformat(),
                "counts": dict(taken.counts),
                "runs": [documents.of_message(run) for run in taken.runs],
            }
        )
        return
    output.line(taken.head, "bold")
    output.table(taken.runs, columns(taken.time))


async def _stay_fresh(
    edge: Edge, output: Output, agent: str, interval: timedelta, limit: int
) -> None:
    """Shows one snapshot after another until Ctrl-C. Raises RemitError for a refusal."""
    clock = SystemClock()

    async def take() -> Snapshot:
        return await snapshot(edge, agent, limit, clock)

    with LiveTable(output).showing() as table:
        showing = asyncio.create_task(table.refresh(take, interval.total_seconds()))
        with on_interrupt(showing.cancel), contextlib.suppress(asyncio.CancelledError):
            await showing


class LiveTable:
    """The newest snapshot in a terminal, with what went wrong since."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._taken: Snapshot | None = None
        self._fault = ""
        self._live = Live(
            console=output.console,
            auto_refresh=False,
            get_renderable=self._shown,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @contextlib.contextmanager
    def showing(self) -> Iterator[LiveTable]:
        """Draws for the body; the last table stays behind."""
        with self._live:
            yield self

    async def refresh(self, take: Callable[[], Awaitable[Snapshot]], interval_s: float) -> None:
        """Takes and shows snapshots until it is cancelled. Raises RemitError for a refusal."""
        while True:
            try:
                self._taken, self._fault = await take(), ""
            except RemitError as error:
                if self._taken is None or not (is_break(error) or error.retryable):
                    raise
                self._fault = f"no answer since then: {error.message}"
            self._live.refresh()
            await asyncio.sleep(interval_s)

    def _shown(self) -> RenderableType:
        taken = self._taken
        if taken is None:
            return Text("asking for runs", style="dim")
        head = f"{taken.time.astimezone():%H:%M:%S}  {taken.head}"
        room = max(self._output.console.height - _HEAD_LINES, 1)
        note = self._fault or ("Ctrl-C ends it" if len(taken.runs) <= room else "more do not fit")
        return Group(
            Text(head, style="bold"),
            Text(printable(note), style="yellow" if self._fault else "dim"),
            self._output.made_table(taken.runs[:room], columns(taken.time)),
        )
