"""Rate limits at the edge: before a call that counts, Envoy asks the policy service.

Which calls count is in their contracts (`rate_limit`). Whose they are comes from the check of the
credential, by metadata that no client can write; a call without it is refused over there.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.core.v3 import ApiVersion, GrpcService, GrpcServiceEnvoyGrpc
from envoy_data_plane.envoy.config.ratelimit.v3 import RateLimitServiceConfig
from envoy_data_plane.envoy.config.route.v3 import (
    RateLimit,
    RateLimitAction,
    RateLimitActionGenericKey,
    RateLimitActionMetaData,
    RateLimitActionMetaDataSource,
    RateLimitActionRequestHeaders,
)
from envoy_data_plane.envoy.extensions.filters.http.ratelimit.v3 import RateLimit as Filter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.metadata.v3 import MetadataKey, MetadataKeyPathSegment
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Any

from remit.api.options.v1 import options_pb2
from remit.gateway.clusters import EDGE, cluster_name
from remit.rpc.contracts import MethodContract
from remit.rpc.envoy import (
    LIMIT_ENTRY,
    PRINCIPAL_ENTRIES,
    RATE_LIMIT_DOMAIN,
    REST_ENTRY,
    UNKNOWN_PRINCIPAL,
    runs_entry,
)
from remit.rpc.rest import TRANSCODED_KEY

_CHECKED: Final = "envoy.filters.http.ext_authz"
"""Where Envoy keeps the metadata that the check of the credential answered."""


def rate_limit_filter(contract: MethodContract) -> HttpFilter:
    """Asks before a call that counts; without an answer it does not pass.

    `contract` is that of Envoy's rate-limit service.
    """
    service = GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=cluster_name(EDGE, contract.area))
    )
    config = Filter(
        domain=RATE_LIMIT_DOMAIN,
        timeout=timedelta(seconds=contract.deadline_s),
        failure_mode_deny=True,
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        rate_limited_as_resource_exhausted=True,
        disable_x_envoy_ratelimited_header=True,
        rate_limit_service=RateLimitServiceConfig(
            grpc_service=service, transport_api_version=ApiVersion.V3
        ),
    )
    return HttpFilter(name="envoy.filters.http.ratelimit", typed_config=Any.pack(config))


def rate_limits(contract: MethodContract) -> list[RateLimit]:
    """What a route says of a call that counts: one descriptor, so that it is counted at once."""
    if contract.rate_limit == options_pb2.RATE_LIMIT_UNSPECIFIED:
        return []
    return [RateLimit(actions=list(_actions(contract)))]


def _actions(contract: MethodContract) -> Iterator[RateLimitAction]:
    limit = options_pb2.RateLimit.Name(contract.rate_limit)
    yield RateLimitAction(
        generic_key=RateLimitActionGenericKey(descriptor_key=LIMIT_ENTRY, descriptor_value=limit)
    )
    for entry in PRINCIPAL_ENTRIES:
        yield RateLimitAction(metadata=_checked(entry))
        yield RateLimitAction(metadata=_checked(runs_entry(entry)))
    yield RateLimitAction(
        request_headers=RateLimitActionRequestHeaders(
            header_name=TRANSCODED_KEY, descriptor_key=REST_ENTRY, skip_if_absent=True
        )
    )


def _checked(entry: str) -> RateLimitActionMetaData:
    """A fact of the check. Without a default, a missing one would let the call pass unasked."""
    return RateLimitActionMetaData(
        descriptor_key=entry,
        metadata_key=MetadataKey(key=_CHECKED, path=[MetadataKeyPathSegment(key=entry)]),
        default_value=UNKNOWN_PRINCIPAL,
        source=RateLimitActionMetaDataSource.DYNAMIC,
    )
