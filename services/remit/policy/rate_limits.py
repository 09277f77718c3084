"""Envoy's rate-limit service: counts the calls that start runs, and refuses those over a limit.

The edge asks here after it has checked the credential, for the methods whose contracts name a
limit. A refusal is an answer in the form of every other error of Remit: RATE_LIMITED with the limit
as QuotaFailure and the time until there is a place as RetryInfo; by HTTP 429 with `retry-after`.
What cannot be counted is an error of this very call, and the edge then lets nothing pass.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc

from remit import telemetry
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    ERROR_REASON_INVALID_REQUEST,
    ERROR_REASON_RATE_LIMITED,
)
from remit.api.gateway.v1 import authorization_pb2, rate_limit_pb2
from remit.api.options.v1 import options_pb2
from remit.policy.ext_authz import grpc_message
from remit.policy.limit_book import meters_of
from remit.policy.limit_stores import LimitStore
from remit.policy.limits import MICROS, Meter, Refusal
from remit.policy.metrics import ADMITTED, UNCOUNTED, count_limited
from remit.rpc.envoy import LIMIT_ENTRY, RATE_LIMIT_DOMAIN, REST_ENTRY
from remit.rpc.errors import STATUS_DETAILS_KEY, QuotaViolation, RemitError
from remit.rpc.rest import error_json, retry_after

Context = grpc.aio.ServicerContext[Any, Any]

_RUNS: Final = options_pb2.RateLimit.Name(options_pb2.RATE_LIMIT_RUNS)
_MILLIS: Final = 1000
_OK: Final = rate_limit_pb2.RateLimitResponse.CODE_OK
_OVER_LIMIT: Final = rate_limit_pb2.RateLimitResponse.CODE_OVER_LIMIT

log = telemetry.logger(__name__)


class EdgeLimits:
    """Decides whether a client's call may start another run now."""

    def __init__(self, store: LimitStore, *, fail_open: bool) -> None:
        self._store = store
        self._fail_open = fail_open

    async def ShouldRateLimit(
        self,
        request: rate_limit_pb2.RateLimitRequest,
        context: Context,  # noqa: ARG002 - the servicer's signature
    ) -> rate_limit_pb2.RateLimitResponse:
        """Answer the edge; an error of this call refuses the client's, too."""
        entries = _entries(request)
        try:
            count_limited(await self._count(_meters(entries)))
        except RemitError as error:
            count_limited(error.metadata.get("limit", error.reason_name))
            if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return over_limit(error, is_rest=REST_ENTRY in entries)
        return rate_limit_pb2.RateLimitResponse(overall_code=_OK)

    async def _count(self, meters: Sequence[Meter]) -> str:
        """Count a call; return what became of it. Raises RATE_LIMITED, and as the store does."""
        try:
            refusals = await self._store.admit(meters)
        except RemitError as error:
            away = error.reason == ERROR_REASON_DEPENDENCY_UNAVAILABLE
            if not (away and self._fail_open):
                raise
            log.warning("run_not_counted", reason=error.reason_name, message=error.message)
            return UNCOUNTED
        if refusals:
            raise rate_limited(refusals)
        return ADMITTED


def rate_limited(refusals: Sequence[Refusal]) -> RemitError:
    """RATE_LIMITED by at least one limit; the message names the one that is free last."""
    last = max(refusals, key=lambda refusal: refusal.wait_us)
    return RemitError(
        ERROR_REASON_RATE_LIMITED,
        f"{last.meter.principal} may start {_allowed(last)}, and has",
        quota=[QuotaViolation(refusal.meter.principal, _allowed(refusal)) for refusal in refusals],
        # Rounded up, so that whoever waits so long finds the place.
        retry_after_s=math.ceil(last.wait_us * _MILLIS / MICROS) / _MILLIS,
        metadata={"limit": last.meter.kind},
    )


def over_limit(error: RemitError, *, is_rest: bool) -> rate_limit_pb2.RateLimitResponse:
    """Refuse the call so that the client sees the same error as from a service."""
    headers = [_header("retry-after", retry_after(error) or "1")]
    if is_rest:
        headers.append(_header("content-type", "application/json"))
        body = error_json(error)
    else:
        # Envoy writes `grpc-status` itself. A body it would write as `grpc-message`, but not for a
        # browser's gRPC-Web, which must have none.
        details = base64.b64encode(error.to_status().SerializeToString()).decode().rstrip("=")
        headers.append(_header(STATUS_DETAILS_KEY, details))
        headers.append(_header("grpc-message", grpc_message(error.message)))
        body = ""
    return rate_limit_pb2.RateLimitResponse(
        overall_code=_OVER_LIMIT, response_headers_to_add=headers, raw_body=body.encode()
    )


def _allowed(refusal: Refusal) -> str:
    limit = refusal.meter.limit
    return f"{limit.most} runs in any {limit.window_s} s"


def _entries(request: rate_limit_pb2.RateLimitRequest) -> Mapping[str, str]:
    """What the edge says of a call. Raises INVALID_REQUEST for a question that is not Remit's."""
    if request.domain != RATE_LIMIT_DOMAIN or len(request.descriptors) != 1:
        raise _misasked("one descriptor of Remit's own domain")
    entries = {entry.key: entry.value for entry in request.descriptors[0].entries}
    if entries.get(LIMIT_ENTRY) != _RUNS:
        raise _misasked(f"{_RUNS} as its kind of limit")
    return entries


def _meters(entries: Mapping[str, str]) -> tuple[Meter, ...]:
    try:
        return meters_of(entries)
    except ValueError as error:
        raise _misasked("a caller whose credential was checked") from error


def _misasked(lacking: str) -> RemitError:
    return RemitError(
        ERROR_REASON_INVALID_REQUEST, f"a question about rate limits must have {lacking}"
    )


def _header(name: str, value: str) -> authorization_pb2.HeaderValue:
    return authorization_pb2.HeaderValue(key=name, value=value)
