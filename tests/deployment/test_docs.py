"""docs/DEPLOYMENT.md: its commands parse, its files and ports exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from remit.local.installation import Installation
from remit.rpc.contracts import AREAS
from tests.cli.command_lines import parse_command_line
from tests.deployment.compose import Compose
from tests.deployment.references import topology_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "DEPLOYMENT.md"
TEXT = PAGE.read_text(encoding="utf-8")
_BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
LINES = [line.strip() for block in _BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if re.search(r"(^|[\s(])remit [a-z]", line)]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_ours_parses(line: str) -> None:
    parse_command_line(re.sub(r"\$\(docker compose exec policy (remit .*)\)", r"$(\1)", line))


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target


def test_every_overlay_and_every_secret_is_described(installation: Installation) -> None:
    for folder in (ROOT / "k8s" / "overlays").iterdir():
        assert f"| `{folder.name}` |" in TEXT, folder.name
    for manifest in installation.manifests("remit"):
        name = str(manifest["metadata"]["name"])
        area = name.removeprefix("remit-").removesuffix("-tls")
        pattern = name.replace(area, "<area>") if area in AREAS else name
        assert f"`{pattern}`" in TEXT or name == "remit-postgres", name


def test_ports_in_the_table_are_those_of_the_topology() -> None:
    topology = topology_of(Compose.load().config("topology"))
    ports = [str(topology.replicas[area][0].port) for area in AREAS]
    assert f"| gateway | {', '.join(AREAS)} | {', '.join(ports)} |" in TEXT
    assert f"| clients | gateway, edge | {topology.edge.port} |" in TEXT
    assert f"| each service | gateway, mesh | {topology.mesh.port} |" in TEXT


def test_compose_and_kubernetes_share_one_topology() -> None:
    """Ports in the docs hold for both; only the number of processes differs."""
    file = ROOT / "k8s" / "base" / "configuration.yaml"
    [content] = [
        d["data"]["topology.yaml"]
        for d in yaml.safe_load_all(file.read_text())
        if d["metadata"]["name"] == "remit-topology"
    ]
    ours, theirs = (
        topology_of(text).model_dump(exclude={"replicas": {a: {0: {"processes"}} for a in AREAS}})
        for text in (content, Compose.load().config("topology"))
    )
    assert ours == theirs
