"""Envoy's services that Remit answers, bound to Remit's own messages.

The messages are wire-compatible reductions (protos/remit/api/gateway/v1); the service and method
names are Envoy's, which is why the binding is written here and not generated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import grpc

from remit.api.gateway.v1 import authorization_pb2

AUTHORIZATION_SERVICE: Final = "envoy.service.auth.v3.Authorization"
AUTHORIZATION_CHECK: Final = f"/{AUTHORIZATION_SERVICE}/Check"

Context = grpc.aio.ServicerContext[Any, Any]
Check = Callable[[authorization_pb2.CheckRequest], Awaitable[authorization_pb2.CheckResponse]]


class AuthorizationServicer(Protocol):
    """Answers Envoy's external authorisation (envoy.service.auth.v3)."""

    async def Check(
        self, request: authorization_pb2.CheckRequest, context: Context
    ) -> authorization_pb2.CheckResponse:
        """Let a call pass, or refuse it in the answer."""
        ...


class AuthorizationStub:
    """Asks as Envoy does; for tests."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.Check: Check = channel.unary_unary(
            AUTHORIZATION_CHECK,
            request_serializer=authorization_pb2.CheckRequest.SerializeToString,
            response_deserializer=authorization_pb2.CheckResponse.FromString,
        )


def add_authorization_servicer(servicer: AuthorizationServicer, server: grpc.aio.Server) -> None:
    """Makes `server` answer Envoy's checks; the counterpart of the generated functions."""
    check = grpc.unary_unary_rpc_method_handler(
        servicer.Check,
        request_deserializer=authorization_pb2.CheckRequest.FromString,
        response_serializer=authorization_pb2.CheckResponse.SerializeToString,
    )
    server.add_registered_method_handlers(AUTHORIZATION_SERVICE, {"Check": check})
