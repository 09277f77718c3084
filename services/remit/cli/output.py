"""What a command prints: tables and coloured lines for people, JSON for machines.

On a terminal tables fit its width; into a pipe they are as wide as they must be, so that nothing is
cut that a script may want. NO_COLOR is honoured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TextIO, TypeVar

import click
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from remit.cli import documents
from remit.cli.wording import printable

Row = TypeVar("Row")
RowMessage = TypeVar("RowMessage", bound=Message)

_PIPE_WIDTH: Final = 4_096


@dataclass(frozen=True)
class Line:
    """A line for people and its rich style."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table: its head and how a row fills it."""

    head: str
    cell: Callable[[Row], str]
    justify: Literal["left", "right"] = "left"
    keep: bool = False
    """Whether the terminal's width must not break it: names that people copy."""


class Output:
    """Standard output in one of the two forms, and warnings on standard error."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self.as_json = as_json
        self._stream = stream or sys.stdout
        width = None if self._stream.isatty() else _PIPE_WIDTH
        self.console = Console(file=self._stream, width=width, highlight=False, emoji=False)

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it now."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def line(self, text: str, style: str = "") -> None:
        """Prints a line for people; its characters command nothing."""
        # Of its own width: a pipe must not get a sentence padded or wrapped.
        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def lines(self, lines: Iterable[Line]) -> None:
        """Prints lines for people."""
        for line in lines:
            self.line(line.text, line.style)

    def document(self, document: Mapping[str, Any]) -> None:
        """Prints one JSON object on a line of its own."""
        self._stream.write(documents.to_line(document) + "\n")
        self._stream.flush()

    def warn(self, text: str) -> None:
        """Prints a warning beside the output."""
        click.echo(f"warning: {printable(text)}", err=True)

    def listing(
        self,
        name: str,
        rows: Sequence[RowMessage],
        columns: Sequence[Column[RowMessage]],
        *,
        more: bool = False,
    ) -> None:
        """Prints a list: a table, or `{"<name>": [...], "more": ...}`."""
        if self.as_json:
            items = [documents.of_message(row) for row in rows]
            self.document({name: items, "more": more})
            return
        if not rows:
            self.line(f"no {name.replace('_', ' ')}", "dim")
            return
        self.table(rows, columns)
        if more:
            self.line("… there are more; raise --limit", "yellow")

    def table(self, rows: Iterable[Row], columns: Sequence[Column[Row]]) -> None:
        """Prints a table for people."""
        self._print_table(self.made_table(rows, columns))

    def made_table(self, rows: Iterable[Row], columns: Sequence[Column[Row]]) -> Table:
        """The table, for who draws it."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(
                column.head.upper(),
                justify=column.justify,
                no_wrap=column.keep,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(printable(column.cell(row))) for column in columns))
        return table

    def _print_table(self, table: Table) -> None:
        if self.is_terminal:
            self.console.print(table)
            return
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():
            self._stream.write(line.rstrip() + "\n")

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Prints named facts one below the other; empty ones are left out."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts:
            if value:
                table.add_row(name, Text(printable(value)))
        self._print_table(table)
