"""Who read what policy keeps is in the log before anything is read (ADR 32)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource


class ReadLog:
    """Appends READ events of the calls in progress."""

    def __init__(
        self, audit: audit_service_pb2_grpc.AuditServiceStub, clock: Clock, ids: IdSource
    ) -> None:
        self._audit = audit
        self._clock = clock
        self._ids = ids

    async def record(self, action: str, detail: Mapping[str, object]) -> None:
        """Record that the caller reads; each call leaves an entry of its own.

        Raises:
            RemitError: it cannot be recorded, so nothing may be read.

        """
        caller = current_remit()
        event = event_pb2.Event(
            event_id=f"read-{self._ids.uuid7()}",
            kind=event_pb2.EVENT_KIND_READ,
            org=caller.org,
            subject=caller.subject,
            action=action,
            resource=caller.org,
            outcome=event_pb2.OUTCOME_SUCCEEDED,
            trace_id=current_call().trace_id,
            detail_json=json.dumps(dict(detail), sort_keys=True),
        )
        event.event_time.FromDatetime(self._clock.now())
        response = await self._audit.AppendEvents(
            audit_service_pb2.AppendEventsRequest(entries=[audit_service_pb2.Entry(event=event)])
        )
        [result] = response.results
        if result.WhichOneof("result") != "leaf_index":
            raise RemitError.from_status(result.error)
