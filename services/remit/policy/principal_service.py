"""PrincipalService: users, service accounts and teams of an org, and who is disabled."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

import grpc

from remit.api.policy.v1 import principal_pb2, principal_service_pb2, principal_service_pb2_grpc
from remit.idempotency import AdminRecorder, asked_by, request_id_violations
from remit.policy.api_keys import canonical_body
from remit.policy.authority import Authority, require_roles
from remit.policy.credentials import Credentials
from remit.policy.holders import holder_violations, is_of_org
from remit.policy.principal_store import Kind, PrincipalRow, PrincipalStore, TeamRow
from remit.policy.set_messages import timestamp_of
from remit.policy.store import ServiceAccount
from remit.rpc.calls import current_remit
from remit.rpc.errors import Violation, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_DISABLE: Final = "principals.disable"
_ENABLE: Final = "principals.enable"
_LIST: Final = "principals.list"
_CREATE: Final = "principals.create"
_KINDS: Final = {
    principal_pb2.PRINCIPAL_KIND_USER: Kind.USER,
    principal_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT: Kind.SERVICE_ACCOUNT,
}
_ON_THE_WIRE: Final = {kind: number for number, kind in _KINDS.items()}
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200

_Request = (
    principal_service_pb2.DisablePrincipalRequest | principal_service_pb2.EnablePrincipalRequest
)


class PrincipalService(principal_service_pb2_grpc.PrincipalServiceServicer):
    """Administration within the caller's own org."""

    def __init__(
        self,
        *,
        store: PrincipalStore,
        authority: Authority,
        credentials: Credentials,
        recorder: AdminRecorder,
    ) -> None:
        self._store = store
        self._authority = authority
        self._credentials = credentials
        self._recorder = recorder

    async def ListPrincipals(
        self, request: principal_service_pb2.ListPrincipalsRequest, context: Context
    ) -> principal_service_pb2.ListPrincipalsResponse:
        """List who is in the org, by name; a page token is the last name shown."""
        caller = current_remit()
        found = _page_violations(caller, request, "user")
        if request.kind and request.kind not in _KINDS:
            found.append(Violation("kind", "is none that is known"))
        if found:
            raise invalid_request(found)
        await self._authority.require(caller, _LIST, caller.org)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        kind = _KINDS.get(request.kind)
        rows = await self._store.page(caller.org, size + 1, request.page_token, kind)
        response = principal_service_pb2.ListPrincipalsResponse(
            principals=[principal_message(row) for row in rows[:size]]
        )
        if len(rows) > size:
            response.next_page_token = rows[size - 1].name
        return response

    async def ListTeams(
        self, request: principal_service_pb2.ListTeamsRequest, context: Context
    ) -> principal_service_pb2.ListTeamsResponse:
        """List the org's teams by name; a page token is the last name shown."""
        caller = current_remit()
        found = _page_violations(caller, request, "team")
        if found:
            raise invalid_request(found)
        await self._authority.require(caller, _LIST, caller.org)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rows = await self._store.teams(caller.org, size + 1, request.page_token)
        response = principal_service_pb2.ListTeamsResponse(
            teams=[_team_message(row) for row in rows[:size]]
        )
        if len(rows) > size:
            response.next_page_token = rows[size - 1].name
        return response

    async def CreateServiceAccount(
        self, request: principal_service_pb2.CreateServiceAccountRequest, context: Context
    ) -> principal_service_pb2.CreateServiceAccountResponse:
        """Make a service account; a repeated request gets the same one."""
        caller = current_remit()
        _check_account(caller, request)
        await self._authority.require(caller, _CREATE, request.name)
        require_roles(caller, request.roles, _CREATE, request.name)
        account = ServiceAccount(
            request.name, request.display_name, request.team, tuple(sorted(set(request.roles)))
        )
        facts = asdict(account)
        asked = asked_by(
            caller,
            _CREATE,
            request.request_id,
            request.name,
            detail=json.dumps(facts, sort_keys=True),
            body=canonical_body(facts),
        )
        change = await self._store.create_service_account(asked, account, _answer)
        await self._recorder.record(change)
        return principal_service_pb2.CreateServiceAccountResponse(
            principal=principal_pb2.Principal.FromString(change.response)
        )

    async def DisablePrincipal(
        self, request: principal_service_pb2.DisablePrincipalRequest, context: Context
    ) -> principal_service_pb2.DisablePrincipalResponse:
        """Disable a user: here at once, at other replicas' edges within their cache's time."""
        caller = current_remit()
        _check(caller, request)
        if request.name == caller.subject:
            raise invalid_request([Violation("name", "nobody disables themselves")])
        principal = await self._set(caller, request, _DISABLE, disabled=True)
        return principal_service_pb2.DisablePrincipalResponse(principal=principal)

    async def EnablePrincipal(
        self, request: principal_service_pb2.EnablePrincipalRequest, context: Context
    ) -> principal_service_pb2.EnablePrincipalResponse:
        """Enable a user again."""
        caller = current_remit()
        _check(caller, request)
        principal = await self._set(caller, request, _ENABLE, disabled=False)
        return principal_service_pb2.EnablePrincipalResponse(principal=principal)

    async def _set(
        self, caller: Remit, request: _Request, action: str, *, disabled: bool
    ) -> principal_pb2.Principal:
        await self._authority.require(caller, action, request.name)
        asked = asked_by(
            caller,
            action,
            request.request_id,
            request.name,
            detail="{}",
            body=canonical_body({"name": request.name}),
        )
        try:
            change = await self._store.set_disabled(asked, request.name, _answer, disabled=disabled)
        finally:
            # Even if the commit's outcome is unknown: forgetting too much costs a query each.
            self._credentials.forget_all()
        await self._recorder.record(change)
        return principal_pb2.Principal.FromString(change.response)


