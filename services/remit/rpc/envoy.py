"""Envoy's services that Remit answers, bound to Remit's own messages.

The messages are wire-compatible reductions (protos/remit/api/gateway/v1); the service and method
names are Envoy's, which is why the binding is written here and not generated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import grpc

from remit.api.gateway.v1 import access_log_pb2, authorization_pb2, rate_limit_pb2

AUTHORIZATION_SERVICE: Final = "envoy.service.auth.v3.Authorization"
AUTHORIZATION_CHECK: Final = f"/{AUTHORIZATION_SERVICE}/Check"
RATE_LIMIT_SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
SHOULD_RATE_LIMIT: Final = f"/{RATE_LIMIT_SERVICE}/ShouldRateLimit"
ACCESS_LOG_SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"
STREAM_ACCESS_LOGS: Final = f"/{ACCESS_LOG_SERVICE}/StreamAccessLogs"

RATE_LIMIT_DOMAIN: Final = "remit"
LIMIT_ENTRY: Final = "limit"
"""Entry of a descriptor with the kind of limit, a name of `remit.api.options.v1.RateLimit`."""
USER_ENTRY: Final = "user"
API_KEY_ENTRY: Final = "api_key"
ORG_ENTRY: Final = "org"
PRINCIPAL_ENTRIES: Final = (USER_ENTRY, API_KEY_ENTRY, ORG_ENTRY)
"""Whose call it is: fields of what the authorisation answers, and entries of a descriptor."""
REST_ENTRY: Final = "rest"
"""Entry that is there for a call that came as JSON over HTTP."""
UNKNOWN_PRINCIPAL: Final = "-"
"""Value of an entry of which the authorisation said nothing."""

CHECKED_TOKENS: Final = "envoy.filters.http.jwt_authn"
"""Where the edge's filter of that name says which token of an identity provider it checked: the
claims under the issuer's name, the head under `token_header_entry` of it."""
TOKEN_FAULT_ENTRY: Final = "fault"  # noqa: S105 - a name
"""What was wrong with a token there: `code` and `message`. No issuer may have this name."""

FLAGS_TAG: Final = "flags"
"""Tag of an entry of the access log: Envoy's response flags, such as `RL` or `NC`."""
GRPC_STATUS_TAG: Final = "grpc_status"
"""Its code as a number."""
TRACE_TAG: Final = "traceparent"
"""The trace that it belongs to; whose call it is, the tags of PRINCIPAL_ENTRIES say."""

Context = grpc.aio.ServicerContext[Any, Any]
Check = Callable[[authorization_pb2.CheckRequest], Awaitable[authorization_pb2.CheckResponse]]
ShouldRateLimit = Callable[
    [rate_limit_pb2.RateLimitRequest], Awaitable[rate_limit_pb2.RateLimitResponse]
]
StreamAccessLogs = Callable[
    [AsyncIterator[access_log_pb2.StreamAccessLogsRequest]],
    Awaitable[access_log_pb2.StreamAccessLogsResponse],
]


def token_header_entry(issuer: str) -> str:
    """Where the head of a token of that issuer is."""
    return f"{issuer}.header"


def runs_entry(principal_entry: str) -> str:
    """The entry that says how often the one of another entry may start runs."""
    return f"{principal_entry}_runs"


class AuthorizationServicer(Protocol):
    """Answers Envoy's external authorisation (envoy.service.auth.v3)."""

    async def Check(
        self, request: authorization_pb2.CheckRequest, context: Context
    ) -> authorization_pb2.CheckResponse:
        """Let a call pass, or refuse it in the answer."""
        ...


class RateLimitServicer(Protocol):
    """Answers Envoy's rate-limit service (envoy.service.ratelimit.v3)."""

    async def ShouldRateLimit(
        self, request: rate_limit_pb2.RateLimitRequest, context: Context
    ) -> rate_limit_pb2.RateLimitResponse:
        """Count a call and let it pass, or refuse it in the answer."""
        ...


class AccessLogServicer(Protocol):
    """Takes Envoy's access log (envoy.service.accesslog.v3)."""

    async def StreamAccessLogs(
        self, messages: AsyncIterator[access_log_pb2.StreamAccessLogsRequest], context: Context
    ) -> access_log_pb2.StreamAccessLogsResponse:
        """Take what comes until the stream ends."""
        ...


class AuthorizationStub:
    """Asks as Envoy does; for tests."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.Check: Check = channel.unary_unary(
            AUTHORIZATION_CHECK,
            request_serializer=authorization_pb2.CheckRequest.SerializeToString,
            response_deserializer=authorization_pb2.CheckResponse.FromString,
        )


class RateLimitStub:
    """Asks as Envoy does; for tests."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.ShouldRateLimit: ShouldRateLimit = channel.unary_unary(
            SHOULD_RATE_LIMIT,
            request_serializer=rate_limit_pb2.RateLimitRequest.SerializeToString,
            response_deserializer=rate_limit_pb2.RateLimitResponse.FromString,
        )


class AccessLogStub:
    """Tells as Envoy does; for tests."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.StreamAccessLogs: StreamAccessLogs = channel.stream_unary(
            STREAM_ACCESS_LOGS,
            request_serializer=access_log_pb2.StreamAccessLogsRequest.SerializeToString,
            response_deserializer=access_log_pb2.StreamAccessLogsResponse.FromString,
        )


def add_authorization_servicer(servicer: AuthorizationServicer, server: grpc.aio.Server) -> None:
    """Makes `server` answer Envoy's checks; the counterpart of the generated functions."""
    check = grpc.unary_unary_rpc_method_handler(
        servicer.Check,
        request_deserializer=authorization_pb2.CheckRequest.FromString,
        response_serializer=authorization_pb2.CheckResponse.SerializeToString,
    )
    server.add_registered_method_handlers(AUTHORIZATION_SERVICE, {"Check": check})


def add_rate_limit_servicer(servicer: RateLimitServicer, server: grpc.aio.Server) -> None:
    """Makes `server` answer Envoy's rate limits; the counterpart of the generated functions."""
    should = grpc.unary_unary_rpc_method_handler(
        servicer.ShouldRateLimit,
        request_deserializer=rate_limit_pb2.RateLimitRequest.FromString,
        response_serializer=rate_limit_pb2.RateLimitResponse.SerializeToString,
    )
    server.add_registered_method_handlers(RATE_LIMIT_SERVICE, {"ShouldRateLimit": should})


def add_access_log_servicer(servicer: AccessLogServicer, server: grpc.aio.Server) -> None:
    """Makes `server` take Envoy's access log; the counterpart of the generated functions."""
    stream = grpc.stream_unary_rpc_method_handler(
        servicer.StreamAccessLogs,
        request_deserializer=access_log_pb2.StreamAccessLogsRequest.FromString,
        response_serializer=access_log_pb2.StreamAccessLogsResponse.SerializeToString,
    )
    server.add_registered_method_handlers(ACCESS_LOG_SERVICE, {"StreamAccessLogs": stream})
