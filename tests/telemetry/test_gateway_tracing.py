"""What Envoy is told of tracing: nothing without a collector, and never to believe garbage."""

from __future__ import annotations

import json

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.bootstrap import render
from remit.gateway.topology import Topology
from remit.rpc.errors import RemitError

BAD = [
    "127.0.0.1:4317",
    "http://127.0.0.1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:0",
    "http://127.0.0.1:4317/v1/traces",
    "https://collector:4317",
    "http://user:word@collector:4317",
]


def test_without_a_collector_nothing_is_traced_and_garbage_is_removed_all_the_same() -> None:
    text = render(Topology.default())
    document = json.loads(text)
    assert "layered_runtime" not in document
    assert "opentelemetry" not in text
    assert "collector" not in {c["name"] for c in document["static_resources"]["clusters"]}
    assert '"remove": "baggage"' in text
    assert '"remove": "tracestate"' in text
    assert "%CEL(" in text


def test_both_listeners_send_their_spans_to_the_collector() -> None:
    topology = Topology.default().traced("http://[::1]:4317", 0.25)
    document = json.loads(render(topology))
    found = {}
    for listener in document["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        found[listener["name"]] = manager.get("tracing", {}).get("random_sampling")
    assert found == {"edge": {"value": 25.0}, "mesh": {"value": 25.0}, "stats": None}
    assert topology.tracing is not None
    assert (topology.tracing.address.host, topology.tracing.address.port) == ("::1", 4317)
    assert Topology.parse(json.loads(topology.model_dump_json()), source="again") == topology


@pytest.mark.parametrize("endpoint", BAD)
def test_an_endpoint_that_cannot_be_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(RemitError) as caught:
        Topology.default().traced(endpoint, 1.0)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert "--trace-endpoint" in caught.value.message


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_a_share_is_a_share(ratio: float) -> None:
    with pytest.raises(RemitError, match="ratio"):
        Topology.default().traced("http://127.0.0.1:4317", ratio)
