"""What the gateway itself answers, in the form of every other error of Remit.

A client must not have to know whether a service or the gateway refused: each answer that Envoy
makes carries a canonical code and a google.rpc.Status with an ErrorInfo.
"""

from __future__ import annotations

import base64
from typing import Final

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ComparisonFilterOp,
    ResponseFlagFilter,
    StatusCodeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    RuntimeUInt32,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import STATUS_DETAILS_KEY, RemitError

UNKNOWN_METHOD: Final = RemitError(
    error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN,
    "the gateway knows no such method",
)
_POLICY_SILENT: Final = RemitError(
    error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    "the policy service did not answer, so nothing is let through",
)
_OVERLOADED: Final = RemitError(
    error_reason_pb2.ERROR_REASON_OVERLOADED,
    "the service behind this method has as many calls in flight as it takes",
)
_UNREACHABLE: Final = RemitError(
    error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    "no replica of the service behind this method could be reached",
)
_TOO_LATE: Final = RemitError(
    error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
    "the call did not end within its deadline",
)
# Response flags of Envoy's access log: what happened to the call.
_UNREACHABLE_FLAGS: Final = ("UH", "UF", "UC", "UR", "LR", "URX", "UPE", "NC")
_LATE_FLAGS: Final = ("UMSDR", "UT", "SI")


def status_headers(error: RemitError) -> list[HeaderValueOption]:
    """The headers that make an answer of Envoy this error: the code and the details."""
    details = base64.b64encode(error.to_status().SerializeToString()).decode().rstrip("=")
    return [
        _header("grpc-status", str(error.code.value[0])),
        _header(STATUS_DETAILS_KEY, details),
    ]


def local_replies() -> LocalReplyConfig:
    """Errors of the gateway's own making; the first that matches is sent."""
    return LocalReplyConfig(
        mappers=[
            _mapper(_and(_flags("UAEX"), _status(503)), _POLICY_SILENT),
            _mapper(_flags("UO"), _OVERLOADED),
            _mapper(_flags(*_LATE_FLAGS), _TOO_LATE),
            # The caller's own deadline ends a call with this status and without a flag.
            _mapper(_status(504), _TOO_LATE),
            _mapper(_flags(*_UNREACHABLE_FLAGS), _UNREACHABLE),
        ]
    )


def _mapper(when: AccessLogFilter, error: RemitError) -> ResponseMapper:
    # Clients compare the message with the one inside the details, so both must be the same.
    return ResponseMapper(
        filter=when,
        body=DataSource(inline_string=error.message),
        headers_to_add=status_headers(error),
    )


def _flags(*flags: str) -> AccessLogFilter:
    return AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=list(flags)))


def _status(code: int) -> AccessLogFilter:
    # The runtime key is demanded by the message and never set.
    value = RuntimeUInt32(default_value=code, runtime_key=f"remit.local_reply_{code}")
    comparison = ComparisonFilter(op=ComparisonFilterOp.EQ, value=value)
    return AccessLogFilter(status_code_filter=StatusCodeFilter(comparison=comparison))


def _and(*filters: AccessLogFilter) -> AccessLogFilter:
    return AccessLogFilter(and_filter=AndFilter(filters=list(filters)))


def _header(key: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=key, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
