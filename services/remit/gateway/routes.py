"""One route for each RPC, made from its contract; whatever has no contract has no route.

Time limits are `max_stream_duration` with the caller's own `grpc-timeout`, which the caller sees as
DEADLINE_EXCEEDED; a route's `timeout` would show as UNAVAILABLE and invite retries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
)
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RetryPolicy,
    RetryPolicyRetryBackOff,
    RetryPolicyRetryHostPredicate,
    Route,
    RouteAction,
    RouteActionClusterNotFoundResponseCode,
    RouteActionMaxStreamDuration,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthzPerRoute
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from remit.api.options.v1 import options_pb2
from remit.gateway.clusters import EDGE, MESH, cluster_name, priority_of
from remit.gateway.cors import policy
from remit.gateway.local_replies import UNKNOWN_METHOD, status_headers
from remit.gateway.rate_limits import rate_limits
from remit.gateway.topology import Cors, Resilience, Topology
from remit.rpc.contracts import STANDARD_CONTRACTS, MethodContract, all_contracts

EXT_AUTHZ: Final = "envoy.filters.http.ext_authz"
STANDARD_AREA: Final = "agent"
"""The area that answers the standard services (health, reflection) for clients."""
# Never sent, or refused before it was read, or lost: sent again where the contract allows it.
_LOST: Final = "connect-failure,refused-stream,reset-before-request,reset,unavailable"
# Certain not to have reached a service: sent again whatever the contract says.
_NEVER_SENT: Final = "connect-failure,refused-stream"
_NO_LIMIT: Final = timedelta(0)
# gRPC-Web too: the route is chosen, with what it says of credentials, before it becomes gRPC.
_GRPC: Final = HeaderMatcher(
    name="content-type", string_match=StringMatcher(prefix="application/grpc")
)
_IDLE_MARGIN: Final = 2
"""A stream is cut after this many of the intervals in which its server promises to send."""
_SAME_HOST_ATTEMPTS: Final = 20
"""Picks of another replica for a retry. A dead replica has no requests, so the least-loaded choice
prefers it until it is ejected: of two replicas each pick finds the live one only once in four."""


def edge_contracts() -> tuple[MethodContract, ...]:
    """RPCs that clients may reach: our public ones, then health and reflection."""
    ours = [c for c in all_contracts().values() if c.is_public]
    standard = [
        c for c in STANDARD_CONTRACTS.values() if c.is_public and c.auth == options_pb2.AUTH_NONE
    ]
    return (*ours, *standard)


def edge_routes(topology: Topology) -> RouteConfiguration:
    """Routes of the edge listener: public RPCs, and METHOD_UNKNOWN for everything else.

    A REST call finds its route once the transcoder has given it the path of its RPC.
    """
    routes = [_route(EDGE, c, topology.resilience) for c in edge_contracts()]
    configuration = _configuration(EDGE, [*routes, _nowhere()])
    (host,) = configuration.virtual_hosts
    host.typed_per_filter_config = policy(topology.cors)
    host.response_headers_to_add = list(_caching(topology.cors))
    return configuration


def _caching(allowed: Cors) -> Iterator[HeaderValueOption]:
    """Nobody on the way keeps an answer: it was for one key. Nor for another page than asked."""
    yield _response_header("cache-control", "no-store")
    if allowed.origins:
        yield _response_header("vary", "origin")


def _response_header(key: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=key, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def mesh_routes(topology: Topology) -> RouteConfiguration:
    """Routes of the mesh listener: every RPC of ours; the called service decides who may."""
    routes = [_route(MESH, c, topology.resilience) for c in all_contracts().values()]
    return _configuration(MESH, [*routes, *_unknown_methods()])


def _configuration(way: str, routes: Iterable[Route]) -> RouteConfiguration:
    host = VirtualHost(name=way, domains=["*"], routes=list(routes))
    return RouteConfiguration(name=way, virtual_hosts=[host])


def _route(way: str, contract: MethodContract, resilience: Resilience) -> Route:
    return Route(
        name=contract.path,
        match=RouteMatch(path=contract.path, headers=[_GRPC]),
        route=RouteAction(
            cluster=cluster_name(way, contract.area or STANDARD_AREA),
            priority=priority_of(contract),
            timeout=_NO_LIMIT,
            idle_timeout=_idle_timeout(contract),
            max_stream_duration=_duration_limit(contract),
            retry_policy=_retry_policy(contract, resilience),
            rate_limits=rate_limits(contract) if way == EDGE else [],
        ),
        typed_per_filter_config=_without_credential(way, contract),
    )


def _duration_limit(contract: MethodContract) -> RouteActionMaxStreamDuration:
    deadline = timedelta(seconds=contract.deadline_s)
    return RouteActionMaxStreamDuration(
        max_stream_duration=deadline, grpc_timeout_header_max=deadline
    )


def _idle_timeout(contract: MethodContract) -> timedelta:
    if contract.stream is None:
        return _NO_LIMIT  # the deadline is the limit
    return timedelta(seconds=contract.stream.idle_s * _IDLE_MARGIN)


def _retry_policy(contract: MethodContract, resilience: Resilience) -> RetryPolicy:
    """Sends again what its contract allows; one attempt of an effect is never cut short."""
    attempt_s = contract.attempt_timeout_s if contract.may_retry else None
    return RetryPolicy(
        retry_on=_LOST if contract.may_retry else _NEVER_SENT,
        num_retries=resilience.max_retries,
        per_try_timeout=None if attempt_s is None else timedelta(seconds=attempt_s),
        retry_back_off=RetryPolicyRetryBackOff(
            base_interval=timedelta(seconds=resilience.retry_base_s),
            max_interval=timedelta(seconds=resilience.retry_max_s),
        ),
        retry_host_predicate=[_another_replica()],
        host_selection_retry_max_attempts=_SAME_HOST_ATTEMPTS,
    )


def _another_replica() -> RetryPolicyRetryHostPredicate:
    return RetryPolicyRetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts",
        typed_config=Any.pack(PreviousHostsPredicate()),
    )


def _without_credential(way: str, contract: MethodContract) -> dict[str, Any]:
    exempt = contract.auth in {options_pb2.AUTH_NONE, options_pb2.AUTH_CREDENTIAL}
    return _no_check() if way == EDGE and exempt else {}


def _no_check() -> dict[str, Any]:
    return {EXT_AUTHZ: Any.pack(ExtAuthzPerRoute(disabled=True))}


def _nowhere() -> Route:
    """The edge's last route: to a cluster that no client can name, for `local_replies` to answer.

    CORS takes its policy from a route that leads somewhere, not from a direct response, and a REST
    call has only this route until it is transcoded.
    """
    return Route(
        name="nowhere",
        match=RouteMatch(prefix="/"),
        route=RouteAction(
            cluster_header="x-remit-nowhere",
            cluster_not_found_response_code=RouteActionClusterNotFoundResponseCode.NOT_FOUND,
        ),
        typed_per_filter_config=_no_check(),
    )


def _unknown_methods() -> Iterator[Route]:
    """The mesh's last routes: gRPC calls get the error in gRPC form, everything else plain HTTP."""
    answer = DirectResponseAction(status=404, body=DataSource(inline_string=UNKNOWN_METHOD.message))
    yield Route(
        name="unknown_method",
        match=RouteMatch(prefix="/", headers=[_GRPC]),
        direct_response=answer,
        response_headers_to_add=status_headers(UNKNOWN_METHOD),
    )
    yield Route(name="not_grpc", match=RouteMatch(prefix="/"), direct_response=answer)
