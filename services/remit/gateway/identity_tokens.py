"""Tokens of identity providers at the edge: their signatures are checked before policy is asked.

Envoy checks signature, issuer, audience and times with the issuer's public keys and writes what it
found into metadata that no client can write. It refuses nothing itself: policy reads what was
found, checks it again, maps the claims and answers, so that a refused token is told and audited as
every other refused credential. Where no issuer is named there is no such filter.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from urllib.parse import SplitResult, urlsplit

from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterDiscoveryType,
    ClusterDnsLookupFamily,
)
from envoy_data_plane.envoy.config.core.v3 import DataSource, HttpUri, TransportSocket
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.route.v3 import RouteMatch
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwksAsyncFetch,
    JwtAuthentication,
    JwtHeader,
    JwtProvider,
    JwtRequirement,
    RemoteJwks,
    RequirementRule,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.google.protobuf import Any, Empty

from remit.gateway.clusters import socket_address
from remit.gateway.tls import public_tls
from remit.gateway.topology import Address, Topology
from remit.oidc import Issuer, read_issuers, read_jwks
from remit.rpc.envoy import CHECKED_TOKENS, TOKEN_FAULT_ENTRY, token_header_entry

_AUTHORIZATION: Final = "authorization"
_FETCH_TIMEOUT: Final = timedelta(seconds=5)
_FETCH_AGAIN: Final = timedelta(seconds=1)
"""After a fetch that failed."""
_PORTS: Final = {"https": 443, "http": 80}


def identity_tokens(topology: Topology) -> list[HttpFilter]:
    """The filter, for before the check of the credential. Raises as `read_issuers` does."""
    issuers = read_issuers(topology.oidc_file)
    if not issuers:
        return []
    config = JwtAuthentication(
        providers={issuer.name: _provider(issuer) for issuer in issuers},
        rules=[
            RequirementRule(
                match=RouteMatch(prefix="/"),
                requires=JwtRequirement(allow_missing_or_failed=Empty()),
            )
        ],
    )
    return [HttpFilter(name=CHECKED_TOKENS, typed_config=Any.pack(config))]


def checked_namespaces(topology: Topology) -> list[str]:
    """The metadata of which policy is told."""
    return [CHECKED_TOKENS] if topology.oidc_file else []


def issuer_clusters(topology: Topology) -> list[Cluster]:
    """Where keys are fetched from. Raises as `read_issuers` does."""
    issuers = read_issuers(topology.oidc_file)
    return [_cluster(topology, issuer) for issuer in issuers if issuer.jwks_uri]


def _provider(issuer: Issuer) -> JwtProvider:
    provider = JwtProvider(
        issuer=issuer.issuer,
        audiences=list(issuer.audiences),
        require_expiration=True,
        clock_skew_seconds=issuer.clock_skew_s,
        # Nowhere else: by itself Envoy would take a token from the URL, too.
        from_headers=[
            JwtHeader(name=_AUTHORIZATION, value_prefix=prefix) for prefix in ("Bearer ", "bearer ")
        ],
        # Policy compares what was checked with what was presented, and removes it.
        forward=True,
        payload_in_metadata=issuer.name,
        header_in_metadata=token_header_entry(issuer.name),
        failed_status_in_metadata=TOKEN_FAULT_ENTRY,
    )
    if issuer.jwks_file:
        provider.local_jwks = DataSource(inline_string=read_jwks(issuer))
    else:
        provider.remote_jwks = _remote(issuer)
    return provider


def _remote(issuer: Issuer) -> RemoteJwks:
    """Fetched beforehand and again in time; the edge opens without waiting for it."""
    return RemoteJwks(
        http_uri=HttpUri(
            uri=issuer.jwks_uri, cluster=_cluster_name(issuer), timeout=_FETCH_TIMEOUT
        ),
        cache_duration=timedelta(seconds=issuer.jwks_cache_s),
        async_fetch=JwksAsyncFetch(fast_listener=True, failed_refetch_duration=_FETCH_AGAIN),
    )


def _cluster_name(issuer: Issuer) -> str:
    return f"issuer_{issuer.name}"


def _cluster(topology: Topology, issuer: Issuer) -> Cluster:
    name, uri = _cluster_name(issuer), urlsplit(issuer.jwks_uri)
    address = Address(host=uri.hostname or "", port=uri.port or _PORTS[uri.scheme])
    endpoint = LbEndpoint(endpoint=Endpoint(address=socket_address(address.host, address.port)))
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC if address.is_ip else ClusterDiscoveryType.STRICT_DNS,
        # By itself Envoy takes IPv6 wherever the name has it, also where no way leads there.
        dns_lookup_family=ClusterDnsLookupFamily.V4_PREFERRED,
        connect_timeout=timedelta(seconds=topology.resilience.connect_timeout_s),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
        ),
        transport_socket=_socket(issuer, uri),
    )


def _socket(issuer: Issuer, uri: SplitResult) -> TransportSocket | None:
    if uri.scheme != "https":
        return None
    return public_tls(uri.hostname or "", issuer.jwks_ca_file)
