"""Admin changes reach the audit log before anybody is told that they happened.

The change and the note that it is not yet recorded commit together; then the event is appended;
only then is the caller answered. If audit does not answer, the caller gets an error and may repeat
the request; whether it does or not, the sweep appends the event later. The event is made from the
stored row alone, so every attempt sends the same one and the log keeps one.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from google.protobuf import timestamp_pb2

from remit import telemetry
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.policy.store import AdminChange, PolicyStore
from remit.rpc.errors import RemitError

_SWEEP_LIMIT: Final = 64

log = telemetry.logger(__name__)


class AdminRecorder:
    """Appends admin changes to the log."""

    def __init__(
        self, store: PolicyStore, audit: audit_service_pb2_grpc.AuditServiceStub, *, retry_s: float
    ) -> None:
        self._store = store
        self._audit = audit
        self._retry_s = retry_s

    async def record(self, change: AdminChange) -> None:
        """Append the change's event and note it. Repeating it changes nothing.

        Raises:
            RemitError: as AppendEvents does; the change is then not acknowledged.

        """
        request = audit_service_pb2.AppendEventsRequest(
            entries=[audit_service_pb2.Entry(event=event_of(change))]
        )
        response = await self._audit.AppendEvents(request)
        result = response.results[0]
        if result.HasField("error"):
            raise RemitError.from_status(result.error)
        await self._store.mark_recorded(change)

    async def sweep(self) -> None:
        """Record what a crash or an absent audit service left behind; runs until cancelled."""
        while True:
            try:
                for change in await self._store.unrecorded(_SWEEP_LIMIT):
                    await self.record(change)
            except RemitError as error:
                log.warning("admin_change_unrecorded", reason=error.reason_name)
            await asyncio.sleep(self._retry_s)


def event_of(change: AdminChange) -> event_pb2.Event:
    """Build the ADMIN event of a change: a function of the stored row and nothing else."""
    request = change.request
    named = f"{request.subject}\0{request.method}\0{request.request_id}".encode()
    event_time = timestamp_pb2.Timestamp()
    event_time.FromDatetime(change.create_time)
    return event_pb2.Event(
        event_id=f"admin-{hashlib.sha256(named).hexdigest()}",
        event_time=event_time,
        kind=event_pb2.EVENT_KIND_ADMIN,
        org=request.org,
        subject=request.subject,
        action=request.action,
        resource=request.resource,
        outcome=event_pb2.OUTCOME_SUCCEEDED,
        trace_id=request.trace_id,
        detail_json=request.detail,
    )
