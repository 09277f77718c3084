"""The rendered configuration: reviewed as a file, accepted by Envoy, complete by reflection."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remit.api.options.v1 import options_pb2
from remit.gateway.bootstrap import render
from remit.gateway.topology import Topology
from remit.local.certificates import ensure_certificates
from remit.local.envoy_process import find_envoy
from remit.local.state import StateDirectory
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import AREAS, MethodContract, all_contracts
from tests.golden import assert_golden

GATEWAY = Path(__file__).parents[2] / "gateway"
STANDARD = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}


GRPC = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(render(Topology.default(replicas={"cost": 3})))


@pytest.mark.golden
def test_the_committed_configuration_is_the_rendered_one() -> None:
    topology = Topology.load(GATEWAY / "topology.yaml")
    assert topology == Topology.default()
    assert_golden(GATEWAY / "envoy.json", render(topology))


def test_envoy_accepts_it(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    ensure_certificates(state, SystemClock())
    tls_dir = str(state.folder / "tls")
    file = tmp_path / "envoy.json"
    file.write_text(render(Topology.default(replicas={"policy": 2}, tls_dir=tls_dir)))
    command = [str(find_envoy(None)), "--mode", "validate", "--config-path", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def routes(document: Any, listener: str) -> dict[str, Any]:
    for one in document["static_resources"]["listeners"]:
        if one["name"] == listener:
            manager = one["filter_chains"][0]["filters"][0]["typed_config"]
            (host,) = manager["route_config"]["virtual_hosts"]
            return {route["name"]: route for route in host["routes"]}
    raise AssertionError(listener)


def test_each_listener_routes_its_methods_and_none_else(document: Any) -> None:
    ours = all_contracts()
    fallback = {"unknown_method", "not_grpc"}
    public = {path for path, contract in ours.items() if contract.is_public}
    assert set(routes(document, "edge")) == public | STANDARD | {"nowhere"}
    assert list(routes(document, "edge"))[-1] == "nowhere"
    assert set(routes(document, "mesh")) == set(ours) | fallback
    assert list(routes(document, "mesh"))[-2:] == ["unknown_method", "not_grpc"]


@pytest.mark.parametrize("contract", all_contracts().values(), ids=lambda c: c.path)
def test_a_route_says_what_its_contract_says(document: Any, contract: MethodContract) -> None:
    listeners = ("edge", "mesh") if contract.is_public else ("mesh",)
    for listener in listeners:
        route = routes(document, listener)[contract.path]
        action = route["route"]
        assert route["match"] == {"path": contract.path, "headers": [GRPC]}
        assert action["cluster"] == f"{listener}_{contract.area}"
        assert action["timeout"] == "0s"
        limit = action["max_stream_duration"]
        assert seconds(limit["max_stream_duration"]) == contract.deadline_s
        assert seconds(limit["grpc_timeout_header_max"]) == contract.deadline_s
        closes = contract.phase == options_pb2.PHASE_CLOSE
        assert action.get("priority", "DEFAULT") == ("HIGH" if closes else "DEFAULT")
        check_retries(contract, action["retry_policy"])
        check_authorization(contract, route)


def check_retries(contract: MethodContract, policy: Any) -> None:
    conditions = set(policy["retry_on"].split(","))
    assert ("unavailable" in conditions) == contract.may_retry
    attempt = policy.get("per_try_timeout")
    assert (None if attempt is None else seconds(attempt)) == contract.attempt_timeout_s
    if contract.is_effect:
        assert attempt is None
        assert "hedge_policy" not in policy


def check_authorization(contract: MethodContract, route: Any) -> None:
    """A method that wants a remit is never exempt from the check that makes one."""
    if contract.auth == options_pb2.AUTH_REMIT:
        assert "typed_per_filter_config" not in route


def test_breakers_are_what_the_replicas_admit(document: Any) -> None:
    clusters = {one["name"]: one for one in document["static_resources"]["clusters"]}
    assert set(areas_of(document)) == {
        f"{way}_{area}" for way in ("edge", "mesh") for area in AREAS
    }
    ours = [c for c in all_contracts().values() if c.area == "cost"]
    for closes, priority in ((False, "DEFAULT"), (True, "HIGH")):
        per_replica = sum(
            c.max_in_flight for c in ours if (c.phase == options_pb2.PHASE_CLOSE) == closes
        )
        threshold = breaker(clusters["mesh_cost"], priority)
        assert int(threshold["max_requests"]) == 3 * per_replica
        assert int(threshold["retry_budget"]["min_retry_concurrency"]) >= per_replica


def test_the_check_of_credentials_has_room_in_the_breaker(document: Any) -> None:
    clusters = {one["name"]: one for one in document["static_resources"]["clusters"]}
    threshold = breaker(clusters["edge_policy"], "DEFAULT")
    public = [c for c in all_contracts().values() if c.area == "policy" and c.is_public]
    assert int(threshold["max_requests"]) > sum(c.max_in_flight for c in public)


def areas_of(document: Any) -> dict[str, Any]:
    """The clusters of services; the others are Envoy's own admin interface and the collector."""
    clusters = {one["name"]: one for one in document["static_resources"]["clusters"]}
    return {name: one for name, one in clusters.items() if name.partition("_")[2] in AREAS}


def breaker(cluster: Any, priority: str) -> Any:
    for threshold in cluster["circuit_breakers"]["thresholds"]:
        if threshold.get("priority", "DEFAULT") == priority:
            return threshold
    raise AssertionError(priority)


def test_every_upstream_connection_is_mutual_tls_1_3_to_one_area(document: Any) -> None:
    for cluster in areas_of(document).values():
        way, _, area = cluster["name"].partition("_")
        context = cluster["transport_socket"]["typed_config"]
        common = context["common_tls_context"]
        assert common["tls_params"] == {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        }
        (certificate,) = common["tls_certificates"]
        assert certificate["private_key"]["filename"].endswith(f"/{way}/key.pem")
        (name,) = common["validation_context"]["match_typed_subject_alt_names"]
        assert name["matcher"] == {"exact": f"spiffe://remit.internal/{area}"}
        assert context["sni"] == f"{area}.remit.internal"


def test_every_replica_but_the_last_can_be_shut_out(document: Any) -> None:
    for cluster in areas_of(document).values():
        assert cluster["common_lb_config"]["healthy_panic_threshold"] == {}
        # Of two hosts one may be out, of one none: 100 % would be one too many.
        assert int(cluster["outlier_detection"]["max_ejection_percent"]) == 99
        assert cluster["ignore_health_on_host_removal"] is True
        assert cluster["health_checks"][0]["grpc_health_check"]


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))
