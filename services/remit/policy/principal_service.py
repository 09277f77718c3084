"""PrincipalService: users of an org that are disabled, whichever credential they present."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import grpc

from remit import names
from remit.api.policy.v1 import principal_pb2, principal_service_pb2, principal_service_pb2_grpc
from remit.idempotency import AdminRecorder, asked_by, request_id_violations
from remit.policy.api_keys import canonical_body
from remit.policy.authority import Authority
from remit.policy.credentials import Credentials
from remit.policy.set_messages import timestamp_of
from remit.policy.store import PolicyStore
from remit.rpc.calls import current_remit
from remit.rpc.errors import Violation, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_DISABLE: Final = "principals.disable"
_ENABLE: Final = "principals.enable"

_Request = (
    principal_service_pb2.DisablePrincipalRequest | principal_service_pb2.EnablePrincipalRequest
)


class PrincipalService(principal_service_pb2_grpc.PrincipalServiceServicer):
    """Administration within the caller's own org."""

    def __init__(
        self,
        *,
        store: PolicyStore,
        authority: Authority,
        credentials: Credentials,
        recorder: AdminRecorder,
    ) -> None:
        self._store = store
        self._authority = authority
        self._credentials = credentials
        self._recorder = recorder

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
            change = await self._store.set_disabled(
                asked, request.name, _answer(request.name), disabled=disabled
            )
        finally:
            # Even if the commit's outcome is unknown: forgetting too much costs a query each.
            self._credentials.forget_all()
        await self._recorder.record(change)
        return principal_pb2.Principal.FromString(change.response)


def _answer(name: str) -> Callable[[datetime | None], bytes]:
    def render(since: datetime | None) -> bytes:
        stamp = timestamp_of(since) if since else None
        return principal_pb2.Principal(name=name, disable_time=stamp).SerializeToString()

    return render


def _check(caller: Remit, request: _Request) -> None:
    found = request_id_violations(request.request_id)
    if not names.is_name("user", request.name) or names.org_of(request.name) != caller.org:
        found.append(Violation("name", f"must be `{caller.org}/users/{{user}}`"))
    if found:
        raise invalid_request(found)
