"""The README's client runs as it stands there, against a real mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.cli.readme import blocks
from tests.integration.conftest import RunningMesh
from tests.programs import program
from tests.waiting import PATIENCE


def test_the_client_of_the_readme_runs_an_agent(mesh: RunningMesh) -> None:
    (client,) = blocks("python")
    facts = {"REMIT_ADDRESS": mesh.address, "REMIT_API_KEY": mesh.api_key}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", client],
        env=os.environ | facts,
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("tool_call_ended" in line for line in lines)
    assert lines[-1].split()[1] == "ended"
    assert lines[-1].endswith("391")


def test_the_curl_of_the_readme_streams_a_run(mesh: RunningMesh) -> None:
    program("curl", package="curl")
    (command,) = [block for block in blocks("sh") if block.startswith("curl ")]
    facts = {"REMIT_ADDRESS": mesh.address, "REMIT_API_KEY": mesh.api_key}
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=os.environ | facts,
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames = done.stdout.strip().split("\n\n")
    assert frames[0].startswith("id: 1\n")
    assert frames[-1].startswith("event: end")
    events = [
        json.loads(line.removeprefix("data: "))["event"]
        for frame in frames[:-1]
        for line in frame.splitlines()
        if line.startswith("data: ")
    ]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["ended"]["run"]["result"].endswith("391")
