"""Every ErrorReason is provoked by a test, and raised somewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from remit.api.errors.v1.error_reason_pb2 import ErrorReason

ROOT = Path(__file__).parents[2]
REASONS = [ErrorReason.Name(number) for number in ErrorReason.values() if number]


@cache
def text_of(folder: str, *, without: str) -> str:
    """All Python text below a folder, but for what lies below `without`."""
    return "\n".join(
        file.read_text()
        for file in sorted((ROOT / folder).rglob("*.py"))
        if not file.is_relative_to(ROOT / without)
    )


@pytest.mark.parametrize("reason", REASONS)
def test_a_test_provokes_it(reason: str) -> None:
    tests = text_of("tests", without="tests/contracts")
    short = reason.removeprefix("ERROR_REASON_")
    assert reason in tests or f'"{short}"' in tests, f"no test names {short}"


@pytest.mark.parametrize("reason", REASONS)
def test_a_service_raises_it(reason: str) -> None:
    assert reason in text_of("services/remit", without="services/remit/api")
