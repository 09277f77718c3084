"""PolicyAdminService: API keys and the policies in force. Proto in, proto out.

Whether the caller may is asked of the rules again, past the edge (authority.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from remit import names
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_RESOURCE_NOT_FOUND,
)
from remit.api.policy.v1 import (
    api_key_pb2,
    policy_admin_service_pb2,
    policy_admin_service_pb2_grpc,
)
from remit.idempotency import (
    AdminChange,
    AdminRecorder,
    AdminRequest,
    asked_by,
    request_id_violations,
)
from remit.policy.api_keys import Pepper, PresentedKey, canonical_body, canonical_request
from remit.policy.authority import Authority, require_roles
from remit.policy.credentials import Credentials
from remit.policy.holders import holder_violations, is_of_org
from remit.policy.key_changes import ROTATE, Rotation, check_rotation, scope_violations
from remit.policy.service_accounts import check_maker, fitted
from remit.policy.set_messages import file_messages, timestamp_of, version_message
from remit.policy.set_store import SetStore
from remit.policy.store import ApiKeyRow, NewApiKey, PolicyStore, ServiceAccount
from remit.rpc.calls import current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200
_KEY_ID: Final = re.compile(r"[a-z2-7]{16}")
_CREATE: Final = "keys.create"
_LIST: Final = "keys.list"
_REVOKE: Final = "keys.revoke"
_READ: Final = "policies.read"


class PolicyAdminService(policy_admin_service_pb2_grpc.PolicyAdminServiceServicer):
    """Administration within the caller's own org."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        *,
        store: PolicyStore,
        pepper: Pepper,
        sets: SetStore,
        authority: Authority,
        credentials: Credentials,
        recorder: AdminRecorder,
        clock: Clock,
    ) -> None:
        self._store = store
        self._pepper = pepper
        self._sets = sets
        self._authority = authority
        self._credentials = credentials
        self._recorder = recorder
        self._clock = clock

    async def CreateApiKey(
        self, request: policy_admin_service_pb2.CreateApiKeyRequest, context: Context
    ) -> policy_admin_service_pb2.CreateApiKeyResponse:
        """Make an API key; a repeated request gets the same one with the same secret."""
        caller = current_remit()
        _check_create(caller, request)
        await self._authority.require(caller, _CREATE, request.user)
        require_roles(caller, request.roles, _CREATE, request.user)
        asked, key = self._derived(caller, request)
        if await self._store.known_change(asked) is None:
            _check_expiry(request, self._clock.now())
        new = self._new_key(request, key)

        def make(account: ServiceAccount | None) -> NewApiKey:
            check_maker(caller, _CREATE, request.user, for_account=account is not None)
            return fitted(new, account)

        change = await self._store.create_api_key(asked, request.user, make, _answer)
        await self._recorder.record(change)
        return policy_admin_service_pb2.CreateApiKeyResponse(
            api_key=_answered(change), secret=key.text
        )

    async def ListApiKeys(
        self, request: policy_admin_service_pb2.ListApiKeysRequest, context: Context
    ) -> policy_admin_service_pb2.ListApiKeysResponse:
        """List the org's keys, newest first; a page token is the id of the last key shown."""
        caller = current_remit()
        _check_page(request)
        await self._authority.require(caller, _LIST, caller.org)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rows = await self._store.list_api_keys(caller.org, size + 1, request.page_token)
        response = policy_admin_service_pb2.ListApiKeysResponse(
            api_keys=[api_key_of(row) for row in rows[:size]]
        )
        if len(rows) > size:
            response.next_page_token = rows[size - 1].key_id
        return response

    async def RevokeApiKey(
        self, request: policy_admin_service_pb2.RevokeApiKeyRequest, context: Context
    ) -> policy_admin_service_pb2.RevokeApiKeyResponse:
        """Revoke a key: here at once, on other replicas within their cache's time."""
        caller = current_remit()
        key_id = _revocable(caller, request)
        await self._authority.require(caller, _REVOKE, request.name)
        asked = _admin_request(caller, _REVOKE, request.request_id, request.name, {})
        try:
            change = await self._store.revoke_api_key(asked, key_id, _answer)
        finally:
            # Even if the commit's outcome is unknown: forgetting too much costs one query.
            self._credentials.forget(key_id)
        await self._recorder.record(change)
        return policy_admin_service_pb2.RevokeApiKeyResponse(api_key=_answered(change))

    async def RotateApiKey(
        self, request: policy_admin_service_pb2.RotateApiKeyRequest, context: Context
    ) -> policy_admin_service_pb2.RotateApiKeyResponse:
        """Replace a key; a repeated request gets the same one with the same secret."""
        caller = current_remit()
        check_rotation(request)
        key_id = _own_key(caller, request.name)
        await self._authority.require(caller, ROTATE, request.name)
        rotation = Rotation(self._pepper, caller, request)
        try:
            change = await self._store.rotate_api_key(
                rotation.asked, key_id, rotation.replacement, rotation.overlap, _rotated
            )
        finally:
            self._credentials.forget(key_id)  # it ends sooner now
        await self._recorder.record(change)
        response = policy_admin_service_pb2.RotateApiKeyResponse.FromString(change.response)
        response.secret = rotation.key.text
        return response

    async def GetPolicySet(
        self, request: policy_admin_service_pb2.GetPolicySetRequest, context: Context
    ) -> policy_admin_service_pb2.GetPolicySetResponse:
        """Return a version of the policies, as the database has it now."""
        caller = current_remit()
        if request.version < 0:
            raise invalid_request([Violation("version", "must not be negative")])
        await self._authority.require(caller, _READ, caller.org)
        newest = await self._sets.in_force()
        shown = await self._sets.version(request.version) if request.version else newest.stored
        if shown is None:
            raise RemitError(
                ERROR_REASON_RESOURCE_NOT_FOUND,
                f"there is no version {request.version} of the policies",
            )
        return policy_admin_service_pb2.GetPolicySetResponse(
            policies=shown.source.text,
            schema=shown.source.schema,
            policy_epoch=newest.epoch,
            create_time=timestamp_of(shown.facts.create_time),
            files=file_messages(shown.source.files),
            policy_set=version_message(shown.facts),
        )

    def _derived(
        self, caller: Remit, request: policy_admin_service_pb2.CreateApiKeyRequest
    ) -> tuple[AdminRequest, PresentedKey]:
        body = {
            "display_name": request.display_name,
            "user": request.user,
            "team": request.team,
            "roles": sorted(set(request.roles)),
            "expire_time": request.expire_time.ToJsonString() if _expires(request) else None,
        }
        if request.scopes:  # a request without them stays what it was before there were any
            body["scopes"] = sorted(set(request.scopes))
        key = self._pepper.derive(
            canonical_request(_CREATE, caller.subject, request.request_id, body)
        )
        name = f"{caller.org}/apiKeys/{key.key_id}"
        return _admin_request(caller, _CREATE, request.request_id, name, body), key

    def _new_key(
        self, request: policy_admin_service_pb2.CreateApiKeyRequest, key: PresentedKey
    ) -> NewApiKey:
        return NewApiKey(
            key_id=key.key_id,
            subject=request.user,
            team=request.team,
            display_name=request.display_name,
            roles=tuple(sorted(set(request.roles))),
            digest=self._pepper.digest(key),
            pepper_id=self._pepper.fingerprint,
            expire_time=request.expire_time.ToDatetime(UTC) if _expires(request) else None,
            scopes=tuple(sorted(set(request.scopes))),
        )


