"""GrantService: tools granted to users, teams and agents of an org. Proto in, proto out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import grpc

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_RESOURCE_NOT_FOUND
from remit.api.policy.v1 import grant_pb2, grant_service_pb2, grant_service_pb2_grpc, permission_pb2
from remit.idempotency import (
    AdminChange,
    AdminRecorder,
    AdminRequest,
    asked_by,
    request_id_violations,
)
from remit.policy.authority import Authority, denied
from remit.policy.epochs import Policies
from remit.policy.grant_store import GrantRow, GrantStore, NewGrant
from remit.policy.grants import render
from remit.policy.set_messages import timestamp_of
from remit.policy.store import PolicyStore
from remit.rpc.calls import current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.ids import IdSource
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_CREATE: Final = "grants.create"
_REVOKE: Final = "grants.revoke"
_LIST: Final = "grants.list"
_ADMIN: Final = "admin"
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200
_LATEST: Final = datetime(9999, 12, 31, tzinfo=UTC)
_NO_GRANTEE: Final = "must be a user or a team of {}, or `agents/{{agent}}`"


class GrantService(grant_service_pb2_grpc.GrantServiceServicer):
    """Grants within the caller's own org."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        *,
        store: PolicyStore,
        grants: GrantStore,
        policies: Policies,
        authority: Authority,
        recorder: AdminRecorder,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._store = store
        self._grants = grants
        self._policies = policies
        self._authority = authority
        self._recorder = recorder
        self._clock = clock
        self._ids = ids

    async def GrantToolAccess(
        self, request: grant_service_pb2.GrantToolAccessRequest, context: Context
    ) -> grant_service_pb2.GrantToolAccessResponse:
        """Grant a tool or a class of tools; the next question is decided with it."""
        caller = current_remit()
        found = _grant_violations(caller, request)
        if found:
            raise invalid_request(found)
        await self._authority.require(caller, _CREATE, caller.org)
        if _ADMIN not in caller.roles:
            # Nobody gives away what they do not have, whatever the policies say.
            raise denied(caller, _CREATE, caller.org, "only an admin grants tools")
        asked = _admin_request(
            caller, _CREATE, request.request_id, request.principal, _facts(request)
        )
        if await self._store.known_change(asked) is None:
            self._check_expiry(request)
        new = self._new_grant(caller, request)
        change = await self._grants.create(asked, new, _answer)
        await self._took_effect(change)
        return grant_service_pb2.GrantToolAccessResponse(grant=_answered(change))

    async def RevokeToolAccess(
        self, request: grant_service_pb2.RevokeToolAccessRequest, context: Context
    ) -> grant_service_pb2.RevokeToolAccessResponse:
        """Revoke a grant; the next question is decided without it."""
        caller = current_remit()
        grant_id = _revocable(caller, request)
        await self._authority.require(caller, _REVOKE, caller.org)
        asked = _admin_request(caller, _REVOKE, request.request_id, request.name, {})
        change = await self._grants.revoke(asked, grant_id, _answer)
        await self._took_effect(change)
        return grant_service_pb2.RevokeToolAccessResponse(grant=_answered(change))

    async def ListToolGrants(
        self, request: grant_service_pb2.ListToolGrantsRequest, context: Context
    ) -> grant_service_pb2.ListToolGrantsResponse:
        """List the org's grants, newest first; a page token is the id of the last one shown."""
        caller = current_remit()
        found = _page_violations(request)
        if request.principal and not _is_grantee(caller, request.principal):
            found.append(Violation("principal", _NO_GRANTEE.format(caller.org)))
        if found:
            raise invalid_request(found)
        await self._authority.require(caller, _LIST, caller.org)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rows = await self._grants.list(caller.org, request.principal, size + 1, request.page_token)
        response = grant_service_pb2.ListToolGrantsResponse(
            grants=[grant_message(row) for row in rows[:size]]
        )
        if len(rows) > size:
            response.next_page_token = str(rows[size - 1].grant_id)
        return response

    def _check_expiry(self, request: grant_service_pb2.GrantToolAccessRequest) -> None:
        if request.HasField("expire_time") and _expiry(request) <= self._clock.now():
            raise invalid_request([Violation("expire_time", "must be in the future")])

    def _new_grant(
        self, caller: Remit, request: grant_service_pb2.GrantToolAccessRequest
    ) -> NewGrant:
        grant_id = self._ids.uuid7()
        expire_time = _expiry(request) if request.HasField("expire_time") else None
        policy = render(
            name=names.grant_name(caller.org, grant_id),
            org=caller.org,
            principal=request.principal,
            tool=request.tool,
            permission_class=request.permission_class,
            expire_time=expire_time,
            author=caller.subject,
        )
        return NewGrant(
            grant_id,
            request.principal,
            request.tool,
            request.permission_class,
            policy,
            caller.subject,
            expire_time,
        )

    async def _took_effect(self, change: AdminChange) -> None:
        """Follow the new epoch here at once, and record it before it is acknowledged."""
        await self._policies.refresh()
        await self._recorder.record(change)


