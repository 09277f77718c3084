"""What Envoy listens on: for clients the edge, for services the mesh listener, and statistics.

The edge takes from a client nothing that says who it is except its credential, and exchanges that
for a remit at the policy service. The mesh listener takes nothing but the client certificate, and
passes its name on.

A call at the edge passes CORS, gRPC-Web and the transcoder first. Behind them every call is gRPC:
the credential is checked, the call counted, the route chosen and the deadline kept by the path of
its RPC, whichever of the three forms the client speaks.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
)
from envoy_data_plane.envoy.config.core.v3 import (
    ApiVersion,
    CidrRange,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    KeepaliveSettings,
    TrafficDirection,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerForwardClientCertDetails,
    HttpConnectionManagerInternalAddressConfig,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerSetCurrentClientCertDetails,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Any

from remit.gateway.access_log import edge_access_log
from remit.gateway.clusters import EDGE, MESH, cluster_name, socket_address
from remit.gateway.cors import cors, grpc_web
from remit.gateway.identity_tokens import checked_namespaces, identity_tokens
from remit.gateway.local_replies import MAX_HEADERS_KIB, local_replies
from remit.gateway.rate_limits import rate_limit_filter
from remit.gateway.routes import EXT_AUTHZ, edge_routes, mesh_routes
from remit.gateway.stats import STATS, stats_routes
from remit.gateway.tls import mesh_downstream_tls
from remit.gateway.topology import Address, Resilience, Topology
from remit.gateway.tracing import listener_tracing, valid_traceparent_only
from remit.gateway.transcoder import transcoder
from remit.rpc.calls import REMIT_KEY
from remit.rpc.contracts import STANDARD_CONTRACTS
from remit.rpc.envoy import AUTHORIZATION_CHECK, SHOULD_RATE_LIMIT, STREAM_ACCESS_LOGS

_MAX_STREAMS_PER_CONNECTION: Final = 1024
_STREAM_WINDOW_BYTES: Final = 1 << 20
_CONNECTION_WINDOW_BYTES: Final = 4 << 20
_BUFFER_BYTES: Final = 1 << 20
_HEADERS_TIMEOUT: Final = timedelta(seconds=10)
_CONNECTION_IDLE: Final = timedelta(hours=1)
_DRAIN_TIMEOUT: Final = timedelta(seconds=5)
# Nobody is internal: a caller cannot set retries or time limits by x-envoy-* headers. An empty list
# would mean the private ranges and loopback; the broadcast address never sends.
_NOBODY: Final = CidrRange(address_prefix="255.255.255.255", prefix_len=32)
_NO_LIMIT: Final = timedelta(0)
_GRPC_ENCODING: Final = (
    "'content-type' in request.headers"
    " && request.headers['content-type'].startsWith('application/grpc')"
    " ? request.headers['grpc-encoding'] : 'identity'"
)


def edge_listener(topology: Topology) -> Listener:
    """Clients: plain HTTP/2 and HTTP/1.1, credentials exchanged, public RPCs only."""
    manager = _manager(EDGE, edge_routes(topology), topology.resilience)
    manager.max_request_headers_kb = MAX_HEADERS_KIB
    manager.early_header_mutation_extensions = [_strip_identity()]
    manager.tracing = listener_tracing(topology)
    manager.local_reply_config = local_replies(plain_http=True)
    manager.access_log = [edge_access_log(STANDARD_CONTRACTS[STREAM_ACCESS_LOGS])]
    manager.http_filters = [
        cors(),
        grpc_web(),
        transcoder(),
        *identity_tokens(topology),
        _ext_authz(topology),
        rate_limit_filter(STANDARD_CONTRACTS[SHOULD_RATE_LIMIT]),
        *manager.http_filters,
    ]
    return _listener(EDGE, topology.edge, manager, None)


def mesh_listener(topology: Topology) -> Listener:
    """Services: mTLS, and exactly one `x-forwarded-client-cert` element with the caller's URI."""
    manager = _manager(MESH, mesh_routes(topology), topology.resilience)
    manager.tracing = listener_tracing(topology)
    manager.forward_client_cert_details = HttpConnectionManagerForwardClientCertDetails.SANITIZE_SET
    manager.set_current_client_cert_details = HttpConnectionManagerSetCurrentClientCertDetails(
        uri=True
    )
    return _listener(MESH, topology.mesh, manager, mesh_downstream_tls(topology.tls_dir))


