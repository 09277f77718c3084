"""PrivacyService: erases subjects of the caller's org. Proto in, proto out; see `erasing`."""

from __future__ import annotations

from typing import Any

import grpc

from remit import names
from remit.api.audit.v1 import privacy_service_pb2, privacy_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.erasing import ACTION, Eraser, ErasureRequest
from remit.idempotency import request_id_violations
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit


class PrivacyService(privacy_service_pb2_grpc.PrivacyServiceServicer):
    """Erases subjects."""

    def __init__(self, eraser: Eraser, clock: Clock) -> None:
        self._eraser = eraser
        self._clock = clock

    async def EraseSubject(
        self,
        request: privacy_service_pb2.EraseSubjectRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> privacy_service_pb2.EraseSubjectResponse:
        """Destroy the key of a subject; see the contract."""
        caller = current_remit()
        _check(caller, request)
        erased = await self._eraser.erase(
            ErasureRequest(
                caller=caller.subject,
                subject=request.subject,
                request_id=request.request_id,
                trace_id=current_call().trace_id,
                time=self._clock.now(),
            )
        )
        erasure = privacy_service_pb2.Erasure(
            resource=erased.resource, leaf_index=erased.leaf_index
        )
        erasure.erase_time.FromDatetime(erased.erase_time)
        erasure.forget_time.FromDatetime(erased.forget_time)
        return privacy_service_pb2.EraseSubjectResponse(erasure=erasure)


def _check(caller: Remit, request: privacy_service_pb2.EraseSubjectRequest) -> None:
    violations = request_id_violations(request.request_id)
    if not names.is_name("user", request.subject):
        fault = "must be a user, such as `orgs/acme/users/alice`"
        violations.append(Violation("subject", fault))
    if violations:
        raise invalid_request(violations)
    if names.org_of(request.subject) != caller.org:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
            f"{caller.subject} erases nobody outside {caller.org}",
            metadata={"permission": ACTION, "resource": request.subject},
        )
