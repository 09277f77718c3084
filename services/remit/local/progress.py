"""A line for each part of the mesh while it starts and stops, kept live on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TextIO

from remit.local.process import Reporter

if TYPE_CHECKING:
    from rich.live import Live

_STYLES: Final = {
    "starting": "yellow",
    "ready": "green",
    "died": "bold red",
    "killed": "red",
    "draining": "yellow",
    "stopped": "dim",
}


def reporter_for(stream: TextIO | None = None) -> Reporter:
    """A live table where the stream is a terminal, else one plain line for each change."""
    target = stream or sys.stdout
    return TerminalReporter(target) if target.isatty() else PlainReporter(target)


class PlainReporter:
    """One line a change, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def part(self, name: str, state: str, detail: str = "") -> None:
        """Prints the change of a part."""
        self.note(f"{name:<14} {state:<9} {detail}".rstrip())

    def note(self, message: str) -> None:
        """Prints a line."""
        self._stream.write(f"{message}\n")
        self._stream.flush()


class TerminalReporter:
    """A table that shows the newest state of each part; deaths stay on the screen as lines."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415 - slow, and only a terminal needs it

        self._console = Console(file=stream)
        self._parts: dict[str, tuple[str, str]] = {}
        self._live: Live | None = None

    def part(self, name: str, state: str, detail: str = "") -> None:
        """Shows the change of a part."""
        if state in {"died", "killed"}:
            self._console.print(f"{name} {state}: {detail}", style=_STYLES[state], markup=False)
        self._parts[name] = (state, detail)
        self._refresh()

    def note(self, message: str) -> None:
        """Ends the table, so that it stays above, and prints a line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._parts = {}
        self._console.print(message, highlight=False, markup=False)

    def _refresh(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - as above
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415 - as above

        table = Table.grid(padding=(0, 2))
        for name, (state, detail) in self._parts.items():
            table.add_row(name, Text(state, _STYLES.get(state, "")), Text(detail))
        if self._live is None:
            self._live = Live(table, console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(table, refresh=True)
