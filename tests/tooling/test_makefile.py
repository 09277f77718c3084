"""The Makefile offers what the guide promises, and the guide names what the Makefile offers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = re.compile(r"^\| `make ([a-z-]+)` \|", re.MULTILINE)
OFFERED = re.compile(r"^  make ([a-z-]+) +\S", re.MULTILINE)


def offered() -> set[str]:
    """Return the targets that `make help` lists."""
    listing = subprocess.run(
        ["make", "help"],  # noqa: S607 - make is what every target needs
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30 * PATIENCE,
    )
    return set(OFFERED.findall(listing.stdout))


def test_help_lists_the_targets_that_people_rely_on() -> None:
    assert {"help", "demo", "up", "test", "test-storm", "check", "protos", "bench"} <= offered()


def test_the_guide_names_every_target() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(DOCUMENTED.findall(guide)) | {"help"} == offered()
