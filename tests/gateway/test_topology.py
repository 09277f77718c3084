"""The topology file: defaults, and what is wrong with a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.topology import Topology
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError


def test_the_defaults_are_the_documented_ports() -> None:
    topology = Topology.default()
    assert str(topology.edge) == "127.0.0.1:8080"
    assert str(topology.mesh) == "127.0.0.1:7400"
    assert str(topology.admin) == "127.0.0.1:7401"
    ports = {area: topology.replicas[area][0].port for area in AREAS}
    assert ports == {
        "agent": 7410,
        "audit": 7420,
        "cost": 7430,
        "inference": 7440,
        "policy": 7450,
        "tools": 7460,
    }
    assert topology.replicas["cost"][0].http_port == 8430


def test_a_file_reads_back(tmp_path: Path) -> None:
    topology = Topology.default(replicas={"policy": 2}, port_base=9000, edge_port=9999)
    file = tmp_path / "topology.yaml"
    file.write_text(topology.dump())
    assert Topology.load(file) == topology
    assert [replica.port for replica in topology.replicas["policy"]] == [9050, 9051]


def changed(**parts: Any) -> dict[str, Any]:
    return Topology.default().model_dump(mode="json") | parts


def replicas(**areas: Any) -> dict[str, Any]:
    return {"replicas": Topology.default().model_dump(mode="json")["replicas"] | areas}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (changed(extra=1), "extra"),
        (changed(edge={"port": 0}), "edge.port"),
        (changed(edge={"port": "eighty"}), "edge.port"),
        (changed(edge={"host": "", "port": 80}), "edge.host"),
        (changed(admin={"host": "0.0.0.0", "port": 7401}), "admin.host"),  # noqa: S104
        (changed(resilience={"max_retries": 50}), "resilience.max_retries"),
        (changed(**replicas(banana=[{"port": 1}])), "banana"),
        (changed(**replicas(cost=[])), "replicas.cost"),
        (changed(**replicas(cost=[{"port": 7410}])), "127.0.0.1:7410 is used twice"),
        (changed(**replicas(cost=[{"port": 6410}])), "127.0.0.1:7410 is used twice"),
        ([], "valid dictionary"),
    ],
)
def test_a_fault_is_named(document: Any, named: str) -> None:
    with pytest.raises(RemitError) as caught:
        Topology.parse(document, source="mesh.yaml")
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert caught.value.message.startswith("mesh.yaml: ")
    assert named in caught.value.message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"edge: [", b"{"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "topology.yaml"
    file.write_bytes(content)
    with pytest.raises(RemitError, match=r"topology\.yaml"):
        Topology.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match=r"topology\.yaml"):
        Topology.load(tmp_path / "topology.yaml")


@pytest.mark.parametrize("counts", [{"banana": 1}, {"policy": 0}, {"policy": 11}])
def test_replica_counts_have_bounds(counts: dict[str, int]) -> None:
    with pytest.raises(RemitError):
        Topology.default(replicas=counts)


def test_statistics_are_beside_the_admin_interface() -> None:
    assert str(Topology.default().stats) == "127.0.0.1:8401"
    assert str(Topology.default(port_base=9000).stats) == "127.0.0.1:10001"
    moved = Topology.parse(changed(stats={"host": "0.0.0.0", "port": 9100}), source="x")  # noqa: S104
    assert str(moved.stats) == "0.0.0.0:9100"
    document = Topology.default(port_base=9000).model_dump(mode="json")
    del document["stats"]
    assert Topology.parse(document, source="x").stats.port == 10_001


@pytest.mark.parametrize(
    "origin",
    ["https://console.example.com", "http://localhost:3000", "https://*.example.com", "http://a:1"],
)
def test_an_origin_is_a_scheme_and_a_host(origin: str) -> None:
    topology = Topology.parse(changed(cors={"origins": [origin]}), source="x")
    assert topology.cors.origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "https://*",
        "https://*.com",
        "https://a.*.example.com",
        "https://*example.com",
        "https://example.com/",
        "https://example.com/path",
        "https://Example.com",
        "https://example.com\n",
        "example.com",
        "ftp://example.com",
        "https://example.com:port",
        "https://.example.com",
        "https://user@example.com",
        "",
    ],
)
def test_an_origin_that_says_too_much_is_refused(origin: str) -> None:
    with pytest.raises(RemitError, match=r"cors\.origins\.0"):
        Topology.parse(changed(cors={"origins": [origin]}), source="mesh.yaml")
