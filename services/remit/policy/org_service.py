"""OrgService: the orgs of the mesh, for whoever operates it. Proto in, proto out."""

from __future__ import annotations

from typing import Any, Final

import grpc

from remit import names
from remit.api.policy.v1 import org_service_pb2, org_service_pb2_grpc
from remit.idempotency import AdminRecorder, asked_by, request_id_violations
from remit.policy.api_keys import canonical_body
from remit.policy.authority import Authority
from remit.policy.credentials import Credentials
from remit.policy.org_store import OrgRow, OrgStore
from remit.policy.set_messages import timestamp_of
from remit.rpc.calls import current_remit
from remit.rpc.errors import Violation, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_LIST: Final = "orgs.list"
_DISABLE: Final = "orgs.disable"
_ENABLE: Final = "orgs.enable"
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200

_Request = org_service_pb2.DisableOrgRequest | org_service_pb2.EnableOrgRequest


class OrgService(org_service_pb2_grpc.OrgServiceServicer):
    """Administration of every org, by admins of the one that operates the mesh."""

    def __init__(
        self,
        *,
        store: OrgStore,
        authority: Authority,
        credentials: Credentials,
        recorder: AdminRecorder,
    ) -> None:
        self._store = store
        self._authority = authority
        self._credentials = credentials
        self._recorder = recorder

    async def ListOrgs(
        self, request: org_service_pb2.ListOrgsRequest, context: Context
    ) -> org_service_pb2.ListOrgsResponse:
        """List the orgs by name; a page token is the last name shown."""
        caller = current_remit()
        _check_page(request)
        await self._authority.require_operator(caller, _LIST)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rows = await self._store.page(size + 1, request.page_token)
        response = org_service_pb2.ListOrgsResponse(orgs=[_message(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = rows[size - 1].name
        return response

    async def DisableOrg(
        self, request: org_service_pb2.DisableOrgRequest, context: Context
    ) -> org_service_pb2.DisableOrgResponse:
        """Disable an org: here at once, at other replicas' edges within their cache's time."""
        caller = current_remit()
        _check(request)
        await self._authority.require_operator(caller, _DISABLE)
        if request.name == caller.org:
            fault = f"{caller.org} operates the mesh and cannot be disabled"
            raise invalid_request([Violation("name", fault)])
        org = await self._set(caller, request, _DISABLE, disabled=True)
        return org_service_pb2.DisableOrgResponse(org=org)

    async def EnableOrg(
        self, request: org_service_pb2.EnableOrgRequest, context: Context
    ) -> org_service_pb2.EnableOrgResponse:
        """Enable an org again."""
        caller = current_remit()
        _check(request)
        await self._authority.require_operator(caller, _ENABLE)
        org = await self._set(caller, request, _ENABLE, disabled=False)
        return org_service_pb2.EnableOrgResponse(org=org)

    async def _set(
        self, caller: Remit, request: _Request, action: str, *, disabled: bool
    ) -> org_service_pb2.Org:
        body = canonical_body({"name": request.name})
        asked = asked_by(caller, action, request.request_id, request.name, detail="{}", body=body)
        try:
            change = await self._store.set_disabled(asked, request.name, _answer, disabled=disabled)
        finally:
            # Even if the commit's outcome is unknown: forgetting too much costs a query each.
            self._credentials.forget_all()
        await self._recorder.record(change)
        return org_service_pb2.Org.FromString(change.response)


def _message(row: OrgRow) -> org_service_pb2.Org:
    return org_service_pb2.Org(
        name=row.name,
        create_time=timestamp_of(row.create_time),
        disable_time=timestamp_of(row.disable_time) if row.disable_time else None,
    )


def _answer(row: OrgRow) -> bytes:
    return _message(row).SerializeToString()


def _check(request: _Request) -> None:
    found = request_id_violations(request.request_id)
    if not names.is_name("org", request.name):
        found.append(Violation("name", "must be `orgs/{org}`"))
    if found:
        raise invalid_request(found)


def _check_page(request: org_service_pb2.ListOrgsRequest) -> None:
    found = []
    if request.page_size < 0:
        found.append(Violation("page_size", "must not be negative"))
    if request.page_token and not names.is_name("org", request.page_token):
        found.append(Violation("page_token", "is not one that a page came with"))
    if found:
        raise invalid_request(found)