def api_key_of(row: ApiKeyRow) -> api_key_pb2.ApiKey:
    """The key on the wire, without its secret."""
    return api_key_pb2.ApiKey(
        name=row.name,
        display_name=row.display_name,
        user=row.subject,
        team=row.team,
        roles=row.roles,
        create_time=timestamp_of(row.create_time),
        expire_time=timestamp_of(row.expire_time) if row.expire_time else None,
        revoke_time=timestamp_of(row.revoke_time) if row.revoke_time else None,
        last_use_time=timestamp_of(row.last_use_time) if row.last_use_time else None,
        scopes=row.scopes,
        replaced_by=f"{row.org}/apiKeys/{row.replaced_by}" if row.replaced_by else "",
    )


def _answer(row: ApiKeyRow) -> bytes:
    """Render a change's answer as it is kept: the key, never its secret."""
    return api_key_of(row).SerializeToString()


def _rotated(made: ApiKeyRow, old: ApiKeyRow) -> bytes:
    """Render the answer of a rotation as it is kept: both keys, no secret."""
    return policy_admin_service_pb2.RotateApiKeyResponse(
        api_key=api_key_of(made), replaced=api_key_of(old)
    ).SerializeToString()


def _answered(change: AdminChange) -> api_key_pb2.ApiKey:
    """Read the answer of a change, which every repetition of its request gets."""
    return api_key_pb2.ApiKey.FromString(change.response)


def _admin_request(
    caller: Remit, action: str, request_id: str, resource: str, body: Mapping[str, object]
) -> AdminRequest:
    detail = json.dumps(dict(body), sort_keys=True)
    canonical = canonical_body({"name": resource, **body})
    return asked_by(caller, action, request_id, resource, detail=detail, body=canonical)


def _check_create(caller: Remit, request: policy_admin_service_pb2.CreateApiKeyRequest) -> None:
    found = request_id_violations(request.request_id)
    found += holder_violations(request.display_name, request.roles)
    if not is_of_org("user", request.user, caller.org):
        found.append(Violation("user", f"must be `{caller.org}/users/{{user}}`"))
    if request.team and not is_of_org("team", request.team, caller.org):
        found.append(Violation("team", f"must be `{caller.org}/teams/{{team}}` or empty"))
    found += scope_violations(request.scopes)
    if found:
        raise invalid_request(found)


def _check_expiry(request: policy_admin_service_pb2.CreateApiKeyRequest, now: datetime) -> None:
    if _expires(request) and request.expire_time.ToDatetime(UTC) <= now:
        raise invalid_request([Violation("expire_time", "must be in the future")])


def _check_page(request: policy_admin_service_pb2.ListApiKeysRequest) -> None:
    found = []
    if request.page_size < 0:
        found.append(Violation("page_size", "must not be negative"))
    if request.page_token and not _KEY_ID.fullmatch(request.page_token):
        found.append(Violation("page_token", "is not one that a page came with"))
    if found:
        raise invalid_request(found)


def _revocable(caller: Remit, request: policy_admin_service_pb2.RevokeApiKeyRequest) -> str:
    """Return the key id. Another org's key does not exist for this caller."""
    found = request_id_violations(request.request_id)
    if not names.is_name("apiKey", request.name):
        found.append(Violation("name", "must be `orgs/{org}/apiKeys/{key}`"))
    if found:
        raise invalid_request(found)
    return _own_key(caller, request.name)


def _own_key(caller: Remit, name: str) -> str:
    if names.org_of(name) != caller.org:
        raise RemitError(ERROR_REASON_RESOURCE_NOT_FOUND, f"{name} does not exist")
    return names.parse("apiKey", name)[1]


def _expires(request: policy_admin_service_pb2.CreateApiKeyRequest) -> bool:
    return request.HasField("expire_time")
