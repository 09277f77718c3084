"""Changes are in the log before they are made: a run stopped, a conversation deleted.

The entry comes first and the change after it: while the log takes nothing, nothing is changed, and
no effect starts either that a cancellation would have to stop. The entry therefore has no outcome:
it says who asked for what; how it ended stands in the run's journal and in what its caller got.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

CANCEL: Final = "runs.cancel"
PAUSE: Final = "runs.pause"
RESUME: Final = "runs.resume"
FORK: Final = "runs.fork"
DELETE_CONVERSATION: Final = "conversations.delete"


class AdminLog:
    """Appends ADMIN events of the calls in progress."""

    def __init__(self, audit: audit_service_pb2_grpc.AuditServiceStub, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock

    async def asked(
        self, action: str, resource: str, request_id: str, detail: Mapping[str, object]
    ) -> None:
        """Records what the caller asks for; a repetition leaves nothing more.

        Raises:
            RemitError: it cannot be recorded, so it must not be done.

        """
        caller = current_remit()
        named = f"{caller.subject}\0{action}\0{request_id}\0{resource}"
        event = event_pb2.Event(
            event_id=f"admin-{hashlib.sha256(named.encode()).hexdigest()}",
            kind=event_pb2.EVENT_KIND_ADMIN,
            org=caller.org,
            subject=caller.subject,
            action=action,
            resource=resource,
            run=resource if resource.startswith("runs/") else "",
            trace_id=current_call().trace_id,
            detail_json=json.dumps({**detail, "request_id": request_id}, sort_keys=True),
        )
        event.event_time.FromDatetime(self._clock.now())
        response = await self._audit.AppendEvents(
            audit_service_pb2.AppendEventsRequest(entries=[audit_service_pb2.Entry(event=event)])
        )
        [result] = response.results
        if result.WhichOneof("result") != "leaf_index":
            error = RemitError.from_status(result.error)
            # The same request was recorded before, at another time and in another trace.
            if error.reason != reasons.ERROR_REASON_KEY_REUSED:
                raise error
