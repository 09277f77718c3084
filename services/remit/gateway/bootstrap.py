"""The whole configuration of one Envoy, as typed messages and as the file that it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final, cast

from betterproto2 import Casing
from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapStaticResources,
)
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.config.overload.v3 import OverloadManager, ResourceMonitor
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.google.protobuf import Any

from remit.gateway.clusters import EDGE, MESH, area_cluster, socket_address
from remit.gateway.identity_tokens import issuer_clusters
from remit.gateway.listeners import edge_listener, mesh_listener, stats_listener
from remit.gateway.routes import STANDARD_AREA, edge_contracts
from remit.gateway.stats import stats_cluster
from remit.gateway.topology import Topology
from remit.gateway.tracing import collector_clusters, runtime
from remit.rpc.contracts import AREAS, STANDARD_CONTRACTS, MethodContract, contracts_of
from remit.rpc.envoy import AUTHORIZATION_CHECK, SHOULD_RATE_LIMIT, STREAM_ACCESS_LOGS

_MAX_CONNECTIONS: Final = 10_000


def bootstrap(topology: Topology) -> Bootstrap:
    """Envoy's configuration for this topology."""
    return Bootstrap(
        node=Node(id="remit-gateway", cluster="remit"),
        admin=Admin(address=socket_address(topology.admin.host, topology.admin.port)),
        static_resources=BootstrapStaticResources(
            listeners=[
                edge_listener(topology),
                mesh_listener(topology),
                stats_listener(topology),
            ],
            clusters=list(_clusters(topology)),
        ),
        overload_manager=_overload_manager(),
        layered_runtime=runtime(topology),
    )


def render(topology: Topology) -> str:
    """The file that Envoy reads: JSON with the field names of its own definitions.

    `to_json` is not used: both of its spellings break names such as `consecutive_5xx`.
    """
    document = bootstrap(topology).to_dict(casing=cast("Casing", _unchanged))
    return json.dumps(document, indent=2) + "\n"


def render_binary(topology: Topology) -> bytes:
    """The same in binary form, for a file named `*.pb`: ready in half the time, for machines."""
    return bytes(bootstrap(topology))


def _unchanged(name: str) -> str:
    return name


def _clusters(topology: Topology) -> Iterator[Cluster]:
    for area in AREAS:
        yield area_cluster(topology, EDGE, area, _edge_calls(area))
    for area in AREAS:
        yield area_cluster(topology, MESH, area, contracts_of(area))
    yield stats_cluster(topology)
    yield from collector_clusters(topology)
    yield from issuer_clusters(topology)


def _edge_calls(area: str) -> Sequence[MethodContract]:
    """What the edge sends to an area: public RPCs, and what it asks and tells besides."""
    calls = [c for c in edge_contracts() if (c.area or STANDARD_AREA) == area]
    own = (AUTHORIZATION_CHECK, SHOULD_RATE_LIMIT, STREAM_ACCESS_LOGS)
    asked = (STANDARD_CONTRACTS[path] for path in own)
    return [*calls, *(contract for contract in asked if contract.area == area)]


def _overload_manager() -> OverloadManager:
    limit = DownstreamConnectionsConfig(max_active_downstream_connections=_MAX_CONNECTIONS)
    monitor = ResourceMonitor(
        name="envoy.resource_monitors.global_downstream_max_connections",
        typed_config=Any.pack(limit),
    )
    return OverloadManager(resource_monitors=[monitor])
