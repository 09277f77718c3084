"""Which web pages may call the edge: CORS (WHATWG Fetch), and gRPC-Web for what they speak.

A preflight of a listed origin is answered here, before any credential is asked for. Nobody else's
page gets a CORS header on any answer, so that its browser neither shows it one nor sends what needs
a preflight. Every call that does something needs a key in `authorization` or `x-api-key`, and both
need a preflight; the gateway knows no cookies, so a page cannot borrow a visitor's authority.
"""

from __future__ import annotations

import re
from typing import Final

from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors as CorsFilter
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import CorsPolicy
from envoy_data_plane.envoy.extensions.filters.http.grpc_web.v3 import GrpcWeb
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any

from remit.gateway.topology import Cors
from remit.rpc.errors import STATUS_DETAILS_KEY

CORS: Final = "envoy.filters.http.cors"
METHODS: Final = ("GET", "POST")
REQUEST_HEADERS: Final = (
    "authorization",
    "content-type",
    "grpc-timeout",
    "last-event-id",
    "traceparent",
    "x-api-key",
    "x-grpc-web",
    "x-user-agent",
)
RESPONSE_HEADERS: Final = ("grpc-message", "grpc-status", STATUS_DETAILS_KEY, "retry-after")
_ANY_HOST: Final = r"[a-z0-9-]+(\.[a-z0-9-]+)*"


def cors() -> HttpFilter:
    """The filter that answers preflights; what it allows is the listener's `policy`."""
    return HttpFilter(name=CORS, typed_config=Any.pack(CorsFilter()))


def grpc_web() -> HttpFilter:
    """The filter that makes gRPC of gRPC-Web."""
    return HttpFilter(name="envoy.filters.http.grpc_web", typed_config=Any.pack(GrpcWeb()))


def policy(allowed: Cors) -> dict[str, Any]:
    """What the filter allows, as configuration of a virtual host; nothing without origins."""
    if not allowed.origins:
        return {}
    return {
        CORS: Any.pack(
            CorsPolicy(
                allow_origin_string_match=[_matcher(origin) for origin in allowed.origins],
                allow_methods=", ".join(METHODS),
                allow_headers=", ".join(REQUEST_HEADERS),
                expose_headers=", ".join(RESPONSE_HEADERS),
                max_age=str(allowed.max_age_s),
                allow_credentials=False,
            )
        )
    }


def _matcher(origin: str) -> StringMatcher:
    if "*" not in origin:
        return StringMatcher(exact=origin)
    scheme, _, domain = origin.partition("*")
    return StringMatcher(
        safe_regex=RegexMatcher(regex=re.escape(scheme) + _ANY_HOST + re.escape(domain))
    )
