"""The README's client runs as it stands there, against a real mesh."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cli.readme import blocks
from tests.integration.conftest import RunningMesh


def test_the_client_of_the_readme_runs_an_agent(mesh: RunningMesh) -> None:
    (client,) = blocks("python")
    facts = {"REMIT_ADDRESS": mesh.address, "REMIT_API_KEY": mesh.api_key}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", client],
        env=os.environ | facts,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("tool_call_ended" in line for line in lines)
    assert lines[-1].split()[1] == "ended"
    assert lines[-1].endswith("391")
