"""`remit up` as a user meets it: it stands, heals, refuses a second one, and leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from remit.cli import exit_codes
from tests.integration.conftest import REMIT, RunningMesh, make_topology, started_mesh
from tests.scratch import scratch_folder
from tests.waiting import PATIENCE, eventually

# A whole mesh on a busy machine.
pytestmark = pytest.mark.timeout(300)


def test_status_shows_every_part(mesh: RunningMesh) -> None:
    result = mesh.run("status", "--json")
    assert result.returncode == exit_codes.OK, result.stdout
    document = json.loads(result.stdout)
    names = {part["name"] for part in document["parts"]}
    assert {"postgres", "envoy", "policy-0", "policy-1", "cost-0"} <= names
    assert document["healthy"]
    assert "policy-1" in mesh.run("status").stdout


def test_secrets_are_private_and_the_public_key_is_saved(mesh: RunningMesh) -> None:
    assert stat.S_IMODE((mesh.state / "api-key").stat().st_mode) == 0o600
    assert (mesh.state / "audit.pub").read_text().strip()
    for folder in ("ca", "secrets/policy", "secrets/audit", "logs", "postgres"):
        assert stat.S_IMODE((mesh.state / folder).stat().st_mode) == 0o700, folder


def test_a_second_up_says_so_and_exits(mesh: RunningMesh) -> None:
    result = mesh.run("up", "--state", str(mesh.state))
    assert result.returncode == exit_codes.ALREADY_RUNNING
    assert str(mesh.process.pid) in result.stderr
    assert mesh.process.poll() is None


def test_a_port_in_use_is_named_before_anything_starts(mesh: RunningMesh, tmp_path: Path) -> None:
    topology = make_topology({})
    taken = topology.model_copy(update={"edge": mesh.topology.edge})
    file = tmp_path / "topology.yaml"
    file.write_text(taken.dump())
    result = mesh.run("up", "--state", str(tmp_path / "other"), "--topology", str(file))
    assert result.returncode == exit_codes.CONFIGURATION
    assert f"{mesh.topology.edge}" in result.stderr
    assert "--edge-port" in result.stderr
    assert not (tmp_path / "other" / "postgres").exists()


def test_a_run_through_the_edge(mesh: RunningMesh) -> None:
    result = mesh.run("run", "What is 17 * 23?")
    assert result.returncode == exit_codes.OK, result.stdout + result.stderr
    assert "391" in result.stdout


@pytest.fixture(scope="module")
def victim() -> object:
    """A mesh whose parts may be killed."""
    with started_mesh() as running:
        yield running


@pytest.mark.parametrize(
    "part",
    ["agent-0", "audit-0", "cost-0", "inference-0", "policy-0", "tools-0", "envoy", "postgres"],
)
async def test_a_part_that_dies_is_restarted_and_the_user_told(
    victim: RunningMesh, part: str
) -> None:
    before = victim.restarts(part)
    victim.kill(part)
    await eventually(lambda: victim.restarts(part) > before, timeout_s=20)
    assert re.search(rf"{part} +died +died of SIGKILL", victim.output.read_text())
    await eventually(lambda: victim.run("status").returncode == exit_codes.OK, timeout_s=90)
    result = victim.run("run", "What is 17 * 23?")
    assert "391" in result.stdout, result.stdout + result.stderr


async def test_a_killed_supervisor_leaves_nothing_and_loses_nothing(folder: Path) -> None:
    state = folder / "state"
    with started_mesh(state=state) as running:
        first = running.run("run", "What is 17 * 23?")
        assert first.returncode == exit_codes.OK, first.stderr
        pids = [running.pid(part) for part in ("agent-0", "cost-0", "envoy", "postgres")]
        key = running.api_key
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        await eventually(lambda: not any(is_process(pid) for pid in pids), 30)
        status = running.run("status")
        assert status.returncode == exit_codes.UNHEALTHY
    with started_mesh(state=state) as again:
        assert again.api_key == key
        listed = again.run("runs", "list", "--json")
        assert "17 * 23" in listed.stdout, listed.stdout + listed.stderr
        children = [again.pid(part) for part in again._parts()]
    assert [pid for pid in children if is_process(pid)] == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((again.topology.edge.host, again.topology.edge.port))


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder("remit-state-") as made:
        yield made


@pytest.mark.parametrize("line", ["postgres       ready", "cost-0         starting"])
async def test_a_stop_during_the_start_leaves_nothing(folder: Path, line: str) -> None:
    output, topology = folder / "output", folder / "topology.yaml"
    topology.write_text(make_topology({}).dump())
    with output.open("wb") as stream:
        process = subprocess.Popen(  # noqa: ASYNC220 - the test waits for its lines
            [*REMIT, "up", "--state", str(folder / "state"), "--topology", str(topology)],
            stdout=stream,
            stderr=stream,
        )
    try:
        await eventually(lambda: line in output.read_text(), timeout_s=60)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == exit_codes.OK
    finally:
        process.kill()
        process.wait()
    assert processes_of(folder) == []


async def test_a_second_signal_does_not_wait_for_calls_in_flight() -> None:
    with started_mesh() as running:
        with socket.create_connection((running.topology.edge.host, running.topology.edge.port)):
            running.process.terminate()
            await eventually(lambda: "Stopping" in running.output.read_text())
            running.process.terminate()
            assert await asyncio.to_thread(running.process.wait, 60) == exit_codes.OK
        assert processes_of(running.state) == []


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that know this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            facts = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in facts:
            found.append(facts[:200].decode(errors="replace"))
    return found


def is_process(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("damaged", ["version", "ca/ca.pem", "secrets/policy/api-keys.pepper"])
def test_a_damaged_state_directory_is_named_and_kept(
    mesh: RunningMesh, tmp_path: Path, damaged: str
) -> None:
    state = tmp_path / "state"
    shutil.copytree(mesh.state, state, ignore=shutil.ignore_patterns("postgres", "run"))
    (state / "postgres").mkdir()
    (state / damaged).write_bytes(b"\x00damaged")
    topology = tmp_path / "topology.yaml"
    topology.write_text(make_topology({}).dump())
    result = subprocess.run(
        [*REMIT, "up", "--state", str(state), "--topology", str(topology)],
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert result.returncode == exit_codes.CONFIGURATION, result.stdout + result.stderr
    assert str(state / damaged) in result.stderr
    assert (state / damaged).read_bytes() == b"\x00damaged"
