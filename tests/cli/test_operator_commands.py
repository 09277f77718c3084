"""The commands of whoever runs a mesh: what they refuse, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remit.cli import exit_codes
from remit.cli.main import run
from remit.cli.serve import load_settings, require_one_log
from remit.gateway.topology import Topology
from remit.local.state import StateDirectory, write_private
from remit.rpc.contracts import AREAS
from tests.ports import free_ports


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["up", "--replicas", "policy"], exit_codes.USAGE, "AREA=NUMBER"),
        (["up", "--replicas", "policy=-1"], exit_codes.USAGE, "AREA=NUMBER"),
        (["up", "--replicas", "banana=2"], exit_codes.CONFIGURATION, "banana"),
        (["up", "--replicas", "policy=99"], exit_codes.CONFIGURATION, "1 to 10"),
        (["up", "--port-base", "70000"], exit_codes.CONFIGURATION, "65535"),
        (["up", "--drain", "0"], exit_codes.USAGE, "--drain"),
        (["up", "--topology", "/no/such/file"], exit_codes.USAGE, "/no/such/file"),
        (["serve", "banana"], exit_codes.USAGE, "banana"),
        (["migrate", "banana", "--dsn", "postgresql://x"], exit_codes.USAGE, "banana"),
        (["migrate", "cost"], exit_codes.USAGE, "--dsn"),
        (["migrate", "all", "--dsn", "postgresql://x"], exit_codes.USAGE, "{database}"),
    ],
)
def test_a_wrong_command_line_is_named(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[0] == "up":
        arguments = [*arguments, "--state", str(tmp_path / "state")]
    assert run(arguments) == code
    assert words in capsys.readouterr().err


def test_ports_and_a_topology_file_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text(Topology.default().dump())
    code = run(["up", "--topology", str(file), "--edge-port", "1", "--state", str(tmp_path / "s")])
    assert code == exit_codes.USAGE
    assert "--edge-port" in capsys.readouterr().err


def test_an_envoy_that_cannot_run_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text(on_free_ports().dump())
    state = tmp_path / "state"
    arguments = ["up", "--topology", str(file), "--state", str(state), "--envoy", str(file)]
    assert run(arguments) == exit_codes.CONFIGURATION
    assert str(file) in capsys.readouterr().err
    assert not (state / "postgres").exists()


def test_status_without_a_mesh_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--state", str(tmp_path)]) == exit_codes.UNHEALTHY
    assert "remit up" in capsys.readouterr().err


@pytest.fixture
def stopped(tmp_path: Path) -> StateDirectory:
    """The folder of a mesh that does not run any more."""
    state = StateDirectory.open(tmp_path / "state")
    write_private(state.topology_file, on_free_ports().dump())
    return state


def test_status_of_a_stopped_mesh(
    stopped: StateDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--json", "--state", str(stopped.folder)]) == exit_codes.UNHEALTHY
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] is False
    assert {part["detail"] for part in document["parts"]} == {"no `remit up` runs on this folder"}


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_a_damaged_mesh_file_is_named(
    stopped: StateDirectory, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped.mesh_file.write_bytes(content)
    assert run(["status", "--state", str(stopped.folder)]) == exit_codes.CONFIGURATION
    assert str(stopped.mesh_file) in capsys.readouterr().err


def test_a_service_without_its_files_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REMIT_COST_TLS_DIR", str(tmp_path))
    assert run(["serve", "cost"]) == exit_codes.CONFIGURATION
    assert str(tmp_path / "ca.pem") in capsys.readouterr().err


def test_a_wrong_setting_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REMIT_COST_PORT", "eighty")
    assert run(["serve", "cost"]) == exit_codes.CONFIGURATION
    assert "REMIT_COST_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["verbose", "", "INFO"])
def test_a_level_that_there_is_not_stops_the_start(
    level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REMIT_COST_LOG_LEVEL", level)
    assert run(["serve", "cost"]) == exit_codes.CONFIGURATION
    told = capsys.readouterr().err
    assert "REMIT_COST_LOG_LEVEL" in told
    assert "'debug', 'info', 'warning' or 'error'" in told


@pytest.mark.parametrize(("setting", "value"), [("LOG_LEVEL", "debug"), ("TRACE_CONTENT", "true")])
def test_services_of_one_process_have_one_log(
    setting: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"REMIT_COST_{setting}", value)
    assert run(["serve", "all"]) == exit_codes.CONFIGURATION
    told = capsys.readouterr().err
    assert f"REMIT_COST_{setting}={value}" in told
    assert f"REMIT_AGENT_{setting}=" in told
    for area in AREAS:
        monkeypatch.setenv(f"REMIT_{area.upper()}_{setting}", value)
    require_one_log({area: load_settings(area) for area in AREAS})


def test_render_writes_what_the_topology_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "topology.yaml", tmp_path / "envoy.json"
    file.write_text(Topology.default(edge_port=9999).dump())
    assert run(["gateway", "render", "--topology", str(file), "--out", str(out)]) == exit_codes.OK
    assert '"port_value": 9999' in out.read_text()
    assert run(["gateway", "render", "--topology", str(file)]) == exit_codes.OK
    assert capsys.readouterr().out == out.read_text()


def test_migrations_are_applied_once(
    postgres: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio  # noqa: PLC0415 - the command brings its own loop

    database = asyncio.run(empty_database(postgres))
    dsn = postgres.dsn(database, "remit_cost_owner")
    assert run(["migrate", "cost", "--dsn", dsn]) == exit_codes.OK
    assert "0001" in capsys.readouterr().out
    monkeypatch.setenv("REMIT_OWNER_DSN", dsn)
    assert run(["migrate", "cost"]) == exit_codes.OK
    assert "up to date" in capsys.readouterr().out


async def empty_database(postgres: Any) -> str:
    name = "remit_cost_unmigrated"
    await postgres._create(name, "cost")
    return name


def on_free_ports() -> Topology:
    ports = iter(free_ports(15))
    document = Topology.default().model_dump(mode="json")
    for listener in ("edge", "mesh", "admin"):
        document[listener]["port"] = next(ports)
    for replicas in document["replicas"].values():
        replicas[0] |= {"port": next(ports), "http_port": next(ports)}
    return Topology.parse(document, source="the test")
