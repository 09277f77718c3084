"""The README's code blocks, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The content of every block of a language."""
    return [text for found, text in _BLOCK.findall(README.read_text("utf-8")) if found == language]


def languages() -> set[str]:
    """The languages of all blocks."""
    return {language for language, _ in _BLOCK.findall(README.read_text("utf-8"))}
