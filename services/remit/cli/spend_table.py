"""How `remit spend` shows rows to people: a table, and in a terminal a small chart beside it.

In a terminal, columns of rare money are left out where there is none, and the chart takes the room
that is left. Into a pipe a table has all its columns, always, and no chart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from remit.cli.bars import bar, plain_bar
from remit.cli.output import Column, Output
from remit.cli.wording import usd

Row = TypeVar("Row")

_GAP_CELLS: Final = 2
_LEAST_CELLS: Final = 5
_MOST_CELLS: Final = 24
_RARE: Final = frozenset({"held", "overrun"})


def show(
    output: Output,
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    amount: Callable[[Row], int | None],
) -> None:
    """Prints a table; `amount` is what a row's bar stands for, None for a row without one."""
    if output.is_terminal:
        columns = [column for column in columns if not _is_left_out(column, rows)]
        cells = min(output.console.width - _width(columns, rows), _MOST_CELLS)
        if cells >= _LEAST_CELLS:
            columns = [*columns, _chart(output, [amount(row) for row in rows], amount, cells)]
    output.table(rows, columns)


def _is_left_out(column: Column[Row], rows: Sequence[Row]) -> bool:
    return column.head in _RARE and all(column.cell(row) == usd(0) for row in rows)


def _width(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> int:
    """Cells of a table that breaks no line, with the gap behind it."""
    return sum(
        max(len(column.head), *(len(column.cell(row)) for row in rows)) + _GAP_CELLS
        for column in columns
    )


def _chart(
    output: Output,
    amounts: Sequence[int | None],
    amount: Callable[[Row], int | None],
    cells: int,
) -> Column[Row]:
    most = max((each for each in amounts if each is not None), default=0)
    draw = bar if output.console.encoding.startswith("utf") else plain_bar
    return Column[Row]("share", lambda row: draw(amount(row) or 0, most, cells), keep=True)
