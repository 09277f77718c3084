"""The reference pages say what the contracts say, and leave nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest

from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.rpc.contracts import all_contracts
from scripts import reference
from tests.golden import assert_golden

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.golden
def test_the_page_of_errors_is_current() -> None:
    assert_golden(DOCS / "ERRORS.md", reference.errors_page())


@pytest.mark.golden
def test_the_page_of_contracts_is_current() -> None:
    assert_golden(DOCS / "CONTRACTS.md", reference.contracts_page())


def test_every_reason_is_on_the_page_of_errors() -> None:
    page = reference.errors_page()
    missing = [name for name, _ in ErrorReason.items() if f"## {name}\n" not in page]
    assert missing == ["ERROR_REASON_UNSPECIFIED"]


def test_every_rpc_is_on_the_page_of_contracts() -> None:
    rendered = {f"{rpc.service}.{rpc.name}" for rpc in reference.rpcs()}
    stated = {path.rsplit(".", 1)[1].replace("/", ".") for path in all_contracts()}
    assert rendered == stated


@pytest.mark.parametrize(
    ("count", "text"), [(1 << 20, "1 MiB"), (4096, "4 KiB"), (1000, "1000 B"), (0, "0 B")]
)
def test_sizes_are_exact(count: int, text: str) -> None:
    assert reference.size(count) == text
