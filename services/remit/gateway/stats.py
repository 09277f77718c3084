"""A plain listener for Prometheus and probes: two pages of Envoy's admin interface, nothing else.

The admin interface itself can drain listeners and end the process and asks for no credential, so
it stays on loopback. This listener passes on GET of `/stats/prometheus` and `/ready`; another
method is answered with 405 and another path with 404, without asking it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from remit.gateway.clusters import socket_address
from remit.gateway.topology import Topology

STATS: Final = "stats"
PAGES: Final = ("/stats/prometheus", "/ready")
_TIMEOUT: Final = timedelta(seconds=10)


def stats_cluster(topology: Topology) -> Cluster:
    """Envoy's own admin interface."""
    address = socket_address(topology.admin.host, topology.admin.port)
    endpoint = LbEndpoint(endpoint=Endpoint(address=address))
    return Cluster(
        name=STATS,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=topology.resilience.connect_timeout_s),
        load_assignment=ClusterLoadAssignment(
            cluster_name=STATS, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
        ),
    )


def stats_routes() -> RouteConfiguration:
    """The two pages, and refusals."""
    host = VirtualHost(name=STATS, domains=["*"], routes=list(_routes()))
    return RouteConfiguration(name=STATS, virtual_hosts=[host])


def _routes() -> Iterator[Route]:
    get = HeaderMatcher(name=":method", string_match=StringMatcher(exact="GET"))
    for page in PAGES:
        yield Route(
            name=page,
            match=RouteMatch(path=page, headers=[get]),
            route=RouteAction(cluster=STATS, timeout=_TIMEOUT),
        )
        yield _refusal(RouteMatch(path=page), 405, "only GET")
    yield _refusal(RouteMatch(prefix="/"), 404, "only " + " and ".join(PAGES))


def _refusal(match: RouteMatch, status: int, why: str) -> Route:
    body = DataSource(inline_string=f"{why}\n")
    return Route(match=match, direct_response=DirectResponseAction(status=status, body=body))
