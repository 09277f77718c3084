"""AuditService: what other services append. `admission` judges entries, `log` stores them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.audit import admission
from remit.audit.admission import Limits
from remit.audit.log import AuditLog
from remit.rpc.calls import current_call
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.parties import caller_label
from remit.rpc.remits import RemitVerifier

Entries = Sequence[audit_service_pb2.Entry]
Results = list[audit_service_pb2.AppendResult]


class AuditService(audit_service_pb2_grpc.AuditServiceServicer):
    """Appends events, each on its own."""

    def __init__(self, log: AuditLog, remits: RemitVerifier, limits: Limits, clock: Clock) -> None:
        self._log = log
        self._remits = remits
        self._limits = limits
        self._clock = clock

    async def AppendEvents(
        self,
        request: audit_service_pb2.AppendEventsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_service_pb2.AppendEventsResponse:
        """Append events; see the contract."""
        results = await self._append(request.entries)
        return audit_service_pb2.AppendEventsResponse(results=results)

    async def AppendOutcomes(
        self,
        request: audit_service_pb2.AppendOutcomesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_service_pb2.AppendOutcomesResponse:
        """Append outcomes; see the contract."""
        results = await self._append(request.entries, only=event_pb2.EVENT_KIND_OUTCOME)
        return audit_service_pb2.AppendOutcomesResponse(results=results)

    async def _append(
        self, entries: Entries, only: event_pb2.EventKind.ValueType | None = None
    ) -> Results:
        admission.check_count(len(entries), self._limits)
        caller = current_call().caller
        faults = await asyncio.gather(*(self._fault(entry, caller, only) for entry in entries))
        accepted = [e.event for e, fault in zip(entries, faults, strict=True) if fault is None]
        places = iter(await self._log.append(accepted, caller_label(caller)))
        return [_result(fault or next(places)) for fault in faults]

    async def _fault(
        self,
        entry: audit_service_pb2.Entry,
        caller: Caller.ValueType,
        only: event_pb2.EventKind.ValueType | None,
    ) -> RemitError | None:
        """Return why an entry cannot be appended, or None."""
        try:
            if only is not None and entry.event.kind != only:
                raise invalid_request([Violation("event.kind", "is not the kind of this RPC")])
            admission.check_entry(entry, caller, self._clock.now(), self._limits)
            if entry.event.kind == event_pb2.EVENT_KIND_INTENT:
                await self._check_remit(entry, caller)
        except RemitError as error:
            return error
        return None

    async def _check_remit(self, entry: audit_service_pb2.Entry, caller: Caller.ValueType) -> None:
        remit = await self._remits.verify(entry.remit, audience=options_pb2.CALLER_AUDIT)
        admission.check_remit(entry.event, remit, caller)


def _result(place: int | RemitError) -> audit_service_pb2.AppendResult:
    if isinstance(place, RemitError):
        return audit_service_pb2.AppendResult(error=place.to_status())
    return audit_service_pb2.AppendResult(leaf_index=place)
