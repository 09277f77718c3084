"""Wires the agent service."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from remit.agent.admin_log import AdminLog
from remit.agent.admission import Admission
from remit.agent.approvals import ApprovalWatch
from remit.agent.cancellation import Canceller
from remit.agent.catalog_service import AgentCatalogService
from remit.agent.conversation_service import ConversationService
from remit.agent.conversation_store import ConversationStore
from remit.agent.creation import Creator
from remit.agent.definitions import AgentCatalog, load_catalog
from remit.agent.erased_runs import ErasedRuns
from remit.agent.explaining import Explainer, Neighbours
from remit.agent.feed import Feed, Listener
from remit.agent.forking import Forker
from remit.agent.household import Household
from remit.agent.leases import LeaseStore
from remit.agent.logbook import Books
from remit.agent.loop import RunWorker, Workshop
from remit.agent.offers import Offers
from remit.agent.outbox import Outbox
from remit.agent.pausing import Pauser
from remit.agent.pool import RunPool
from remit.agent.reading import DefinitionStore, RunReader
from remit.agent.receipts import Receipts
from remit.agent.replaying import Replayer
from remit.agent.run_remit import RemitDesk
from remit.agent.sealing import Keys
from remit.agent.sender import WebhookSender
from remit.agent.service import AgentService
from remit.agent.settings import AgentSettings
from remit.agent.store import RunStore
from remit.agent.tenure import Tenure
from remit.agent.work import Outside
from remit.api.agent.v1 import (
    agent_catalog_service_pb2_grpc,
    agent_service_pb2_grpc,
    conversation_service_pb2_grpc,
)
from remit.api.audit.v1 import (
    audit_query_service_pb2_grpc,
    audit_service_pb2_grpc,
    subject_key_service_pb2_grpc,
)
from remit.api.cost.v1 import cost_report_service_pb2_grpc
from remit.api.inference.v1 import inference_service_pb2_grpc
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.host import Service
from remit.rpc.ids import IdSource
from remit.rpc.keys import RemoteKeys
from remit.rpc.mesh import StubFactory
from remit.rpc.permission import StreamPermissions
from remit.rpc.remits import RemitVerifier
from remit.subject_keys import SubjectKeys

Stub = TypeVar("Stub")


class StubSource(Protocol):
    """Whatever makes stubs: the mesh, or its stand-in inside one process."""

    def stub(self, factory: StubFactory[Stub]) -> Stub:
        """The stub of a service."""
        ...


@dataclass(frozen=True)
class AgentParts:
    """The wired parts of one replica."""

    runs: AgentService
    conversations: ConversationService
    catalog: AgentCatalogService
    pool: RunPool
    feed: Feed
    listener: Listener
    sender: WebhookSender
    approvals: ApprovalWatch
    store: RunStore
    receipts: Receipts
    erased: ErasedRuns


@contextlib.asynccontextmanager
async def open_service(
    settings: AgentSettings, mesh: StubSource, *, clock: Clock, ids: IdSource
) -> AsyncIterator[Service]:
    """Reads the agents, opens the database and yields the wired service.

    Raises CONFIGURATION_INVALID for a wrong agent file, DEPENDENCY_UNAVAILABLE without a database.
    """
    async with Database.of(settings, "agent") as database:
        policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
        parts = await open_parts(settings, mesh, database, clock=clock, ids=ids)
        yield Service(
            "agent",
            servicers=[
                (agent_service_pb2_grpc.add_AgentServiceServicer_to_server, parts.runs),
                (
                    conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server,
                    parts.conversations,
                ),
                (
                    agent_catalog_service_pb2_grpc.add_AgentCatalogServiceServicer_to_server,
                    parts.catalog,
                ),
            ],
            verifier=RemitVerifier(RemoteKeys(policy, clock), clock),
            background=[
                parts.listener.listen,
                parts.pool.claim_runs,
                parts.pool.renew_leases,
                parts.pool.stop_lapsed,
                parts.sender.run,
                functools.partial(parts.erased.look, settings.erased_poll_s),
                parts.approvals.run,
            ],
            ready=[database.ping],
            drain=[_drain(parts), parts.sender.drain],
            permissions=StreamPermissions(policy, clock),
        )


async def open_parts(
    settings: AgentSettings, mesh: StubSource, database: Database, *, clock: Clock, ids: IdSource
) -> AgentParts:
    """Wires one replica on an open database and stores the definitions that it will run."""
    catalog = load_catalog(settings.agents_dir)
    definitions = DefinitionStore(database)
    await definitions.save(catalog.all())
    audit = mesh.stub(subject_key_service_pb2_grpc.SubjectKeyServiceStub)
    keys = Keys(SubjectKeys(audit, clock), ids)
    reader = RunReader(database, keys)
    # Names this process, not just its replica: one that is started again is another holder.
    owner = f"{settings.replica}/{ids.uuid7()}"
    books = _books(settings, mesh, reader, clock, owner=owner)
    desk = RemitDesk(mesh.stub(policy_service_pb2_grpc.PolicyServiceStub), clock)
    outside = _outside(settings, mesh, catalog, clock)
    leases = LeaseStore(database, owner=owner, lease_s=settings.lease_s)
    erased = ErasedRuns(books, leases, desk)
    canceller = Canceller(books, leases, desk, erased)

    async def work(tenure: Tenure) -> None:
        await worker.work(tenure)

    pool = RunPool(leases, work, settings, clock)
    conversations = ConversationStore(database, keys)
    admission = Admission(conversations, reader, settings)
    creator = Creator(
        catalog,
        books.store,
        reader,
        admission,
        desk,
        outside.offers,
        keys,
        pool,
        settings,
        clock,
        ids,
    )
    household = Household(creator, canceller, leases, erased)
    worker = RunWorker(Workshop(books, definitions, desk, outside, settings, ids, household))
    pauser = Pauser(books, leases, desk)
    forker = Forker(creator, definitions, books.standing)
    sender = WebhookSender(
        Outbox(database, keys, owner=owner, lease_s=settings.webhook_lease_s),
        reader,
        desk,
        outside.tools,
        settings,
        ids,
    )
    replayer = Replayer(
        reader,
        books.standing,
        definitions,
        catalog,
        clock,
        settings.max_doubt_attempts,
        creator.rules,
    )
    admin_log = AdminLog(mesh.stub(audit_service_pb2_grpc.AuditServiceStub), clock)
    return AgentParts(
        runs=AgentService(
            creator,
            canceller,
            pauser,
            forker,
            replayer,
            Explainer(books.standing, _neighbours(mesh)),
            reader,
            books.feed,
            admin_log,
        ),
        conversations=ConversationService(conversations, clock, ids, admin_log, creator.rules),
        catalog=AgentCatalogService(catalog),
        pool=pool,
        feed=books.feed,
        listener=Listener(database.dsn, books.feed, origin=owner, orders=pool, tell=sender.wake),
        sender=sender,
        approvals=ApprovalWatch(
            leases,
            mesh.stub(policy_service_pb2_grpc.PolicyServiceStub),
            every_s=settings.approval_poll_s,
        ),
        store=books.store,
        receipts=books.receipts,
        erased=erased,
    )


def _books(
    settings: AgentSettings,
    mesh: StubSource,
    reader: RunReader,
    clock: Clock,
    *,
    owner: str,
) -> Books:
    store = RunStore(
        reader.database,
        origin=owner,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_queued_runs=settings.max_queued_runs,
        max_scheduled_runs=settings.max_scheduled_runs,
    )
    feed = Feed(
        reader,
        page=settings.watch_page,
        recent_events=settings.recent_events,
        heartbeat_s=settings.heartbeat_s,
    )
    receipts = _receipts(settings, mesh)
    return Books(store, reader, feed, clock, settings.watch_page, receipts, reader.keys)


def _receipts(settings: AgentSettings, mesh: StubSource) -> Receipts:
    return Receipts(
        mesh.stub(inference_service_pb2_grpc.InferenceServiceStub),
        mesh.stub(tool_service_pb2_grpc.ToolServiceStub),
        linger_s=settings.receipt_linger_s,
        max_waiting=settings.receipt_queue,
    )


def _outside(
    settings: AgentSettings, mesh: StubSource, catalog: AgentCatalog, clock: Clock
) -> Outside:
    tools = mesh.stub(tool_service_pb2_grpc.ToolServiceStub)
    return Outside(
        inference=mesh.stub(inference_service_pb2_grpc.InferenceServiceStub),
        tools=tools,
        offers=Offers(
            tools, catalog, clock, size=settings.offer_cache_size, lifetime_s=settings.offer_cache_s
        ),
    )


def _neighbours(mesh: StubSource) -> Neighbours:
    return Neighbours(
        audit=mesh.stub(audit_query_service_pb2_grpc.AuditQueryServiceStub),
        cost=mesh.stub(cost_report_service_pb2_grpc.CostReportServiceStub),
        inference=mesh.stub(inference_service_pb2_grpc.InferenceServiceStub),
        tools=mesh.stub(tool_service_pb2_grpc.ToolServiceStub),
    )


def _drain(parts: AgentParts) -> Callable[[], Awaitable[None]]:
    async def drain() -> None:
        """Hands the runs over, then sends the followers to another replica."""
        try:
            await parts.pool.drain()
            await parts.receipts.drain()
        finally:
            parts.feed.close()

    return drain
