"""docker-compose.yml: every setting, command, port, path, secret and network that it names exists.

No schema of Compose is installed here, so its form is checked by what these tests read of it; an
engine has not seen it. `test_rehearsal.py` runs its commands.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from remit.gateway.topology import Topology
from remit.local.installation import Installation
from remit.rpc.contracts import AREAS
from tests.deployment.compose import FILE, ROOT, Compose
from tests.deployment.compose_faults import faults
from tests.deployment.mutations import leaves, mistyped
from tests.deployment.references import parser_of, scrape_targets
from tests.programs import program

TOPOLOGY = json.dumps((ROOT / "compose" / "topology.yaml").read_text())
SECRET_WORDS = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$|DSN")


def test_everything_that_the_file_names_exists(installation: Installation) -> None:
    assert faults(Compose.load(), installation) == []


def test_no_secret_stands_in_the_file() -> None:
    for service in Compose.load().services.values():
        for name, value in service.environment.items():
            if SECRET_WORDS.search(name):
                assert value == "" or value.startswith("/") or value in {"true", "false"}, name
    assert not re.search(r"://[^/\s:]+:[^@\s]+@", FILE.read_text())


def test_every_image_has_a_version() -> None:
    for service in Compose.load().services.values():
        assert re.search(r":[a-z]*\d|:local$", service.image), service.image


def test_prometheus_asks_every_plain_port(tmp_path: Path) -> None:
    compose = Compose.load()
    topology = Topology.parse(yaml.safe_load(compose.config("topology")), source="compose")
    asked = scrape_targets(yaml.safe_load(compose.config("prometheus")))
    assert asked == {(a, topology.replicas[a][0].http_port) for a in AREAS} | {
        ("gateway", topology.stats.port)
    }
    promtool = program("promtool", package="prometheus")
    file = tmp_path / "prometheus.yml"
    file.write_text(
        compose.config("prometheus").replace(
            "/etc/prometheus/rules", str(ROOT / "k8s/components/observability/rules")
        )
    )
    checked = subprocess.run(
        [promtool, "check", "config", file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "rule files found" in checked.stdout + checked.stderr


def test_dashboards_find_their_data_source() -> None:
    compose = Compose.load()
    [source] = yaml.safe_load(compose.config("grafana-datasources"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load(compose.config("grafana-dashboards"))["providers"]
    mounted = {m.target: m.source for m in compose.services["grafana"].mounts}
    folder = ROOT / mounted[provider["options"]["path"]]
    assert [json.loads(file.read_text()) for file in folder.glob("*.json")]


def test_the_model_server_serves_the_model_that_inference_declares() -> None:
    compose = Compose.load()
    models = yaml.safe_load(compose.config("models"))["models"]
    [local] = [m for m in models if m["engine"] == "openai"]
    command = compose.services["vllm"].command
    assert local["provider_model"] in command
    assert parser_of(command) == "hermes"
    assert local["base_url"] == f"http://vllm:{command[command.index('--port') + 1]}/v1"


# ------------------------------------------------------------------------------- mutations

FREE = re.compile(
    r"(^|\.)(description|display_name|instructions|tmpfs|logging|deploy|healthcheck|image|build"
    r"|shm_size|cap_add|profiles|OPENAI_API_KEY|REMIT_[A-Z]+_LOG_LEVEL|--concurrency|tags"
    r"|POSTGRES_INITDB_ARGS)"
)

HARMLESS = {
    "services.gateway-configuration.command.6",  # the collector's address, which anybody may choose
    "services.tools.environment.REMIT_TOOLS_WORKSPACE",  # another folder of the same volume
}


def mutations() -> list[tuple[Any, ...]]:
    """Every text of our own services that means something to the code."""
    document = Compose.load().document
    ours = [n for n, s in Compose.load().services.items() if s.is_remit]
    return [
        ("services", name, *path)
        for name in ours
        for path in leaves(document["services"][name])
        if not FREE.search(".".join(map(str, path)))
    ]


def test_a_typo_anywhere_in_a_service_is_found(installation: Installation) -> None:
    document = Compose.load().document
    missed = []
    for path in mutations():
        changed = Compose(mistyped(document, path))
        try:
            seen = bool(faults(changed, installation))
        except (KeyError, ValueError, AssertionError):
            seen = True  # a name that is looked up
        if not seen:
            missed.append(".".join(map(str, path)))
    assert len(mutations()) > 150
    assert set(missed) == HARMLESS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("REMIT_COST_HTTP_PORT", "REMIT_COST_HTTPPORT"),
        ("api-keys.pepper", "api-key.pepper"),
        ("networks: [mesh, data]", "networks: [mesh, data, egress]"),
        ("127.0.0.1:9090:9090", "9090:9090"),
        ("keys: {condition: service_completed_successfully}", "keys: {condition: service_done}"),
        ("prometheus: {file: ./compose/prometheus.yaml}", "prometheus: {content: 'a: b'}"),
        ("topology: {file: ./compose/topology.yaml}", f"topology: {{content: {TOPOLOGY}}}"),
        ("limits: {memory: 4G}", "limits: {cpus: '4', memory: 4G}"),
        ("read_only: true\n  tmpfs", "build: .\n  read_only: true\n  tmpfs"),
        (
            "gateway: {condition: service_started, restart: true}",
            "gateway: {condition: service_started}",
        ),
        (
            "certificates: {condition: service_completed_successfully, restart: true}",
            "certificates: {condition: service_completed_successfully}",
        ),
    ],
    ids=[
        *("setting", "file", "egress", "port", "condition", "inline for another's image", "inline"),
        *("more CPUs than the host has", "two builds", "lost network", "stale certificates"),
    ],
)
def test_faults_in_other_places_are_found(old: str, new: str, installation: Installation) -> None:
    text = FILE.read_text()
    assert old in text
    assert faults(Compose.parse(text.replace(old, new)), installation)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("topology", "host: policy", "host: polcy"),
        ("models", "engine: openai", "engine: open-ai"),
        ("prices", "input_nanos", "input_nano"),
        ("local-assistant", "max_steps: 8", "max_stops: 8"),
    ],
)
def test_faults_in_configuration_files_are_found(
    file: str, old: str, new: str, installation: Installation
) -> None:
    path = f"./compose/{file}.yaml"
    text = (ROOT / path).read_text()
    assert old in text
    compose = Compose.parse(FILE.read_text(), {path: text.replace(old, new)})
    assert faults(compose, installation)


def test_every_configuration_file_is_used() -> None:
    named = {config["file"] for config in Compose.load().document["configs"].values()}
    assert named == {f"./compose/{file.name}" for file in (ROOT / "compose").iterdir()}
