"""A port in use is found before anything starts, and named with what moves it."""

from __future__ import annotations

import socket

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.topology import Topology
from remit.local.ports import check_ports
from remit.rpc.errors import RemitError
from tests.ports import free_ports


def topology(**ports: int) -> Topology:
    free = iter(free_ports(16))
    document = Topology.default().model_dump(mode="json")
    for listener in ("edge", "mesh", "admin"):
        document[listener]["port"] = ports.get(listener) or next(free)
    for area, replicas in document["replicas"].items():
        for replica in replicas:
            replica["port"] = ports.get(area) or next(free)
            replica["http_port"] = next(free)
    return Topology.parse(document, source="the test")


def test_free_ports_pass() -> None:
    check_ports(topology())


@pytest.mark.parametrize(
    ("part", "setting", "flag"),
    [
        ("edge", "edge.port", "--edge-port"),
        ("mesh", "mesh.port", "--port-base"),
        ("cost", "replicas.cost[0].port", "--port-base"),
    ],
)
def test_a_port_in_use_is_named(part: str, setting: str, flag: str) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RemitError) as caught:
            check_ports(topology(**{part: port}))
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    for word in (f"127.0.0.1:{port}", setting, flag, "in use"):
        assert word in caught.value.message


def test_every_port_in_use_is_named_at_once() -> None:
    one, two = free_ports(2)
    with (
        socket.create_server(("127.0.0.1", one)),
        socket.create_server(("127.0.0.1", two)),
        pytest.raises(RemitError) as caught,
    ):
        check_ports(topology(edge=one, cost=two))
    assert "and 1 more" in caught.value.message
    assert [fault.field for fault in caught.value.violations] == [
        "edge.port",
        "replicas.cost[0].port",
    ]
    assert f":{two}" in caught.value.violations[1].description


def test_an_address_of_another_machine_is_refused() -> None:
    document = topology().model_dump(mode="json")
    document["edge"]["host"] = "192.0.2.99"
    with pytest.raises(RemitError, match="cannot be used"):
        check_ports(Topology.parse(document, source="the test"))
