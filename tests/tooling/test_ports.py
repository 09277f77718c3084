"""Ports handed to tests must be free, distinct, and below the ephemeral range."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.ports import HIGHEST_PORT, free_ports
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


def test_ports_are_distinct_bindable_and_below_the_ephemeral_range() -> None:
    ports = free_ports(20) + free_ports(20)
    assert len(set(ports)) == 40
    assert max(ports) <= HIGHEST_PORT < 32_768
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_a_port_claimed_here_is_refused_to_another_process() -> None:
    (port,) = free_ports(1)
    script = f"import tests.ports as p; raise SystemExit(0 if p._claim({port}) else 3)"
    other = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, timeout=20 * PATIENCE
    )
    assert other.returncode == 3
