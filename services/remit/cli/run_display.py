"""Where a run is shown: a live terminal, plain lines in a pipe, JSON for machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, Protocol, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from remit.api.agent.v1 import run_pb2
from remit.cli import documents
from remit.cli.output import Line, Output
from remit.cli.run_view import RunView, event_document, summary
from remit.cli.wording import printable
from remit.rpc.errors import RemitError

_LIVE_TEXT_LINES: Final = 6
_REFRESHES_PER_S: Final = 10


class Display(Protocol):
    """Shows a run while it goes on."""

    def event(self, event: run_pb2.RunEvent) -> None:
        """Shows one event."""
        ...

    def broken(self, sequence: int, cause: RemitError) -> None:
        """Says that the stream broke after a sequence and is opened again."""
        ...

    def note(self, text: str) -> None:
        """Says something that is no event."""
        ...

    def end(self, run: run_pb2.Run, exit_code: int) -> None:
        """Says what machines want at the end."""
        ...


@contextlib.contextmanager
def display_for(output: Output) -> Iterator[Display]:
    """The display that suits the output, for the body."""
    if output.as_json:
        yield JsonDisplay(output)
    elif output.is_terminal:
        with LiveDisplay(output) as live:
            yield live
    else:
        yield PlainDisplay(output)


class JsonDisplay:
    """One JSON object a line: each event, then the summary."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: run_pb2.RunEvent) -> None:
        """Prints the event."""
        self._output.document(event_document(event))

    def broken(self, sequence: int, cause: RemitError) -> None:
        """Prints that the stream is opened again."""
        error = documents.of_error(cause)
        self._output.document({"type": "resuming", "after_sequence": sequence, "error": error})

    def note(self, text: str) -> None:
        """Notes are for people."""
        self._output.warn(text)

    def end(self, run: run_pb2.Run, exit_code: int) -> None:
        """Prints the summary."""
        self._output.document(summary(run, exit_code))


class PlainDisplay:
    """A line for whatever happens."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._view = RunView()

    def event(self, event: run_pb2.RunEvent) -> None:
        """Prints the lines that the event is worth."""
        self._output.lines(self._view.apply(event))

    def broken(self, sequence: int, cause: RemitError) -> None:
        """Prints that the stream is opened again."""
        self.note(broken_text(sequence, cause))

    def note(self, text: str) -> None:
        """Prints a line."""
        self._output.line(text, "yellow")

    def end(self, run: run_pb2.Run, exit_code: int) -> None:
        """The last event has said everything."""


class LiveDisplay:
    """Lines that stay, above a region that shows stage, percent and the text as it comes."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._view = RunView()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            console=output.console,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            get_renderable=self._region,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, event: run_pb2.RunEvent) -> None:
        """Prints the lines that the event is worth; the end takes the region away first."""
        lines = self._view.apply(event)
        if event.WhichOneof("event") == "ended":
            self._live.stop()
        self._output.lines(lines)

    def broken(self, sequence: int, cause: RemitError) -> None:
        """Prints that the stream is opened again."""
        self.note(broken_text(sequence, cause))

    def note(self, text: str) -> None:
        """Prints a line above the region."""
        self._output.lines([Line(text, "yellow")])

    def end(self, run: run_pb2.Run, exit_code: int) -> None:
        """The last event has said everything."""

    def _region(self) -> RenderableType:
        status = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=100, completed=self._view.percent, width=24)
        status.add_row(self._spinner, bar, f"{self._view.percent} %", Text(self._view.stage))
        tail = printable(self._view.text).splitlines()[-_LIVE_TEXT_LINES:]
        return Group(status, *(Text(f"  {line}", style="italic") for line in tail))


def broken_text(sequence: int, cause: RemitError) -> str:
    """What a person is told when the stream broke."""
    why = f": {cause.message}" if cause.message else ""
    return f"  the connection broke after event {sequence}{why}; the run goes on, resuming"
