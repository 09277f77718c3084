"""Admin changes reach the log in the end, whatever else cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from remit import idempotency
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.idempotency import AdminRecorder, AdminRequest, remember
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import RemitVerifier
from tests.conftest import OpenDatabase
from tests.effects.world import NoKeys
from tests.waiting import PATIENCE

PAGE = 2


@dataclass
class Audit(audit_service_pb2_grpc.AuditServiceServicer):
    """Takes events, except about some resources."""

    refused: set[str] = field(default_factory=set)
    taken: list[str] = field(default_factory=list)

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, _context: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        (entry,) = request.entries
        if entry.event.resource in self.refused:
            error = RemitError(error_reason_pb2.ERROR_REASON_INTERNAL, "cannot be appended")
            result = audit_service_pb2.AppendResult(error=error.to_status())
        else:
            self.taken.append(entry.event.resource)
            result = audit_service_pb2.AppendResult(leaf_index=len(self.taken))
        return audit_service_pb2.AppendEventsResponse(results=[result])


def recorder(database: Database, audit: Audit) -> AdminRecorder:
    mesh = MemoryMesh(PATIENCE)
    guard = Guard(
        audience=options_pb2.CALLER_AUDIT,
        verifier=RemitVerifier(NoKeys(), SystemClock()),
        clock=SystemClock(),
        max_in_flight=100,
    )
    mesh.add(guard, audit_service_pb2_grpc.add_AuditServiceServicer_to_server, audit)
    client = mesh.as_caller(options_pb2.CALLER_COST)
    stub = client.stub(audit_service_pb2_grpc.AuditServiceStub)
    return AdminRecorder(database, stub, retry_s=60)


async def a_change(database: Database, number: int) -> None:
    request = AdminRequest(
        subject="orgs/acme/users/alice",
        method="m",
        request_id=f"r{number}",
        org="orgs/acme",
        body_digest=bytes(32),
        action="budgets.set",
        resource=str(number),
        detail="{}",
        trace_id="0" * 32,
    )
    async with database.transaction() as connection:
        await remember(connection, request, b"")


async def test_what_cannot_be_recorded_does_not_keep_the_rest_from_the_log(
    database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "_SWEEP_LIMIT", PAGE)
    cost, audit = await database("cost"), Audit(refused={"0", "1"})  # type: ignore[abstract]
    admin = recorder(cost, audit)
    for number in range(3 * PAGE):
        await a_change(cost, number)
    for _ in range(4):
        await admin.sweep()
    assert audit.taken == ["2", "3", "4", "5"]
    audit.refused.clear()
    for _ in range(2):
        await admin.sweep()
    assert audit.taken[4:] == ["0", "1"]
