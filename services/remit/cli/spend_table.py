"""How `remit spend` shows rows to people: a table, and in a terminal a small chart beside it.

Into a pipe a table has all its columns, always, and no chart. In a terminal, columns of rare money
are left out where there is none, then counts where there is no room; the chart takes the room that
is left. Names and money are never cut, for half an amount is another amount: a line that is too
long goes on in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from remit.api.cost.v1 import cost_report_service_pb2
from remit.cli.bars import bar, plain_bar
from remit.cli.output import Column, Output
from remit.cli.wording import usd

Row = TypeVar("Row")

_GAP_CELLS: Final = 2
_LEAST_CELLS: Final = 5
_MOST_CELLS: Final = 24
_RARE: Final = frozenset({"held", "overrun"})


def spent(row: cost_report_service_pb2.SpendRow) -> str:
    """What was posted; `unknown` where nobody knew a price, for that is not a price of zero."""
    if not row.unpriced_effects:
        return usd(row.posted_nanos)
    return f"{usd(row.posted_nanos)} + unknown" if row.posted_nanos else "unknown"


def show(
    output: Output,
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    amount: Callable[[Row], int | None],
) -> None:
    """Prints a table; `amount` is what a row's bar stands for, None for a row without one."""
    if output.is_terminal:
        columns = _fitting(columns, rows, output.console.width)
        width = _width(columns, rows)
        cells = min(output.console.width - width - _GAP_CELLS, _MOST_CELLS)
        if cells >= _LEAST_CELLS:
            columns = [*columns, _chart(output, [amount(row) for row in rows], amount, cells)]
        # Else the table cuts what does not fit; the terminal breaks a line and loses nothing.
        output.console.width = max(output.console.width, width)
    output.table(rows, columns)


def _fitting(
    columns: Sequence[Column[Row]], rows: Sequence[Row], width: int
) -> Sequence[Column[Row]]:
    """The columns but for rare money that is not there, and the last counts that do not fit."""
    fitting = [column for column in columns if not _is_left_out(column, rows)]
    for column in reversed(columns):
        if not column.keep and _width(fitting, rows) > width:
            fitting.remove(column)
    return fitting


def _is_left_out(column: Column[Row], rows: Sequence[Row]) -> bool:
    return column.head in _RARE and all(column.cell(row) == usd(0) for row in rows)


def _width(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> int:
    """Cells of a table that breaks no line."""
    cells = [
        max(len(text) for text in (column.head, *map(column.cell, rows))) for column in columns
    ]
    return sum(cells) + _GAP_CELLS * (len(cells) - 1)


def _chart(
    output: Output,
    amounts: Sequence[int | None],
    amount: Callable[[Row], int | None],
    cells: int,
) -> Column[Row]:
    most = max((each for each in amounts if each is not None), default=0)
    draw = bar if output.console.encoding.startswith("utf") else plain_bar
    return Column[Row]("share", lambda row: draw(amount(row) or 0, most, cells), keep=True)
