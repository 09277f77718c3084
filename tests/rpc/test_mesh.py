"""Clients: how long a call may take."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from remit.api.options.v1 import options_pb2
from remit.rpc.guard import Guard
from remit.rpc.mesh import known_contract, timeout_s
from remit.rpc.remits import RemitVerifier
from tests.rpc.test_remits import Keys

SERVED = known_contract("/remit.api.cost.v1.CostService/ReserveBudget")
CALLED = known_contract("/remit.api.audit.v1.AuditService/AppendEvents")
CLOSING = known_contract("/remit.api.audit.v1.AuditService/AppendOutcomes")


class BootClock:
    """A clock that began a second ago, unlike the machine's."""

    seconds = 1.0

    def now(self) -> datetime:
        return datetime(2026, 11, 23, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds


async def test_a_call_gets_what_is_left_of_the_call_being_served_by_its_own_clock() -> None:
    clock = BootClock()
    guard = Guard(
        audience=options_pb2.CALLER_COST,
        verifier=RemitVerifier(Keys(), clock),
        clock=clock,
        max_in_flight=10,
    )
    async with guard.serve(SERVED, options_pb2.CALLER_TOOLS, (), 1.0):
        assert timeout_s(CALLED, None) == pytest.approx(0.95)
        clock.seconds += 0.5
        assert timeout_s(CALLED, None) == pytest.approx(0.45)
        assert timeout_s(CALLED, 0.1) == pytest.approx(0.1)
        assert timeout_s(CLOSING, None) == CLOSING.deadline_s
    assert timeout_s(CALLED, None) == CALLED.deadline_s