def stats_listener(topology: Topology) -> Listener:
    """Prometheus and probes: plain HTTP, two pages."""
    manager = _manager(STATS, stats_routes(), topology.resilience)
    return _listener(STATS, topology.stats, manager, None)


def _listener(
    name: str,
    address: Address,
    manager: HttpConnectionManager,
    transport_socket: TransportSocket | None,
) -> Listener:
    network_filter = Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager)
    )
    return Listener(
        name=name,
        address=socket_address(address.host, address.port),
        # `/drain_listeners?inboundonly` must close the edge and leave the services their mesh.
        traffic_direction=(TrafficDirection.INBOUND if name == EDGE else TrafficDirection.OUTBOUND),
        per_connection_buffer_limit_bytes=_BUFFER_BYTES,
        filter_chains=[FilterChain(filters=[network_filter], transport_socket=transport_socket)],
    )


def _manager(way: str, routes: RouteConfiguration, resilience: Resilience) -> HttpConnectionManager:
    return HttpConnectionManager(
        stat_prefix=way,
        route_config=routes,
        http_filters=[_router()],
        local_reply_config=local_replies(),
        http2_protocol_options=_http2(resilience),
        common_http_protocol_options=HttpProtocolOptions(idle_timeout=_CONNECTION_IDLE),
        request_headers_timeout=_HEADERS_TIMEOUT,
        stream_idle_timeout=_NO_LIMIT,  # each route states its own
        drain_timeout=_DRAIN_TIMEOUT,
        use_remote_address=True,
        internal_address_config=HttpConnectionManagerInternalAddressConfig(cidr_ranges=[_NOBODY]),
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=(
            HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST
        ),
    )


def _http2(resilience: Resilience) -> Http2ProtocolOptions:
    return Http2ProtocolOptions(
        max_concurrent_streams=_MAX_STREAMS_PER_CONNECTION,
        initial_stream_window_size=_STREAM_WINDOW_BYTES,
        initial_connection_window_size=_CONNECTION_WINDOW_BYTES,
        connection_keepalive=KeepaliveSettings(
            interval=timedelta(seconds=resilience.keepalive_interval_s),
            timeout=timedelta(seconds=resilience.keepalive_timeout_s),
        ),
    )


def _strip_identity() -> TypedExtensionConfig:
    """Removes what only the mesh may say, before anything else looks at the request."""
    mutation = EarlyHeaderMutation(
        mutations=[
            HeaderMutation(remove=REMIT_KEY),
            HeaderMutation(remove="x-forwarded-client-cert"),
            _remove_all("x-remit-"),
            # Only the transcoder says that a call came over REST.
            _remove_all("x-envoy-original-"),
            *valid_traceparent_only(),
            # Nobody here reads them, and a server of gRPC refuses a call for one in a wrong form.
            HeaderMutation(remove="cookie"),
            _remove_matching(StringMatcher(suffix="-bin", ignore_case=True)),
            _encoding_of_grpc_only(),
        ]
    )
    return TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation", typed_config=Any.pack(mutation)
    )


def _remove_all(prefix: str) -> HeaderMutation:
    return _remove_matching(StringMatcher(prefix=prefix, ignore_case=True))


def _remove_matching(matcher: StringMatcher) -> HeaderMutation:
    return HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=matcher))


def _encoding_of_grpc_only() -> HeaderMutation:
    """Plain HTTP cannot say how its messages are encoded: the transcoder makes them."""
    return HeaderMutation(
        append=HeaderValueOption(
            header=HeaderValue(key="grpc-encoding", value=f"%CEL({_GRPC_ENCODING})%"),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS,
        )
    )


def _ext_authz(topology: Topology) -> HttpFilter:
    """Asks the policy service to exchange the credential; without its answer nothing passes."""
    contract = STANDARD_CONTRACTS[AUTHORIZATION_CHECK]
    service = GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=cluster_name(EDGE, contract.area)),
        timeout=timedelta(seconds=contract.deadline_s),
    )
    check = ExtAuthz(
        grpc_service=service,
        transport_api_version=ApiVersion.V3,
        failure_mode_allow=False,
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        clear_route_cache=True,
        validate_mutations=True,
        metadata_context_namespaces=checked_namespaces(topology),
    )
    return HttpFilter(name=EXT_AUTHZ, typed_config=Any.pack(check))


def _router() -> HttpFilter:
    return HttpFilter(name="envoy.filters.http.router", typed_config=Any.pack(Router()))
