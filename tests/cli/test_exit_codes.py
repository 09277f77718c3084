"""Every way to fail has one exit code, and the table is the only place that says so."""

from __future__ import annotations

from collections import Counter

import pytest

from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.cli import exit_codes
from remit.rpc.errors import RemitError

REASONS = [name.removeprefix("ERROR_REASON_") for name, number in ErrorReason.items() if number]


def test_every_reason_has_exactly_one_exit_code() -> None:
    stated = Counter(reason for row in exit_codes.MEANINGS for reason in row.reasons)
    assert stated == Counter(REASONS)


def test_codes_are_distinct_and_told_in_the_help() -> None:
    codes = [row.code for row in exit_codes.MEANINGS]
    assert len(set(codes)) == len(codes)
    told = exit_codes.help_text()
    assert all(f"{row.code:>3}  {row.text}" in told for row in exit_codes.MEANINGS)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("DEPENDENCY_UNAVAILABLE", 3),
        ("CREDENTIAL_REVOKED", 4),
        ("PERMISSION_DENIED", 4),
        ("AGENT_NOT_FOUND", 5),
        ("BUDGET_EXHAUSTED", 6),
        ("RUN_LIMIT_REACHED", 6),
        ("INVALID_REQUEST", 7),
        ("CANCELLED", 130),
        ("INTERNAL", 1),
    ],
)
def test_codes_that_scripts_rely_on(reason: str, code: int) -> None:
    error = RemitError(ErrorReason.Value(f"ERROR_REASON_{reason}"), "it failed")
    assert exit_codes.of_error(error) == code