def principal_message(row: PrincipalRow) -> principal_pb2.Principal:
    """A principal on the wire."""
    return principal_pb2.Principal(
        name=row.name,
        disable_time=timestamp_of(row.disable_time) if row.disable_time else None,
        create_time=timestamp_of(row.create_time),
        teams=row.teams,
        roles=row.roles,
        working_key_count=row.working_key_count,
        last_use_time=timestamp_of(row.last_use_time) if row.last_use_time else None,
        kind=_ON_THE_WIRE[row.kind],
        display_name=row.display_name,
    )


def _team_message(row: TeamRow) -> principal_pb2.Team:
    return principal_pb2.Team(
        name=row.name,
        create_time=timestamp_of(row.create_time) if row.create_time else None,
        member_count=row.member_count,
        working_key_count=row.working_key_count,
        grant_count=row.grant_count,
    )


def _answer(row: PrincipalRow) -> bytes:
    return principal_message(row).SerializeToString()


def _check(caller: Remit, request: _Request) -> None:
    found = request_id_violations(request.request_id)
    if not is_of_org("user", request.name, caller.org):
        found.append(Violation("name", f"must be `{caller.org}/users/{{user}}`"))
    if found:
        raise invalid_request(found)


def _check_account(
    caller: Remit, request: principal_service_pb2.CreateServiceAccountRequest
) -> None:
    found = request_id_violations(request.request_id)
    if not is_of_org("user", request.name, caller.org):
        found.append(Violation("name", f"must be `{caller.org}/users/{{user}}`"))
    found += holder_violations(request.display_name, request.roles)
    if request.team and not is_of_org("team", request.team, caller.org):
        found.append(Violation("team", f"must be `{caller.org}/teams/{{team}}` or empty"))
    if found:
        raise invalid_request(found)


def _page_violations(
    caller: Remit,
    request: principal_service_pb2.ListPrincipalsRequest | principal_service_pb2.ListTeamsRequest,
    kind: str,
) -> list[Violation]:
    found = []
    if request.page_size < 0:
        found.append(Violation("page_size", "must not be negative"))
    if request.page_token and not is_of_org(kind, request.page_token, caller.org):
        found.append(Violation("page_token", "is not one that a page came with"))
    return found
