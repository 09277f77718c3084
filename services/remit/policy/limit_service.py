"""RateLimitService: how often principals of the caller's own org may start runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import grpc
from google.protobuf import duration_pb2, timestamp_pb2

from remit import names
from remit.api.policy.v1 import rate_limit_service_pb2 as messages
from remit.api.policy.v1 import rate_limit_service_pb2_grpc
from remit.idempotency import AdminRecorder, AdminRequest, asked_by, request_id_violations
from remit.policy.api_keys import canonical_body
from remit.policy.authority import Authority
from remit.policy.credentials import Credentials
from remit.policy.limit_rows import LimitRow, LimitRows, WantedLimit
from remit.rpc.calls import current_remit
from remit.rpc.errors import Violation, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

MAX_RUNS: Final = 10_000
MAX_WINDOW_S: Final = 86_400
_DEFAULT_WINDOW_S: Final = 60
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200
_PRINCIPALS: Final = ("user", "apiKey", "org")
_SET: Final = "limits.set"
_DELETE: Final = "limits.delete"
_LIST: Final = "limits.list"


class RateLimitService(rate_limit_service_pb2_grpc.RateLimitServiceServicer):
    """Administration of limits within the caller's own org."""

    def __init__(
        self,
        *,
        rows: LimitRows,
        authority: Authority,
        credentials: Credentials,
        recorder: AdminRecorder,
    ) -> None:
        self._rows = rows
        self._authority = authority
        self._credentials = credentials
        self._recorder = recorder

    async def SetRateLimit(
        self, request: messages.SetRateLimitRequest, context: Context
    ) -> messages.SetRateLimitResponse:
        """Set a limit: here it holds at once, on other replicas within their cache's time."""
        caller = current_remit()
        wanted = _wanted(caller, request)
        await self._authority.require(caller, _SET, request.principal)
        body = {name: value for name, value in asdict(wanted).items() if name != "principal"}
        asked = _asked(caller, _SET, request.request_id, request.principal, body)
        try:
            change = await self._rows.set(asked, wanted, _answer)
        finally:
            # Even if the commit's outcome is unknown: forgetting too much costs one query.
            self._credentials.forget_all()
        await self._recorder.record(change)
        return messages.SetRateLimitResponse(
            rate_limit=messages.RateLimit.FromString(change.response)
        )

    async def DeleteRateLimit(
        self, request: messages.DeleteRateLimitRequest, context: Context
    ) -> messages.DeleteRateLimitResponse:
        """Delete a limit, as fast as one is set."""
        caller = current_remit()
        found = request_id_violations(request.request_id)
        found += _principal_violations(caller, request.principal)
        if found:
            raise invalid_request(found)
        await self._authority.require(caller, _DELETE, request.principal)
        asked = _asked(caller, _DELETE, request.request_id, request.principal, {})
        try:
            change = await self._rows.delete(asked, request.principal, _answer)
        finally:
            self._credentials.forget_all()
        await self._recorder.record(change)
        return messages.DeleteRateLimitResponse(
            rate_limit=messages.RateLimit.FromString(change.response)
        )

    async def ListRateLimits(
        self, request: messages.ListRateLimitsRequest, context: Context
    ) -> messages.ListRateLimitsResponse:
        """List the org's limits; a page token is the last principal shown."""
        caller = current_remit()
        _check_page(caller, request)
        await self._authority.require(caller, _LIST, caller.org)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rows = await self._rows.page(caller.org, size + 1, request.page_token)
        response = messages.ListRateLimitsResponse(
            rate_limits=[rate_limit_of(row) for row in rows[:size]]
        )
        if len(rows) > size:
            response.next_page_token = rows[size - 1].principal
        return response


def rate_limit_of(row: LimitRow) -> messages.RateLimit:
    """The limit on the wire."""
    window = duration_pb2.Duration(seconds=row.window_s) if row.max_runs else None
    return messages.RateLimit(
        principal=row.principal,
        max_runs=row.max_runs,
        window=window,
        max_unfinished_runs=row.max_unfinished_runs,
        create_time=_timestamp(row.create_time),
        update_time=_timestamp(row.update_time),
    )


def _answer(row: LimitRow) -> bytes:
    return rate_limit_of(row).SerializeToString()


def _asked(
    caller: Remit, action: str, request_id: str, principal: str, body: Mapping[str, object]
) -> AdminRequest:
    detail = json.dumps(dict(body), sort_keys=True)
    canonical = canonical_body({"name": principal, **body})
    return asked_by(caller, action, request_id, principal, detail=detail, body=canonical)


def _wanted(caller: Remit, request: messages.SetRateLimitRequest) -> WantedLimit:
    """Read a request. Raises INVALID_REQUEST with everything that is wrong."""
    found = request_id_violations(request.request_id)
    found += _principal_violations(caller, request.principal)
    if not 0 <= request.max_runs <= MAX_RUNS:
        found.append(Violation("max_runs", f"must be 0 (no limit) to {MAX_RUNS}"))
    window_s = request.window.seconds if request.HasField("window") else _DEFAULT_WINDOW_S
    if not 1 <= window_s <= MAX_WINDOW_S or request.window.nanos:
        found.append(Violation("window", f"must be 1 to {MAX_WINDOW_S} whole seconds"))
    found += _unfinished_violations(request)
    if found:
        raise invalid_request(found)
    return WantedLimit(request.principal, request.max_runs, window_s, request.max_unfinished_runs)


def _unfinished_violations(request: messages.SetRateLimitRequest) -> list[Violation]:
    """What a run began with is not kept with it, so runs of an API key cannot be counted."""
    if request.max_unfinished_runs and names.is_name("apiKey", request.principal):
        return [Violation("max_unfinished_runs", "is for users and the org, not for an API key")]
    if not 0 <= request.max_unfinished_runs <= MAX_RUNS:
        return [Violation("max_unfinished_runs", f"must be 0 (any number) to {MAX_RUNS}")]
    return []


def _principal_violations(caller: Remit, principal: str) -> list[Violation]:
    if any(names.is_name(kind, principal) for kind in _PRINCIPALS) and (
        names.org_of(principal) == caller.org
    ):
        return []
    whom = f"`{caller.org}`, or a user or an API key of it"
    return [Violation("principal", f"must be the full name of {whom}")]


def _check_page(caller: Remit, request: messages.ListRateLimitsRequest) -> None:
    found = []
    if request.page_size < 0:
        found.append(Violation("page_size", "must not be negative"))
    if request.page_token and _principal_violations(caller, request.page_token):
        found.append(Violation("page_token", "is not one that a page came with"))
    if found:
        raise invalid_request(found)


def _timestamp(time: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(time)
    return stamp
