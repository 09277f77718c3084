"""Rows as one array a column: the fastest way into PostgreSQL.

A round trip costs more than a row, so a batch is one statement whatever its size.

A table's columns are stated once, each with its SQL type and where its value comes from; what a
statement says and what it is given both follow from that list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column of an insert or update: its name, its SQL type and where its value comes from."""

    name: str
    sql_type: str
    value: Callable[[Row], object]


def arrays(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> list[list[object]]:
    """The values of the rows, one list a column."""
    return [[column.value(row) for row in rows] for column in columns]


def names_of(columns: Iterable[Column[Any]]) -> str:
    """The names of the columns, with commas between."""
    return ", ".join(column.name for column in columns)


def unnest(columns: Sequence[Column[Any]], first: int = 1) -> str:
    """The call that turns arrays into rows; its arguments count from `first`."""
    types = (f"${n}::{column.sql_type}[]" for n, column in enumerate(columns, start=first))
    return f"unnest({', '.join(types)})"


def unnests(*tables: Sequence[Column[Any]]) -> list[str]:
    """The calls for several tables of one statement, whose arguments follow one another."""
    firsts = accumulate((len(columns) for columns in tables), initial=1)
    return [unnest(columns, first) for columns, first in zip(tables, firsts, strict=False)]
