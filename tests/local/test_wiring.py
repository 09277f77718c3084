"""What services are told, and keys that are made once and missed when they are gone."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.topology import Topology
from remit.local.databases import FURTHER
from remit.local.state import StateDirectory
from remit.local.wiring import Wiring, ensure_secrets, inherited
from remit.postgres import DATABASES
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_keys_are_made_once_and_private(state: StateDirectory) -> None:
    ensure_secrets(state)
    before = contents(state.folder)
    assert state.audit_key_file.read_bytes()
    ensure_secrets(state)
    assert contents(state.folder) == before
    for file in (state.folder / "secrets").rglob("*.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "missing", ["policy/api-keys.pepper", "policy/signing-keys.key", "audit", "audit/log.key"]
)
def test_a_missing_key_beside_databases_is_named_and_not_made_anew(
    state: StateDirectory, missing: str
) -> None:
    ensure_secrets(state)
    state.postgres.mkdir()
    path = state.folder / "secrets" / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(RemitError, match=str(path)) as caught:
        ensure_secrets(state)
    assert caught.value.reason in {
        error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
    }
    assert not path.exists()


def test_each_service_is_told_its_own_and_nothing_of_others(state: StateDirectory) -> None:
    topology = Topology.default(replicas={"policy": 2})
    dsns = {name: f"postgresql://{name}" for name in (*DATABASES, *FURTHER)}
    wiring = Wiring(state, topology, dsns, ensure_secrets(state), drain_s=7)
    specs = dict(wiring.services())
    assert set(specs) == set(AREAS)
    for area, spec in specs.items():
        environment = spec.environment or {}
        prefix = f"REMIT_{area.upper()}_"
        assert environment[f"{prefix}DSN"] == dsns[area]
        assert environment[f"{prefix}TLS_DIR"] == str(state.tls_folder(area))
        assert environment[f"{prefix}DRAIN_S"] == "7"
        others = {dsn for name, dsn in dsns.items() if not name.startswith(area)}
        assert not others & set(environment.values())
    ports = [
        (spec.environment or {})["REMIT_POLICY_PORT"]
        for area, spec in wiring.services()
        if area == "policy"
    ]
    assert ports == ["7450", "7451"]


def test_what_the_user_sets_reaches_the_services(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMIT_COST_PRICES_FILE", "prices.yaml")
    monkeypatch.setenv("REMIT_TOOLS_WORKSPACE", "/somewhere")
    monkeypatch.setenv("REMIT_AUDIT_TILES_DIR", "/mirror")
    monkeypatch.setenv("REMIT_COST_DSN", "postgresql://elsewhere")
    dsns = {name: f"postgresql://{name}" for name in (*DATABASES, *FURTHER)}
    wiring = Wiring(state, Topology.default(), dsns, ensure_secrets(state), drain_s=1)
    specs = dict(wiring.services())
    cost, tools = specs["cost"].environment or {}, specs["tools"].environment or {}
    assert cost["REMIT_COST_PRICES_FILE"] == "prices.yaml"
    assert cost["REMIT_COST_DSN"] == dsns["cost"]
    assert tools["REMIT_TOOLS_WORKSPACE"] == "/somewhere"
    # Each of these services finds the variable in the environment that it inherits.
    assert (specs["audit"].environment or {})["REMIT_AUDIT_TILES_DIR"] == "/mirror"


def test_the_log_is_written_as_tiles_to_the_state(state: StateDirectory) -> None:
    dsns = {name: f"postgresql://{name}" for name in (*DATABASES, *FURTHER)}
    wiring = Wiring(state, Topology.default(), dsns, ensure_secrets(state), drain_s=1)
    environment = dict(wiring.services())["audit"].environment or {}
    assert environment["REMIT_AUDIT_TILES_DIR"] == str(state.folder / "tiles")


def test_keys_of_providers_reach_only_the_services_that_reach_out() -> None:
    environment = {
        "PATH": "/bin",
        "OPENAI_API_KEY": "sk-secret",
        "REMIT_INFERENCE_MODELS_FILE": "models.yaml",
        "REMIT_POLICY_DRAIN_S": "3",
    }
    for area in AREAS:
        got = inherited(area, environment)
        assert got["PATH"] == "/bin"
        assert ("OPENAI_API_KEY" in got) == (area in {"inference", "tools"})
        assert ("REMIT_INFERENCE_MODELS_FILE" in got) == (area == "inference")
        assert ("REMIT_POLICY_DRAIN_S" in got) == (area == "policy")
