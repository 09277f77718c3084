"""Cost beside the claims of both enforcement services, whose rows a test may change by hand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg

from remit.api.cost.v1 import cost_report_service_pb2, cost_service_pb2, ledger_difference_pb2
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.api.usage.v1 import usage_pb2
from remit.cost.hold_watch import HoldWatch
from remit.cost.settings import CostSettings
from remit.effects.attempts import AttemptReader
from remit.effects.settings import EffectSettings
from remit.postgres import Database
from remit.rpc.calls import remit_token
from tests.conftest import OpenDatabase
from tests.cost.services import ALICE, CALCULATOR_NANOS, CostWorld, claim_of

_INSERT_CLAIM = """
    INSERT INTO effect_claims (claim, org, principal, method, key, body_digest, attempt)
    VALUES ($1, $2, 'alice', 'tools.call', $3, sha256('body'), 1)
"""
_INSERT_ATTEMPT = """
    INSERT INTO effect_attempts (claim, attempt, state, owner, lease_expires, subject, run, action,
        resource, trace_id, decision_id, reservation, intent_leaf, hold_nanos, outcome, used,
        cost_nanos, closed_time)
    VALUES ($1, 1, $2, 'one', clock_timestamp() + interval '1 hour', 'alice', '', 'tools.call',
        'tools/calculator', '', 'decision', 'reservation', 1, $3, $4, $5, $6,
        CASE WHEN $7 THEN clock_timestamp() END)
"""
_ENDS = {"DONE": "SUCCEEDED", "CLOSED": "SUCCEEDED", "REFUSED": "REFUSED", "IN_DOUBT": "IN_DOUBT"}

Step = cost_report_service_pb2.CheckLedgerResponse
Kind = ledger_difference_pb2.LedgerDifference.Kind


class InferenceAttempts(inference_service_pb2_grpc.InferenceServiceServicer):
    """The two questions that cost asks of inference."""

    def __init__(self, reader: AttemptReader) -> None:
        self._reader = reader

    async def BatchGetAttempts(
        self, request: inference_service_pb2.BatchGetAttemptsRequest, context: Any
    ) -> inference_service_pb2.BatchGetAttemptsResponse:
        attempts = await self._reader.these(request.keys)
        bound = self._reader.closing_bound
        return inference_service_pb2.BatchGetAttemptsResponse(
            attempts=attempts, closing_bound=bound
        )

    async def ListAttempts(
        self, request: inference_service_pb2.ListAttemptsRequest, context: Any
    ) -> inference_service_pb2.ListAttemptsResponse:
        page = await self._reader.between(request.after, request.through, request.page_size)
        bound = self._reader.closing_bound
        return inference_service_pb2.ListAttemptsResponse(
            attempts=page.attempts,
            has_more=page.has_more,
            closing_bound=bound,
            read_time=page.read_time,
        )


class ToolAttempts(tool_service_pb2_grpc.ToolServiceServicer):
    """The two questions that cost asks of tools."""

    def __init__(self, reader: AttemptReader) -> None:
        self._reader = reader

    async def BatchGetAttempts(
        self, request: tool_service_pb2.BatchGetAttemptsRequest, context: Any
    ) -> tool_service_pb2.BatchGetAttemptsResponse:
        attempts = await self._reader.these(request.keys)
        bound = self._reader.closing_bound
        return tool_service_pb2.BatchGetAttemptsResponse(attempts=attempts, closing_bound=bound)

    async def ListAttempts(
        self, request: tool_service_pb2.ListAttemptsRequest, context: Any
    ) -> tool_service_pb2.ListAttemptsResponse:
        page = await self._reader.between(request.after, request.through, request.page_size)
        bound = self._reader.closing_bound
        return tool_service_pb2.ListAttemptsResponse(
            attempts=page.attempts,
            has_more=page.has_more,
            closing_bound=bound,
            read_time=page.read_time,
        )


class ClaimWorld(CostWorld):
    """One replica of cost, and the claims that its holds belong to."""

    def __init__(
        self, database: Database, inference: Database, tools: Database, settings: CostSettings
    ) -> None:
        super().__init__(database, settings)
        self.claims = {"inference": inference, "tools": tools}
        guard = self._guard(options_pb2.CALLER_COST)
        effects = EffectSettings()
        # The two questions alone; cost asks nothing else.
        model_calls = InferenceAttempts(AttemptReader(inference, effects))  # type: ignore[abstract]
        tool_calls = ToolAttempts(AttemptReader(tools, effects))  # type: ignore[abstract]
        self.mesh.add(
            guard,
            inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
            model_calls,
        )
        self.mesh.add(guard, tool_service_pb2_grpc.add_ToolServiceServicer_to_server, tool_calls)

    @classmethod
    async def open(cls, database: OpenDatabase) -> ClaimWorld:
        """A world over fresh databases."""
        cost, inference = await database("cost"), await database("inference")
        return cls(cost, inference, await database("tools"), CostSettings.load())

    def watch(self) -> HoldWatch:
        """A watch that has seen nothing yet."""
        return HoldWatch(self.database, self.walk, self.known_claims, self.clock)

    @contextlib.asynccontextmanager
    async def owner(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """The owner of cost's tables, who can do what no service can."""
        dsn = self.database.dsn.replace("remit_cost@", "remit_cost_owner@")
        connection = await asyncpg.connect(dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def hold(self, number: int, *, calls: int = 1, service: str = "tools") -> None:
        """Holds money for some calls, and nothing else."""
        caller = options_pb2.Caller.Value(f"CALLER_{service.upper()}")
        await self.cost(caller).ReserveBudget(self.reserve_request(number, calls=calls))

    async def claim(
        self,
        number: int,
        state: str = "STARTED",
        *,
        calls: int = 1,
        service: str = "tools",
        org: str = "orgs/acme",
        closed: bool = False,
    ) -> None:
        """A claim that started with that hold, as the gate leaves it."""
        database, claim = self.claims[service], str(UUID(int=number))
        await database.execute(_INSERT_CLAIM, claim, org, claim)
        billed = state in {"DONE", "CLOSED"}
        await database.execute(
            _INSERT_ATTEMPT,
            claim,
            state,
            None if state == "CLAIMED" else calls * CALCULATOR_NANOS,
            _ENDS.get(state),
            usage_pb2.Usage(calls=calls).SerializeToString() if billed else None,
            calls * CALCULATOR_NANOS if billed else None,
            closed or state == "CLOSED",
        )

    async def settle(self, number: int, *, calls: int = 1, service: str = "tools") -> None:
        """Posts what some calls cost."""
        caller = options_pb2.Caller.Value(f"CALLER_{service.upper()}")
        await self.cost(caller).SettleReservation(
            cost_service_pb2.SettleReservationRequest(
                claim=claim_of(number), attempt=1, used=usage_pb2.Usage(calls=calls)
            )
        )

    async def post_whole(self, number: int) -> None:
        """Posts a whole hold, as for an effect in doubt."""
        await self.cost().SettleReservation(
            cost_service_pb2.SettleReservationRequest(
                claim=claim_of(number), attempt=1, whole_hold=True
            )
        )

    async def done(self, number: int, *, calls: int = 1, service: str = "tools") -> None:
        """A whole effect, each of its steps in its order."""
        nanos, used = calls * CALCULATOR_NANOS, usage_pb2.Usage(calls=calls).SerializeToString()
        await self.claim(number, "CLAIMED", calls=calls, service=service)
        await self.hold(number, calls=calls, service=service)
        await self.changed(f"state = 'STARTED', hold_nanos = {nanos}", number, service)
        ended = f"outcome = 'SUCCEEDED', cost_nanos = {nanos}, used = '\\x{used.hex()}'"
        await self.changed(f"state = 'DONE', {ended}", number, service)
        await self.settle(number, calls=calls, service=service)
        closed = "state = 'CLOSED', closed_time = clock_timestamp()"
        await self.changed(closed, number, service)

    async def changed(self, assignments: str, number: int, service: str = "tools") -> None:
        """Changes an attempt by hand."""
        await self.claims[service].execute(
            f"UPDATE effect_attempts SET {assignments} WHERE claim = $1",  # noqa: S608 - a test's
            str(UUID(int=number)),
        )

    async def check(
        self, resume_token: str = "", *, subject: str = ALICE, into: list[Step] | None = None
    ) -> list[Step]:
        """The steps of a check, as a client asks for them; `into` keeps those before a failure."""
        request = cost_report_service_pb2.CheckLedgerRequest(resume_token=resume_token)
        steps: list[Step] = [] if into is None else into
        with remit_token(self.client_token(subject)):
            async for step in self.reports().CheckLedger(request):
                steps.append(step)  # noqa: PERF401 - what came before a failure is kept
        return steps

    async def kinds(self) -> list[tuple[str, str]]:
        """The differences of the org, by kind and claim."""
        return [
            (Kind.Name(found.kind).removeprefix("KIND_"), found.claim)
            for step in await self.check()
            for found in step.differences
        ]
