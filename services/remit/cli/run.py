"""`remit run`: start an agent on a task, follow it, end with its answer, cost and record."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import click

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import documents, exit_codes
from remit.cli.client import Edge, Session, client_options, new_request_id
from remit.cli.conversations import newest
from remit.cli.interrupts import on_interrupt
from remit.cli.parameters import Length, Pair, Start, Usd, duration, full_name, timestamp
from remit.cli.run_display import Display, display_for
from remit.cli.run_view import when
from remit.client import RunStream
from remit.rpc.errors import RemitError

CANCEL_WAIT_S: Final = 15.0
"""How long a cancelled run gets to end before the command leaves it."""
_NAME_WAIT_S: Final = 5.0


@click.command(
    epilog="\b\nExamples:\n"
    "  remit run 'What is 17 * 23?'\n"
    "  remit run --agent researcher -c topic=tides 'Summarise the notes on the topic.'\n"
    "  remit run --max-cost 0.05 --timeout 2min - < task.txt\n"
    "  remit run --detach --webhook https://example.com/ended 'Summarise what came in today.'\n"
    "  remit run --detach --at 2h --priority 4 'Summarise what came in today.'\n"
    "  remit run --continue 'And in UTC?'\n"
    "  remit run --json 'What time is it in UTC?' | jq -r 'select(.type==\"summary\").result'"
    "\n\n" + exit_codes.help_text()
)
@click.argument("task")
@click.option("--agent", default="assistant", show_default=True, help="Agent that runs the task.")
@click.option(
    "-c",
    "--context",
    "facts",
    type=Pair(),
    multiple=True,
    help="A fact that the agent is given; repeatable.",
)
@click.option("--max-cost", "max_cost_nanos", type=Usd(), help="Most money in USD, such as 0.05.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Most model turns.")
@click.option("--timeout", type=Length(), help="Most time, such as 90s, 5min or 2h.")
@click.option(
    "--priority",
    type=click.IntRange(1, 5),
    help="Which of your org's waiting runs go first: 1 before 5.  [default: 3]",
)
@click.option(
    "--at", "start_time", type=Start(), help="Start no sooner, such as 2h (from now) or a time."
)
@click.option("--conversation", default="", help="The conversation that the run continues.")
@click.option(
    "--continue", "go_on", is_flag=True, help="Continue the conversation that you used last."
)
@click.option(
    "--webhook", metavar="URL", default="", help="https address that is told when the run ends."
)
@click.option("--detach", is_flag=True, help="Only start it: print its name and end.")
@click.option(
    "--request-id",
    default="",
    help="Names this request: given again with the same task, it follows the same run.",
)
@client_options
def command(  # noqa: PLR0913 - one parameter an option
    *,
    session: Session,
    task: str,
    agent: str,
    facts: tuple[tuple[str, str], ...],
    max_cost_nanos: int | None,
    max_steps: int | None,
    timeout: timedelta | None,
    priority: int | None,
    start_time: datetime | None,
    conversation: str,
    go_on: bool,
    webhook: str,
    detach: bool,
    request_id: str,
) -> int:
    """Run an agent on TASK (`-` reads it from standard input) and follow it to its end.

    Shows stages, text and tool calls as they happen, then the answer, the tokens, the cost and the
    position in the audit log. A broken connection is resumed by itself: the run goes on meanwhile.

    Ctrl-C cancels the run at the server, and the command ends with code 130 once it has stopped; a
    second Ctrl-C does not wait. With --json each line is one event with its `type`; the last line
    has the type `summary`, or `error`.
    """
    request = agent_service_pb2.CreateRunRequest(
        agent=full_name("agents", agent),
        task=sys.stdin.read() if task == "-" else task,
        context=dict(facts),
        limits=run_pb2.RunLimits(
            max_cost_nanos=max_cost_nanos, max_steps=max_steps, max_duration=duration(timeout)
        ),
        request_id=request_id or new_request_id(),
        priority=priority or 0,
        schedule_time=timestamp(start_time),
        conversation=_conversation(session, conversation, go_on=go_on),
        webhook=webhook,
    )
    if detach:
        _tell_accepted(session, session.run(lambda edge: edge.runs.create(request)))
        return exit_codes.OK
    with display_for(session.output) as display:
        run = session.run(lambda edge: execute(edge, request, display))
        code = exit_code_of(run)
        display.end(run, code)
    return code


def _conversation(session: Session, name: str, *, go_on: bool) -> str:
    if name and go_on:
        message = "--conversation names one and --continue takes the one used last: give either"
        raise click.UsageError(message)
    return session.run(newest) if go_on else full_name("conversations", name) if name else ""


def _tell_accepted(session: Session, run: run_pb2.Run) -> None:
    if session.output.as_json:
        session.output.document({"run": documents.of_message(run)})
        return
    session.output.line(run.name)
    if session.output.is_terminal:  # a script wants the name alone
        session.output.line(f"  {when(run)}; remit runs watch {run.name}", "dim")


async def execute(
    edge: Edge, request: agent_service_pb2.CreateRunRequest, display: Display
) -> run_pb2.Run:
    """Starts a run, shows it, and returns it as it ended; Ctrl-C cancels it.

    Raises:
        RemitError: the run was refused, or could not be followed to its end; CANCELLED if the
            person would not wait for the end of the cancelled run.

    """
    journey = start(edge, request, display)
    canceller = Canceller(edge, journey, display)
    reader = asyncio.create_task(journey.to_end(), name="follow")
    with on_interrupt(lambda: canceller.press(reader)):
        try:
            return await reader
        except asyncio.CancelledError as error:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CANCELLED,
                "left before the end of the run was recorded; `remit runs list` shows how it ended",
            ) from error
        finally:
            await canceller.close()


def start(edge: Edge, request: agent_service_pb2.CreateRunRequest, display: Display) -> Journey:
    """The journey of a new run; the run starts when the journey is followed."""
    return Journey(lambda on_break: edge.runs.stream(request, on_break=on_break), display)


class Journey:
    """A run shown from its first event to its last."""

    def __init__(
        self, follow: Callable[[Callable[[RemitError], None]], RunStream], display: Display
    ) -> None:
        self._display = display
        self._events = follow(self._broken)
        self._named = asyncio.Event()

    async def to_end(self) -> run_pb2.Run:
        """Shows every event; returns the run as it ended. Raises RemitError.

        The run has no name where it had ended before the first event that was asked for.
        """
        async with self._events as events:
            async for event in events:
                self._named.set()
                self._display.event(event)
        return events.ended or run_pb2.Run()

    async def name(self) -> str:
        """The run's name, as soon as it is known."""
        await self._named.wait()
        return self._events.run

    def _broken(self, cause: RemitError) -> None:
        self._display.broken(self._events.sequence, cause)


