"""Rows as CSV (RFC 4180) for spreadsheets and loaders; money as plain decimals of USD, exactly."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import click

from remit.cli.wording import NANOS_PER_USD


def write_csv(rows: Iterable[Sequence[str]]) -> None:
    """Writes rows to standard output; a null is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    click.echo(text.getvalue(), nl=False)


def plain_usd(nanos: int) -> str:
    """An exact amount of nano-USD, such as `-0.000391000`: nine decimals and nothing else."""
    whole, decimals = divmod(abs(nanos), NANOS_PER_USD)
    return f"{'-' if nanos < 0 else ''}{whole}.{decimals:09}"
