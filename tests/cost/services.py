"""The cost service on a real database, reached over a mesh in memory, with an audit log to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from remit import names
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.cost.v1 import (
    cost_report_service_pb2_grpc,
    cost_service_pb2,
    cost_service_pb2_grpc,
    price_service_pb2_grpc,
)
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import inference_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.api.usage.v1 import usage_pb2
from remit.cost.alert_recorder import AlertRecorder
from remit.cost.budgets import BudgetStore
from remit.cost.claims import Claims, InferenceClaims, ToolClaims
from remit.cost.ledger_check import LedgerCheck
from remit.cost.ledger_walk import LedgerWalk
from remit.cost.price_service import PriceService
from remit.cost.price_store import PriceStore
from remit.cost.prices import PriceList, read_prices
from remit.cost.public_prices import PublicPrices
from remit.cost.report_service import CostReportService
from remit.cost.service import CostService
from remit.cost.settings import CostSettings
from remit.cost.store import LedgerStore
from remit.idempotency import AdminRecorder
from remit.postgres import Database
from remit.rpc.contracts import permissions
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import Remit, RemitVerifier, encode_remit
from tests.cost.worlds import START
from tests.permissions import PERMITTED
from tests.waiting import PATIENCE

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ALICE = "orgs/acme/users/alice"
BOB = "orgs/acme/users/bob"
EVE = "orgs/other/users/eve"
CORE = "orgs/acme/teams/core"
AGENT = "agents/assistant"
EFFECT_SERVICES = frozenset(
    {options_pb2.CALLER_INFERENCE, options_pb2.CALLER_TOOLS, options_pb2.CALLER_COST}
)
CALCULATOR = "tools/calculator"
CALCULATOR_NANOS = 1_000


def run_of(number: int) -> str:
    """The name of the numbered run."""
    return f"runs/{UUID(int=number)}"


def claim_of(number: int) -> str:
    """The name of the numbered claim."""
    return f"claims/{UUID(int=number)}"


class OneKey:
    """The key that signs the remits of these tests."""

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        return KEY.public_key() if key_id == "k1" else None


class MovedClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = START
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def move(self, **by: float) -> None:
        self._now += timedelta(**by)


@dataclass
class AuditLog(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events by their ids, as the contract of AppendEvents says; may be told to be away."""

    events: dict[str, event_pb2.Event] = field(default_factory=dict)
    away: bool = False

    async def AppendEvents(
        self,
        request: audit_service_pb2.AppendEventsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_service_pb2.AppendEventsResponse:
        if self.away:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the log is away"
            )
        response = audit_service_pb2.AppendEventsResponse()
        for entry in request.entries:
            known = self.events.setdefault(entry.event.event_id, entry.event)
            assert known == entry.event, "the same id came with another content"
            response.results.add(leaf_index=list(self.events).index(entry.event.event_id))
        return response

    async def AppendOutcomes(
        self,
        request: audit_service_pb2.AppendOutcomesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_service_pb2.AppendOutcomesResponse:
        raise AssertionError("cost reports no outcomes")


class CostWorld:
    """One replica of cost."""

    def __init__(self, database: Database, settings: CostSettings) -> None:
        self.database = database
        self.clock = MovedClock()
        self.audit = AuditLog()
        self.mesh = MemoryMesh(PATIENCE)
        self._verifier = RemitVerifier(OneKey(), self.clock)
        self.mesh.add(
            self._guard(options_pb2.CALLER_AUDIT),
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
            self.audit,
        )
        self.recorder = AdminRecorder(
            database,
            self.mesh.as_caller(options_pb2.CALLER_COST).stub(
                audit_service_pb2_grpc.AuditServiceStub
            ),
            retry_s=0.01,
        )
        self.alerts = self.alert_recorder()
        self._add_cost(settings)

    def alert_recorder(self) -> AlertRecorder:
        """One that records what is due when a test says so; each replica has its own."""
        audit = self.mesh.as_caller(options_pb2.CALLER_COST).stub(
            audit_service_pb2_grpc.AuditServiceStub
        )
        return AlertRecorder(self.database, audit, every_s=60)

    def _add_cost(self, settings: CostSettings) -> None:
        guard = self._guard(options_pb2.CALLER_COST)
        store = LedgerStore(
            self.database,
            settings.rules,
            self.clock,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
        )
        prices = PriceList(
            read_prices(settings.prices_file),
            PublicPrices(cache_size=8),
            unlisted_models=settings.unlisted_models,
            unlisted_tools=settings.unlisted_tools,
        )
        self.mesh.add(
            guard,
            cost_service_pb2_grpc.add_CostServiceServicer_to_server,
            CostService(store=store, prices=prices, verifier=self._verifier),
        )
        budgets = BudgetStore(self.database, settings.rules.default_budget, self.clock)
        client = self.mesh.as_caller(options_pb2.CALLER_COST)
        self.known_claims = Claims(
            InferenceClaims(client.stub(inference_service_pb2_grpc.InferenceServiceStub)),
            ToolClaims(client.stub(tool_service_pb2_grpc.ToolServiceStub)),
        )
        self.walk = LedgerWalk(self.database, self.known_claims, open_limit_s=settings.open_limit_s)
        check = LedgerCheck(
            self.database, self.walk, books_timeout_s=settings.check_books_timeout_s
        )
        self.mesh.add(
            guard,
            cost_report_service_pb2_grpc.add_CostReportServiceServicer_to_server,
            CostReportService(
                database=self.database, budgets=budgets, recorder=self.recorder, check=check
            ),
        )
        self.mesh.add(
            guard,
            price_service_pb2_grpc.add_PriceServiceServicer_to_server,
            PriceService(
                store=PriceStore(self.database, self.clock), prices=prices, recorder=self.recorder
            ),
        )

    def _guard(self, audience: Caller.ValueType) -> Guard:
        return Guard(
            audience=audience,
            verifier=self._verifier,
            clock=self.clock,
            max_in_flight=1000,
            permissions=PERMITTED,
        )

    def cost(
        self, caller: Caller.ValueType = options_pb2.CALLER_TOOLS
    ) -> cost_service_pb2_grpc.CostServiceStub:
        """The hot path, as a service of the mesh."""
        return self.mesh.as_caller(caller).stub(cost_service_pb2_grpc.CostServiceStub)

    def reports(
        self, caller: Caller.ValueType = options_pb2.CALLER_PUBLIC
    ) -> cost_report_service_pb2_grpc.CostReportServiceStub:
        """The admin side, as a client unless told otherwise; send a remit with `remit_token`."""
        return self.mesh.as_caller(caller).stub(cost_report_service_pb2_grpc.CostReportServiceStub)

    def prices(self) -> price_service_pb2_grpc.PriceServiceStub:
        """What things cost, as a client; send a remit with `remit_token`."""
        return self.mesh.as_caller(options_pb2.CALLER_PUBLIC).stub(
            price_service_pb2_grpc.PriceServiceStub
        )

    def client_token(self, subject: str = ALICE, team: str = "") -> str:
        """A client's own remit."""
        remit = self.a_remit(subject=subject, team=team, presenter=options_pb2.CALLER_PUBLIC)
        return encode_remit(replace(remit, permissions=frozenset(permissions())), KEY)

    def run_token(
        self,
        run: int = 1,
        *,
        subject: str = ALICE,
        team: str = "",
        max_cost_nanos: int | None = None,
        audience: Iterable[Caller.ValueType] = EFFECT_SERVICES,
        lifetime_s: float = 600,
        below: Sequence[tuple[int, int | None]] = (),
    ) -> str:
        """The remit of a run, or of a sub-run `below` others: each with its own limit."""
        remit = self.a_remit(
            subject=subject,
            team=team,
            agent=AGENT,
            run=run_of(run),
            max_cost_nanos=max_cost_nanos,
            audience=frozenset(audience),
            lifetime_s=lifetime_s,
        )
        if below:
            account = names.account_path(subject, team=team, agent=AGENT, run=run_of(below[0][0]))[
                -1
            ]
            for outer, _ in (*below[1:], (run, None)):
                account = names.nested_account(account, agent=AGENT, run=run_of(outer))
            limits = tuple(limit for _, limit in below)
            remit = replace(remit, account=account, outer_limits_nanos=limits)
        return encode_remit(remit, KEY)

    def a_remit(
        self,
        *,
        subject: str,
        team: str = "",
        agent: str = "",
        run: str = "",
        presenter: Caller.ValueType = options_pb2.CALLER_AGENT,
        audience: frozenset[Caller.ValueType] = EFFECT_SERVICES,
        max_cost_nanos: int | None = None,
        lifetime_s: float = 600,
    ) -> Remit:
        """A remit of now."""
        return Remit(
            remit_id="r1",
            subject=subject,
            team=team,
            agent=agent,
            run=run,
            presenter=presenter,
            audience=audience,
            tools=frozenset(),
            models=frozenset(),
            account=names.account_path(subject, team=team, agent=agent, run=run)[-1],
            max_cost_nanos=max_cost_nanos,
            fencing_token=1 if run else 0,
            policy_epoch=1,
            roles=frozenset(),
            key_id="k1",
            issue_time=self.clock.now(),
            expire_time=self.clock.now() + timedelta(seconds=lifetime_s),
        )

    def reserve_request(
        self, number: int, *, calls: int = 1, token: str | None = None, item: str = CALCULATOR
    ) -> cost_service_pb2.ReserveBudgetRequest:
        """A reserve of some calls of the calculator, 1000 nano-USD each."""
        return cost_service_pb2.ReserveBudgetRequest(
            remit=self.run_token() if token is None else token,
            claim=claim_of(number),
            attempt=1,
            item=item,
            bound=usage_pb2.Usage(calls=calls),
        )

    async def spend(self, number: int, *, calls: int = 1, token: str | None = None) -> None:
        """Reserves and settles some calls of the calculator."""
        await self.cost().ReserveBudget(self.reserve_request(number, calls=calls, token=token))
        await self.cost().SettleReservation(
            cost_service_pb2.SettleReservationRequest(
                claim=claim_of(number), attempt=1, used=usage_pb2.Usage(calls=calls)
            )
        )