class Canceller:
    """What Ctrl-C does: first it cancels the run, then it leaves."""

    def __init__(self, edge: Edge, journey: Journey, display: Display) -> None:
        self._edge = edge
        self._journey = journey
        self._display = display
        self._task: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def press(self, reader: asyncio.Task[run_pb2.Run]) -> None:
        """Ctrl-C was pressed."""
        if self._task is not None:
            reader.cancel()
            return
        self._display.note("  cancelling the run; press Ctrl-C again not to wait for its end")
        self._task = asyncio.create_task(self._cancel(), name="cancel")
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(CANCEL_WAIT_S, reader.cancel)

    async def close(self) -> None:
        """Lets a request under way be sent, and ends."""
        if self._patience is not None:
            self._patience.cancel()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=1.0)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _cancel(self) -> None:
        try:
            async with asyncio.timeout(_NAME_WAIT_S):
                name = await self._journey.name()
            await self._edge.runs.cancel(name)
        except TimeoutError:
            self._display.note("  the run has no name yet; look for it with `remit runs list`")
        except RemitError as error:
            self._display.note(f"  it could not be cancelled: {error.message}")


def exit_code_of(run: run_pb2.Run) -> int:
    """0 for an answer, 130 for a cancelled run, else the code of the error's reason."""
    if run.state == run_pb2.RUN_STATE_SUCCEEDED:
        return exit_codes.OK
    if run.state == run_pb2.RUN_STATE_CANCELLED:
        return exit_codes.INTERRUPTED
    code = exit_codes.of_error(RemitError.from_status(run.error))
    return code if code != exit_codes.OK else exit_codes.FAILED
