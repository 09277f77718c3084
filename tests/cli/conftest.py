"""Runs the `remit` command in this process, against an edge with scripted answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remit.cli.main import run
from tests.cli.edge_server import EdgeServer

API_KEY = "rmt_test_0123456789"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        """Each line of the output as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Remit = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REMIT_ADDRESS", "REMIT_API_KEY", "REMIT_STATE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TZ", "UTC")


@pytest.fixture
def edge() -> Iterator[EdgeServer]:
    """An edge; tests give it answers."""
    with EdgeServer().serving() as server:
        yield server


@pytest.fixture
def bare_remit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Remit:
    """Runs a command line with an empty state directory."""

    def call(*arguments: str, state: Path = tmp_path) -> Outcome:
        capsys.readouterr()
        code = run([*arguments, "--state", str(state)])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def remit(edge: EdgeServer, bare_remit: Remit) -> Remit:
    """Runs a command line against the edge, with a key."""

    def call(*arguments: str) -> Outcome:
        return bare_remit(*arguments, "--address", edge.address, "--api-key", API_KEY)

    return call
