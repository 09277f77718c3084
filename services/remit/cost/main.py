"""Wires the cost service; no rules here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from remit.api.audit.v1 import audit_service_pb2_grpc
from remit.api.cost.v1 import (
    cost_report_service_pb2_grpc,
    cost_service_pb2_grpc,
    price_service_pb2_grpc,
)
from remit.api.inference.v1 import inference_service_pb2_grpc
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.cost.alert_recorder import AlertRecorder
from remit.cost.budgets import BudgetStore
from remit.cost.claims import Claims, InferenceClaims, ToolClaims
from remit.cost.hold_watch import HoldWatch
from remit.cost.ledger_check import LedgerCheck
from remit.cost.ledger_walk import LedgerWalk
from remit.cost.metrics import ledger_held
from remit.cost.price_service import PriceService
from remit.cost.price_store import PriceStore
from remit.cost.prices import FilePrices, PriceList, read_prices
from remit.cost.public_prices import PublicPrices
from remit.cost.report_service import CostReportService
from remit.cost.service import CostService
from remit.cost.settings import CostSettings
from remit.cost.store import LedgerStore
from remit.idempotency import AdminRecorder
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.host import Service
from remit.rpc.ids import IdSource
from remit.rpc.keys import RemoteKeys
from remit.rpc.mesh import Mesh
from remit.rpc.observing import observing
from remit.rpc.permission import StreamPermissions
from remit.rpc.remits import RemitVerifier


@contextlib.asynccontextmanager
async def open_service(
    settings: CostSettings,
    mesh: Mesh,
    *,
    clock: Clock,
    ids: IdSource,  # noqa: ARG001 - every area is opened alike; the ledger names nothing itself
) -> AsyncIterator[Service]:
    """Open the database, read the prices and yield the wired service.

    Raises:
        RemitError: CONFIGURATION_INVALID for a price file or a database that does not fit,
            DEPENDENCY_UNAVAILABLE when the database does not answer.

    """
    prices = await asyncio.to_thread(read_prices, settings.prices_file)
    async with Database.of(settings, "cost") as database:
        policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
        verifier = RemitVerifier(RemoteKeys(policy, clock), clock)
        price_list = _price_list(prices, settings)
        audit = mesh.stub(audit_service_pb2_grpc.AuditServiceStub)
        recorder = AdminRecorder(database, audit, retry_s=settings.record_retry_s)
        alerts = AlertRecorder(database, audit, every_s=settings.record_retry_s)
        ledger = CostService(
            store=_ledger_store(database, settings, clock), prices=price_list, verifier=verifier
        )
        check, watch = _checks(database, settings, mesh, clock)
        reports = CostReportService(
            database=database,
            budgets=BudgetStore(database, settings.rules.default_budget, clock),
            recorder=recorder,
            check=check,
        )
        own_prices = PriceService(
            store=PriceStore(database, clock), prices=price_list, recorder=recorder
        )
        yield Service(
            area="cost",
            servicers=(
                (cost_service_pb2_grpc.add_CostServiceServicer_to_server, ledger),
                (cost_report_service_pb2_grpc.add_CostReportServiceServicer_to_server, reports),
                (price_service_pb2_grpc.add_PriceServiceServicer_to_server, own_prices),
            ),
            verifier=verifier,
            background=(
                recorder.run,
                alerts.run,
                ledger_held(database, every_s=settings.observe_s),
                observing(watch.look, every_s=settings.watch_s),
            ),
            ready=(database.ping,),
            permissions=StreamPermissions(policy, clock),
        )


def _price_list(files: FilePrices, settings: CostSettings) -> PriceList:
    return PriceList(
        files,
        PublicPrices(cache_size=settings.price_cache_size),
        unlisted_models=settings.unlisted_models,
        unlisted_tools=settings.unlisted_tools,
    )


def _ledger_store(database: Database, settings: CostSettings, clock: Clock) -> LedgerStore:
    return LedgerStore(
        database,
        settings.rules,
        clock,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
    )


def _checks(
    database: Database, settings: CostSettings, mesh: Mesh, clock: Clock
) -> tuple[LedgerCheck, HoldWatch]:
    """What compares the ledger with the claims."""
    claims = Claims(
        InferenceClaims(mesh.stub(inference_service_pb2_grpc.InferenceServiceStub)),
        ToolClaims(mesh.stub(tool_service_pb2_grpc.ToolServiceStub)),
    )
    walk = LedgerWalk(database, claims, open_limit_s=settings.open_limit_s)
    check = LedgerCheck(database, walk, books_timeout_s=settings.check_books_timeout_s)
    return check, HoldWatch(database, walk, claims, clock)
