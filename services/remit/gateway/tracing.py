"""Envoy's part of a trace: a span for each call at either listener, sent to the same collector.

Envoy goes on in the trace that a call brings and follows its decision; where it brings none, the
edge begins one and decides by the ratio. What a client sends as `traceparent` is looked at before
Envoy reads it: of anything that the W3C calls invalid Envoy would make no span at all and pass it
on, so the edge removes it, and a new trace begins.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.bootstrap.v3 import LayeredRuntime, RuntimeLayer
from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation
from envoy_data_plane.envoy.config.core.v3 import (
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Http2ProtocolOptions,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.trace.v3 import OpenTelemetryConfig, TracingHttp
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManagerTracing,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any, Struct

from remit.gateway.clusters import socket_address
from remit.gateway.topology import Topology
from remit.rpc.calls import TRACE_KEY

COLLECTOR: Final = "collector"
"""Name of the collector's cluster."""
SERVICE_NAME: Final = "remit-gateway"
_SEND_TIMEOUT: Final = timedelta(seconds=5)
_SEND_EVERY_MS: Final = 1000
_SEND_AT_SPANS: Final = 256
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CHECKED: Final = "x-remit-traceparent"
_HEADER: Final = f"request.headers['{TRACE_KEY}']"
# Three short patterns: Envoy refuses one over the whole value as too large.
_VALID: Final = (
    f"'{TRACE_KEY}' in request.headers && size({_HEADER}) == 55"
    f" && {_HEADER}.matches('^00-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+$')"
    f" && {_HEADER}.matches('-[0-9a-f]{{16}}-[0-9a-f]{{2}}$')"
    f" && !{_HEADER}.startsWith('00-{'0' * 32}') && !{_HEADER}.contains('-{'0' * 16}-')"
)


def listener_tracing(topology: Topology) -> HttpConnectionManagerTracing | None:
    """What a listener records; None where no collector is named."""
    if topology.tracing is None:
        return None
    service = GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=COLLECTOR), timeout=_SEND_TIMEOUT
    )
    tracer = OpenTelemetryConfig(grpc_service=service, service_name=SERVICE_NAME)
    return HttpConnectionManagerTracing(
        provider=TracingHttp(name="envoy.tracers.opentelemetry", typed_config=Any.pack(tracer)),
        random_sampling=Percent(value=100 * topology.tracing.ratio),
        # Named by the path without its query, and the URL cut before it: a client may put there
        # what nobody should read, such as a key.
        operation="%PATH(NQ)%",
        max_path_tag_length=1,
    )


def collector_clusters(topology: Topology) -> list[Cluster]:
    """The collector, where one is named. It is asked once: what it does not take is lost."""
    if topology.tracing is None:
        return []
    address = topology.tracing.address
    endpoint = LbEndpoint(endpoint=Endpoint(address=socket_address(address.host, address.port)))
    explicit = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=Http2ProtocolOptions())
    return [
        Cluster(
            name=COLLECTOR,
            type=ClusterDiscoveryType.STATIC if address.is_ip else ClusterDiscoveryType.STRICT_DNS,
            connect_timeout=timedelta(seconds=topology.resilience.connect_timeout_s),
            load_assignment=ClusterLoadAssignment(
                cluster_name=COLLECTOR, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
            ),
            typed_extension_protocol_options={
                _HTTP_OPTIONS: Any.pack(HttpProtocolOptions(explicit_http_config=explicit))
            },
        )
    ]


def runtime(topology: Topology) -> LayeredRuntime | None:
    """Spans leave after a second; Envoy's own default is five."""
    if topology.tracing is None:
        return None
    values = {
        "tracing.opentelemetry.flush_interval_ms": _SEND_EVERY_MS,
        "tracing.opentelemetry.min_flush_spans": _SEND_AT_SPANS,
    }
    layer = Struct.from_dict(values)
    return LayeredRuntime(layers=[RuntimeLayer(name="tracing", static_layer=layer)])


def valid_traceparent_only() -> list[HeaderMutation]:
    """Keeps a valid `traceparent` and removes any other, `baggage` and `tracestate`.

    Nobody here reads these; Envoy would put a `tracestate`, whatever it says, on its spans.

    For after the removal of `x-remit-*`, under which the valid one is kept for a moment.
    """
    return [
        _set(_CHECKED, f"%CEL({_VALID} ? {_HEADER} : '')%"),
        HeaderMutation(remove=TRACE_KEY),
        HeaderMutation(remove="baggage"),
        HeaderMutation(remove="tracestate"),
        _set(TRACE_KEY, f"%REQ({_CHECKED})%"),
        HeaderMutation(remove=_CHECKED),
    ]


def _set(name: str, value: str) -> HeaderMutation:
    return HeaderMutation(
        append=HeaderValueOption(
            header=HeaderValue(key=name, value=value),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )
