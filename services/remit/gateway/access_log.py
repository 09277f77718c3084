"""The edge's access log: of calls that it refused by itself, and of no other, audit is told.

A call that reached a service is recorded there, and one that policy refused is recorded by policy.
Only what never came so far would leave no trace. It is told best effort: entries are kept in a
bounded buffer and sent beside the calls; what finds no room, or is on its way when a connection
breaks, is lost. No call waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLog,
    AccessLogFilter,
    AndFilter,
    ExtensionFilter,
    OrFilter,
    ResponseFlagFilter,
)
from envoy_data_plane.envoy.config.core.v3 import ApiVersion, GrpcService, GrpcServiceEnvoyGrpc
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.type.metadata.v3 import (
    MetadataKey,
    MetadataKeyPathSegment,
    MetadataKind,
    MetadataKindRequest,
)
from envoy_data_plane.envoy.type.tracing.v3 import CustomTag, CustomTagMetadata
from envoy_data_plane.google.protobuf import Any

from remit.gateway.clusters import EDGE, cluster_name
from remit.rpc.contracts import MethodContract
from remit.rpc.envoy import FLAGS_TAG, GRPC_STATUS_TAG, PRINCIPAL_ENTRIES, TRACE_TAG

LOG_NAME: Final = "remit_edge"
BUFFER_BYTES: Final = 65_536
"""Entries of a thread are sent once they have so many bytes together, or at the next flush. While
audit is away so many bytes are kept; beyond them new entries are dropped, and counted by Envoy."""
FLUSH_EVERY: Final = timedelta(seconds=1)
_CHECKED: Final = "envoy.filters.http.ext_authz"
_NOT_REFUSED_HERE: Final = (
    "via_upstream",  # a service answered
    "ext_authz_denied",  # policy refused it and has told so itself
    "cors_response",  # a browser asked first, as it must
    "downstream_remote_disconnect",  # the client left before anybody answered
    "downstream_local_disconnect",
    "http2.remote_reset",
    "http2.remote_refuse",
)
"""Envoy's own names of what else ends without a service."""
# Else a connection to a service was there for the last attempt: from then on the service tells.
_NOT_CONNECTED: Final = "!has(upstream.cx_pool_ready_duration)"


def edge_access_log(contract: MethodContract) -> AccessLog:
    """Tells audit of what the edge refuses; `contract` is that of Envoy's access-log service."""
    service = GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=cluster_name(EDGE, contract.area))
    )
    common = CommonGrpcAccessLogConfig(
        log_name=LOG_NAME,
        grpc_service=service,
        transport_api_version=ApiVersion.V3,
        buffer_flush_interval=FLUSH_EVERY,
        buffer_size_bytes=BUFFER_BYTES,
        custom_tags=list(_tags()),
    )
    return AccessLog(
        name="envoy.access_loggers.http_grpc",
        filter=_refused_here(),
        typed_config=Any.pack(HttpGrpcAccessLogConfig(common_config=common)),
    )


def _refused_here() -> AccessLogFilter:
    others = ", ".join(f"'{details}'" for details in _NOT_REFUSED_HERE)
    # What has no value would make the whole expression an error, and an error logs nothing.
    ended_otherwise = f"has(response.code_details) && response.code_details in [{others}]"
    reached_nobody = [_where(_NOT_CONNECTED), _not_connected_after_all()]
    both = [
        _where(f"!({ended_otherwise})"),
        AccessLogFilter(or_filter=OrFilter(filters=reached_nobody)),
    ]
    return AccessLogFilter(and_filter=AndFilter(filters=both))


def _where(expression: str) -> AccessLogFilter:
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=Any.pack(ExpressionFilter(expression=expression)),
        )
    )


def _not_connected_after_all() -> AccessLogFilter:
    """The pool had a connection for the call, which then turned out not to be one."""
    return AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=["UF"]))


def _tags() -> Iterator[CustomTag]:
    """What is not in every entry, each as text. No header of the client's but its trace."""
    yield CustomTag(tag=FLAGS_TAG, value="%RESPONSE_FLAGS%")
    yield CustomTag(tag=GRPC_STATUS_TAG, value="%RESP(GRPC-STATUS)%")
    yield CustomTag(tag=TRACE_TAG, value="%REQ(TRACEPARENT)%")
    for entry in PRINCIPAL_ENTRIES:
        yield CustomTag(tag=entry, metadata=_checked(entry))


def _checked(entry: str) -> CustomTagMetadata:
    """A fact of the check of the credential, which no client can write."""
    return CustomTagMetadata(
        kind=MetadataKind(request=MetadataKindRequest()),
        metadata_key=MetadataKey(key=_CHECKED, path=[MetadataKeyPathSegment(key=entry)]),
    )
