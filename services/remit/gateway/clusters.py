"""The services as Envoy sees them: one cluster for each area and each way in.

An area has two clusters, one that connects with the edge's certificate and one with the mesh
listener's. Their circuit breakers follow from the contracts: what is admitted is what the replicas
admit, and closing calls (priority HIGH) have a share that opening calls cannot take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    CircuitBreakersThresholdsRetryBudget,
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
    ClusterLbPolicy,
    OutlierDetection,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    Http2ProtocolOptions,
    KeepaliveSettings,
    RoutingPriority,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

from remit.api.options.v1 import options_pb2
from remit.gateway.tls import upstream_tls
from remit.gateway.topology import Replica, Resilience, Topology
from remit.rpc.contracts import MethodContract
from remit.rpc.identity import dns_name

EDGE: Final = "edge"
MESH: Final = "mesh"
_UNHEALTHY_CHECK_EVERY: Final = timedelta(milliseconds=250)
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MAX_CONNECTIONS: Final = 1024
_STREAM_WINDOW_BYTES: Final = 1 << 20
_CONNECTION_WINDOW_BYTES: Final = 4 << 20
_ALL_BUT_ONE_PERCENT: Final = 99
"""Of any number of replicas up to 100: what would be ejected is rounded up and compared with it."""


def cluster_name(way: str, area: str) -> str:
    """Name of the cluster by which `way` (edge or mesh) reaches `area`."""
    return f"{way}_{area}"


def priority_of(contract: MethodContract) -> RoutingPriority:
    """HIGH for what closes something that was begun, DEFAULT for the rest."""
    closes = contract.phase == options_pb2.PHASE_CLOSE
    return RoutingPriority.HIGH if closes else RoutingPriority.DEFAULT


def area_cluster(
    topology: Topology, way: str, area: str, contracts: Sequence[MethodContract]
) -> Cluster:
    """The replicas of an area for one way in; `contracts` are the RPCs that may arrive by it."""
    replicas = topology.replicas[area]
    resilience = topology.resilience
    name = cluster_name(way, area)
    return Cluster(
        name=name,
        type=_discovery(replicas),
        lb_policy=ClusterLbPolicy.LEAST_REQUEST,
        connect_timeout=timedelta(seconds=resilience.connect_timeout_s),
        load_assignment=_endpoints(name, replicas),
        # With the default threshold of 50 % a single replica is never shut out.
        common_lb_config=ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=0.0)),
        circuit_breakers=_circuit_breakers(contracts, _processes(replicas)),
        outlier_detection=_outlier_detection(resilience, way, contracts),
        health_checks=[_health_check(resilience, area)],
        # A replica taken off the list gets no more calls, however healthy it still is.
        ignore_health_on_host_removal=True,
        transport_socket=upstream_tls(topology.tls_dir, way, area),
        typed_extension_protocol_options={_HTTP_OPTIONS: _http2(resilience)},
    )


def _processes(replicas: Iterable[Replica]) -> int:
    return sum(replica.processes for replica in replicas)


def _discovery(replicas: Iterable[Replica]) -> ClusterDiscoveryType:
    if all(replica.is_ip for replica in replicas):
        return ClusterDiscoveryType.STATIC
    return ClusterDiscoveryType.STRICT_DNS


def _endpoints(name: str, replicas: Iterable[Replica]) -> ClusterLoadAssignment:
    endpoints = [
        LbEndpoint(endpoint=Endpoint(address=socket_address(replica.host, replica.port)))
        for replica in replicas
    ]
    return ClusterLoadAssignment(
        cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=endpoints)]
    )


def socket_address(host: str, port: int) -> Address:
    """A TCP address as Envoy writes it."""
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def _circuit_breakers(contracts: Sequence[MethodContract], replicas: int) -> CircuitBreakers:
    thresholds = []
    for priority in (RoutingPriority.DEFAULT, RoutingPriority.HIGH):
        per_replica = sum(c.max_in_flight for c in contracts if priority_of(c) == priority)
        if per_replica:
            thresholds.append(_threshold(priority, per_replica, replicas))
    return CircuitBreakers(thresholds=thresholds)


def _threshold(
    priority: RoutingPriority, per_replica: int, replicas: int
) -> CircuitBreakersThresholds:
    """When a replica dies, all its calls are retried at once: the budget covers them."""
    total = per_replica * replicas
    return CircuitBreakersThresholds(
        priority=priority,
        max_connections=_MAX_CONNECTIONS,
        max_pending_requests=total,
        max_requests=total,
        retry_budget=CircuitBreakersThresholdsRetryBudget(
            budget_percent=Percent(value=100.0), min_retry_concurrency=per_replica
        ),
        track_remaining=True,
    )


def _outlier_detection(
    resilience: Resilience, way: str, contracts: Sequence[MethodContract]
) -> OutlierDetection:
    """Ejects a replica that loses connections or calls; beyond that, one that answers only errors.

    The last replica stays: calls that time out while it stalls must not make an outage of a pause,
    and one that is dead fails its health checks.

    Answers count only on the mesh and only for areas without effects: a client with tiny
    deadlines, or a model provider that is down, makes a healthy replica answer errors and must not
    shut it out.
    """
    answers_count = way == MESH and not any(c.is_effect for c in contracts)
    return OutlierDetection(
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=resilience.outlier_failures,
        enforcing_consecutive_local_origin_failure=100,
        consecutive_5xx=resilience.outlier_errors,
        enforcing_consecutive_5xx=100 if answers_count else 0,
        enforcing_success_rate=0,
        enforcing_local_origin_success_rate=0,
        interval=timedelta(seconds=1),
        base_ejection_time=timedelta(seconds=resilience.ejection_s),
        max_ejection_percent=_ALL_BUT_ONE_PERCENT,
    )


def _health_check(resilience: Resilience, area: str) -> HealthCheck:
    interval = timedelta(seconds=resilience.health_interval_s)
    return HealthCheck(
        timeout=timedelta(seconds=resilience.health_timeout_s),
        interval=interval,
        # The default of 60 s before any traffic would hide a replica that starts after Envoy.
        no_traffic_interval=interval,
        no_traffic_healthy_interval=interval,
        unhealthy_interval=_UNHEALTHY_CHECK_EVERY,
        unhealthy_edge_interval=_UNHEALTHY_CHECK_EVERY,
        unhealthy_threshold=resilience.health_failures,
        healthy_threshold=1,
        grpc_health_check=HealthCheckGrpcHealthCheck(authority=dns_name(area)),
    )


def _http2(resilience: Resilience) -> Any:
    options = Http2ProtocolOptions(
        initial_stream_window_size=_STREAM_WINDOW_BYTES,
        initial_connection_window_size=_CONNECTION_WINDOW_BYTES,
        connection_keepalive=KeepaliveSettings(
            interval=timedelta(seconds=resilience.keepalive_interval_s),
            timeout=timedelta(seconds=resilience.keepalive_timeout_s),
        ),
    )
    explicit = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=options)
    return Any.pack(HttpProtocolOptions(explicit_http_config=explicit))
