"""What the gateway itself answers, in the form of every other error of Remit.

A client must not have to know whether a service or the gateway refused: each answer that Envoy
makes carries a canonical code and a google.rpc.Status with an ErrorInfo. A gRPC client gets it as
status and details; a client that speaks plain HTTP as JSON, under the HTTP status of the code, with
`retry-after` where it may try again. Four statuses are HTTP's own: 404 for a verb and path that no
RPC has (METHOD_UNKNOWN), 408 for a body that did not come within the deadline (DEADLINE_EXCEEDED),
413 for one over `transcoder.MAX_BODY_BYTES`, and 431 for URL and headers over `MAX_HEADERS_KIB`
(both TOO_LARGE).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Final

import grpc
from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ComparisonFilterOp,
    ExtensionFilter,
    HeaderFilter,
    OrFilter,
    ResponseFlagFilter,
    StatusCodeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    RuntimeUInt32,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any, Struct

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.transcoder import MAX_BODY_BYTES
from remit.rpc.errors import STATUS_DETAILS_KEY, RemitError, Violation, invalid_request
from remit.rpc.rest import HTTP_STATUS, TRANSCODED_KEY, error_json, retry_after

MAX_HEADERS_KIB: Final = 12
"""URL and headers of a call at the edge; with all that is added, services still take them."""
UNKNOWN_METHOD: Final = RemitError(
    error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN,
    "the gateway knows no such method",
)
_POLICY_SILENT: Final = RemitError(
    error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    "the policy service did not answer, so nothing is let through",
)
_LIMITS_SILENT: Final = RemitError(
    error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    "the rate limits could not be asked, so no call that counts is let through",
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
_BODY_TOO_LARGE: Final = RemitError(
    error_reason_pb2.ERROR_REASON_TOO_LARGE,
    f"the body has more than {MAX_BODY_BYTES} bytes",
)
# What Envoy says of such a request names the fault: an unknown query parameter, a wrong type.
_ENVOYS_WORDS: Final = "%LOCAL_REPLY_BODY%"
_MALFORMED: Final = RemitError(
    error_reason_pb2.ERROR_REASON_INVALID_REQUEST,
    f"the request was refused by the gateway: {_ENVOYS_WORDS}",
    violations=[Violation("url", _ENVOYS_WORDS)],
)
_HIDDEN_IN_PATH: Final = invalid_request(
    [Violation("url", "its path hides a slash, a backslash or a zero byte (%2F, %5C, %00)")]
)
_HEADERS_TOO_LARGE: Final = RemitError(
    error_reason_pb2.ERROR_REASON_TOO_LARGE,
    f"the URL and the headers have more than {MAX_HEADERS_KIB} KiB together",
)
_FAILED: Final = RemitError(
    error_reason_pb2.ERROR_REASON_INTERNAL, f"the gateway could not answer: {_ENVOYS_WORDS}"
)
_HTTPS_OWN: Final = {UNKNOWN_METHOD: 404, _HEADERS_TOO_LARGE: 431}
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


def local_replies(*, plain_http: bool = False) -> LocalReplyConfig:
    """Errors of the gateway's own making; the first that matches is sent.

    `plain_http`: some clients do not speak gRPC.
    """
    mappers = list(_plain_replies()) if plain_http else []
    mappers += [_grpc_reply(when, error) for when, error in _causes()]
    return LocalReplyConfig(mappers=mappers)


def _causes() -> Iterator[tuple[AccessLogFilter, RemitError]]:
    yield _outgrown(), _HEADERS_TOO_LARGE
    # Not by its status: policy itself may answer 503, and says why.
    yield _details("ext_authz_error"), _POLICY_SILENT
    yield _flags("RLSE"), _LIMITS_SILENT
    yield _flags("UO"), _OVERLOADED
    yield _flags(*_LATE_FLAGS), _TOO_LATE
    # The caller's own deadline ends a call with this status and without a flag.
    yield _status(504), _TOO_LATE
    yield _and(_flags("NC"), _status(404)), UNKNOWN_METHOD
    yield _flags(*_UNREACHABLE_FLAGS), _UNREACHABLE


def _grpc_reply(when: AccessLogFilter, error: RemitError) -> ResponseMapper:
    # Clients compare the message with the one inside the details, so both must be the same.
    return ResponseMapper(
        filter=when,
        body=DataSource(inline_string=error.message),
        headers_to_add=status_headers(error),
    )


def _plain_replies() -> Iterator[ResponseMapper]:
    for when, error in _causes():
        yield _plain_reply(when, error, _HTTPS_OWN.get(error, HTTP_STATUS[error.code]))
    # Policy answers in the right form already (remit.policy.ext_authz and .rate_limits).
    yield ResponseMapper(filter=_and(_plain_http(), _flags("UAEX", "RL")))
    yield _limited_by_grpc_web()
    yield _plain_reply(_status(404), UNKNOWN_METHOD, 404)
    yield _plain_reply(_status(408), _TOO_LATE, 408)
    yield _plain_reply(_status(413), _BODY_TOO_LARGE, 413)
    yield _plain_reply(_status(431), _HEADERS_TOO_LARGE, 431)
    yield _plain_reply(_details("path_normalization_failed"), _HIDDEN_IN_PATH, 400)
    yield _explained_reply(_status(499, ComparisonFilterOp.LE), _MALFORMED)
    yield _explained_reply(_status(500, ComparisonFilterOp.GE), _FAILED)


def _limited_by_grpc_web() -> ResponseMapper:
    """A refusal by a rate limit as gRPC writes it; a call of gRPC-Web looks like plain HTTP here.

    Left so, its 429 would become UNAVAILABLE. For gRPC itself nothing changes.
    """
    return ResponseMapper(
        filter=_flags("RL"),
        status_code=200,
        headers_to_add=[
            _header("content-type", "application/grpc"),
            _header("grpc-status", str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])),
        ],
    )


def _plain_reply(when: AccessLogFilter, error: RemitError, status: int) -> ResponseMapper:
    delay = retry_after(error)
    return ResponseMapper(
        filter=_and(_plain_http(), when),
        status_code=status,
        body=DataSource(inline_string=error_json(error)),
        body_format_override=SubstitutionFormatString(
            text_format_source=DataSource(inline_string=_ENVOYS_WORDS),
            content_type="application/json",
        ),
        headers_to_add=[] if delay is None else [_header("retry-after", delay)],
    )


def _explained_reply(when: AccessLogFilter, error: RemitError) -> ResponseMapper:
    """An error in which Envoy's own words stand; its status stays Envoy's."""
    return ResponseMapper(
        filter=_and(_plain_http(), when),
        body_format_override=SubstitutionFormatString(
            json_format=Struct.from_dict(json.loads(error_json(error))),
            content_type="application/json",
        ),
    )


def _plain_http() -> AccessLogFilter:
    """Whether the client speaks plain HTTP; a call that was transcoded looks like gRPC since."""
    not_grpc = HeaderMatcher(
        name="content-type",
        string_match=StringMatcher(prefix="application/grpc"),
        invert_match=True,
        treat_missing_header_as_empty=True,
    )
    transcoded = HeaderMatcher(name=TRANSCODED_KEY, present_match=True)
    filters = [
        AccessLogFilter(header_filter=HeaderFilter(header=header))
        for header in (not_grpc, transcoded)
    ]
    return AccessLogFilter(or_filter=OrFilter(filters=filters))


def _flags(*flags: str) -> AccessLogFilter:
    return AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=list(flags)))


def _status(code: int, op: ComparisonFilterOp = ComparisonFilterOp.EQ) -> AccessLogFilter:
    # The runtime key is demanded by the message and never set.
    value = RuntimeUInt32(default_value=code, runtime_key=f"remit.local_reply_{code}")
    comparison = ComparisonFilter(op=op, value=value)
    return AccessLogFilter(status_code_filter=StatusCodeFilter(comparison=comparison))


def _details(details: str) -> AccessLogFilter:
    """By Envoy's own name for what happened, where it says nothing else."""
    expression = ExpressionFilter(expression=f"response.code_details == '{details}'")
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel", typed_config=Any.pack(expression)
        )
    )


def _outgrown() -> AccessLogFilter:
    """Headers that passed, and are too large with the remit in place of the credential."""
    return _details("ext_authz_invalid")


def _and(*filters: AccessLogFilter) -> AccessLogFilter:
    return AccessLogFilter(and_filter=AndFilter(filters=list(filters)))


def _header(key: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=key, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