def grant_message(row: GrantRow) -> grant_pb2.ToolGrant:
    """A grant on the wire."""
    return grant_pb2.ToolGrant(
        name=row.name,
        principal=row.principal,
        tool=row.tool,
        permission_class=permission_pb2.PermissionClass.ValueType(row.permission_class),
        author=row.author,
        create_time=timestamp_of(row.create_time),
        expire_time=timestamp_of(row.expire_time) if row.expire_time else None,
        revoke_time=timestamp_of(row.revoke_time) if row.revoke_time else None,
        policy=row.policy,
        policy_epoch=row.epoch,
    )


def _answer(row: GrantRow) -> bytes:
    return grant_message(row).SerializeToString()


def _answered(change: AdminChange) -> grant_pb2.ToolGrant:
    return grant_pb2.ToolGrant.FromString(change.response)


def _facts(request: grant_service_pb2.GrantToolAccessRequest) -> dict[str, object]:
    return {
        "principal": request.principal,
        "tool": request.tool,
        "permission_class": int(request.permission_class),
        "expire_time": (
            request.expire_time.ToJsonString() if request.HasField("expire_time") else None
        ),
    }


def _admin_request(
    caller: Remit, method: str, request_id: str, resource: str, facts: Mapping[str, object]
) -> AdminRequest:
    detail = json.dumps(dict(facts), sort_keys=True)
    body = json.dumps({"name": resource, **facts}, sort_keys=True).encode()
    return asked_by(caller, method, request_id, resource, detail=detail, body=body)


def _grant_violations(
    caller: Remit, request: grant_service_pb2.GrantToolAccessRequest
) -> list[Violation]:
    found = request_id_violations(request.request_id)
    if not _is_grantee(caller, request.principal):
        found.append(Violation("principal", _NO_GRANTEE.format(caller.org)))
    if bool(request.tool) == bool(request.permission_class):
        found.append(Violation("tool", "state a tool or a permission class, and not both"))
    if request.tool and not names.is_name("tool", request.tool):
        found.append(Violation("tool", "must be `tools/{tool}`"))
    if request.permission_class not in permission_pb2.PermissionClass.values():
        found.append(Violation("permission_class", "is none that is known"))
    if request.HasField("expire_time"):
        found += _time_violations(request)
    return found


def _is_grantee(caller: Remit, principal: str) -> bool:
    if names.is_name("agent", principal):
        return True
    of_an_org = names.is_name("user", principal) or names.is_name("team", principal)
    return of_an_org and names.org_of(principal) == caller.org


def _time_violations(request: grant_service_pb2.GrantToolAccessRequest) -> list[Violation]:
    try:
        sound = _expiry(request) < _LATEST
    except (ValueError, OverflowError):
        sound = False
    return [] if sound else [Violation("expire_time", "is no time before the year 9999")]


def _expiry(request: grant_service_pb2.GrantToolAccessRequest) -> datetime:
    return request.expire_time.ToDatetime(UTC)


def _revocable(caller: Remit, request: grant_service_pb2.RevokeToolAccessRequest) -> str:
    """Return the grant's id. Another org's grant does not exist for this caller."""
    found = request_id_violations(request.request_id)
    if not names.is_name("grant", request.name):
        found.append(Violation("name", "must be `orgs/{org}/grants/{grant}`"))
    if found:
        raise invalid_request(found)
    if names.org_of(request.name) != caller.org:
        raise RemitError(ERROR_REASON_RESOURCE_NOT_FOUND, f"{request.name} does not exist")
    return names.parse("grant", request.name)[1]


def _page_violations(request: grant_service_pb2.ListToolGrantsRequest) -> list[Violation]:
    found = []
    if request.page_size < 0:
        found.append(Violation("page_size", "must not be negative"))
    try:
        UUID(request.page_token or "0" * 32)
    except ValueError:
        found.append(Violation("page_token", "is not one that a page came with"))
    return found
