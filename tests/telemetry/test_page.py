"""docs/TELEMETRY.md names every attribute and every event of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from remit.settings import ServiceSettings
from remit.telemetry import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "TELEMETRY.md").read_text()
LEVELS = {"debug", "info", "warning", "error", "exception"}
LOGGERS = {"log", "_logger", "logger"}


def logged_events() -> set[str]:
    """The name of every event that the code logs."""
    found = set()
    for file in (ROOT / "services" / "remit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and _is_log(node.func) and node.args:
                constants = [n for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
                found |= {c.value for c in constants if isinstance(c.value, str)}
    return found


def _is_log(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id == "say"  # of a level that is chosen first
    if not (isinstance(function, ast.Attribute) and function.attr in LEVELS):
        return False
    owner = function.value
    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
    return name in LOGGERS


def test_every_event_is_described() -> None:
    described = set(re.findall(r"`([a-z_]+)`", PAGE))
    events = logged_events()
    assert len(events) > 30
    assert events <= described


def test_every_attribute_is_described_as_in_the_table() -> None:
    for name, meaning in table.MEANINGS.items():
        assert f"| `{name}` | {meaning} |" in PAGE, name
    assert f"version {table.CONVENTIONS}" in PAGE


def test_every_setting_is_described() -> None:
    names = [name for name in ServiceSettings.model_fields if name.startswith("trace")]
    assert len(names) == 5
    assert all(f"REMIT_<AREA>_{name.upper()}" in PAGE for name in names)
