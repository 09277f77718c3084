"""Replicas of the agent service over one database, among small services that stand for the mesh."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from remit.agent.main import AgentParts, open_parts
from remit.agent.sealing import Keys as RunKeys
from remit.agent.settings import AgentSettings
from remit.api.agent.v1 import (
    agent_catalog_service_pb2_grpc,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_service_pb2_grpc,
    run_pb2,
)
from remit.api.audit.v1 import audit_service_pb2_grpc, subject_key_service_pb2_grpc
from remit.api.inference.v1 import inference_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.postgres import Database
from remit.rpc.clock import Clock, SystemClock
from remit.rpc.guard import Guard
from remit.rpc.ids import SystemIds
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import Remit
from remit.subject_keys import SubjectKeys
from tests.agent.outside import (
    Effects,
    Inference,
    Keys,
    Log,
    Policy,
    Tools,
    client_remit,
    computes,
    multiplies,
)
from tests.conftest import OpenDatabase
from tests.permissions import PERMITTED
from tests.subject_keys import SubjectKeyService, Subjects
from tests.waiting import PATIENCE, in_time

AREAS = {
    "agent": options_pb2.CALLER_AGENT,
    "audit": options_pb2.CALLER_AUDIT,
    "inference": options_pb2.CALLER_INFERENCE,
    "policy": options_pb2.CALLER_POLICY,
    "tools": options_pb2.CALLER_TOOLS,
}


@dataclass
class World:
    """Everything around the replicas, shared by all of them."""

    database: Database
    keys: Keys
    policy: Policy
    inference: Inference
    tools: Tools
    subjects: Subjects
    log: Log = field(default_factory=Log)

    def mesh(self) -> MemoryMesh:
        mesh = MemoryMesh(PATIENCE)
        mesh.add(
            self.guard("policy"),
            policy_service_pb2_grpc.add_PolicyServiceServicer_to_server,
            self.policy,
        )
        mesh.add(
            self.guard("audit"),
            subject_key_service_pb2_grpc.add_SubjectKeyServiceServicer_to_server,
            SubjectKeyService(self.subjects),
        )
        mesh.add(
            self.guard("inference"),
            inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
            self.inference,
        )
        mesh.add(
            self.guard("tools"), tool_service_pb2_grpc.add_ToolServiceServicer_to_server, self.tools
        )
        mesh.add(
            self.guard("audit"), audit_service_pb2_grpc.add_AuditServiceServicer_to_server, self.log
        )
        return mesh

    def area_keys(self) -> RunKeys:
        """The keys of runs, as a replica of its own would have them."""
        caller = self.mesh().as_caller(options_pb2.CALLER_AGENT)
        stub = caller.stub(subject_key_service_pb2_grpc.SubjectKeyServiceStub)
        return RunKeys(SubjectKeys(stub, SystemClock()), SystemIds())

    def guard(self, area: str) -> Guard:
        return Guard(
            audience=AREAS[area],
            verifier=self.keys.verifier(),
            clock=SystemClock(),
            max_in_flight=1000,
            permissions=PERMITTED,
        )


@dataclass
class Client:
    """A client of one replica, under one remit."""

    runs: agent_service_pb2_grpc.AgentServiceStub
    catalog: agent_catalog_service_pb2_grpc.AgentCatalogServiceStub
    conversations: conversation_service_pb2_grpc.ConversationServiceStub
    metadata: tuple[tuple[str, str], ...]

    async def create(self, task: str = "What is 17 * 23?", **more: Any) -> run_pb2.Run:
        response = await self.runs.CreateRun(request(task, **more), metadata=self.metadata)
        return response.run

    async def get(self, name: str) -> run_pb2.Run:
        response = await self.runs.GetRun(
            agent_service_pb2.GetRunRequest(name=name), metadata=self.metadata
        )
        return response.run

    async def watch(self, name: str, after: int = 0) -> list[run_pb2.RunEvent]:
        """Every event after a sequence, to the end of the run."""
        return [
            response.event
            async for response in self.runs.WatchRun(
                agent_service_pb2.WatchRunRequest(name=name, after_sequence=after),
                metadata=self.metadata,
            )
            if response.HasField("event")
        ]

    async def ended(self, name: str) -> run_pb2.Run:
        """The run, when it has ended."""
        events = await self.watch(name)
        return events[-1].ended.run

    async def cancel(self, name: str, request_id: str = "stop") -> run_pb2.Run:
        response = await self.runs.CancelRun(
            agent_service_pb2.CancelRunRequest(name=name, request_id=request_id),
            metadata=self.metadata,
        )
        return response.run

    async def pause(self, name: str, request_id: str = "halt") -> run_pb2.Run:
        response = await self.runs.PauseRun(
            agent_service_pb2.PauseRunRequest(name=name, request_id=request_id),
            metadata=self.metadata,
        )
        return response.run

    async def resume(self, name: str, request_id: str = "go") -> run_pb2.Run:
        response = await self.runs.ResumeRun(
            agent_service_pb2.ResumeRunRequest(name=name, request_id=request_id),
            metadata=self.metadata,
        )
        return response.run

    async def fork(self, name: str, **more: Any) -> run_pb2.Run:
        facts = {"request_id": SystemIds().uuid7()} | more
        response = await self.runs.ForkRun(
            agent_service_pb2.ForkRunRequest(name=name, **facts), metadata=self.metadata
        )
        return response.run

    async def replay(
        self, name: str, overrides: agent_service_pb2.RunOverrides | None = None
    ) -> agent_service_pb2.ReplayRunResponse:
        return await self.runs.ReplayRun(
            agent_service_pb2.ReplayRunRequest(name=name, overrides=overrides),
            metadata=self.metadata,
        )


def request(task: str = "What is 17 * 23?", **more: Any) -> agent_service_pb2.CreateRunRequest:
    facts = {"agent": "agents/assistant", "request_id": SystemIds().uuid7()} | more
    return agent_service_pb2.CreateRunRequest(task=task, **facts)


@dataclass
class Replica:
    """One agent service; `kill` is what a crash does to it."""

    world: World
    parts: AgentParts
    mesh: MemoryMesh
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def client(self, remit: Remit | None = None) -> Client:
        client = self.mesh.as_caller(options_pb2.CALLER_PUBLIC)
        token = self.world.keys.sign(remit or client_remit())
        return Client(
            client.stub(agent_service_pb2_grpc.AgentServiceStub),
            client.stub(agent_catalog_service_pb2_grpc.AgentCatalogServiceStub),
            client.stub(conversation_service_pb2_grpc.ConversationServiceStub),
            (("remit-token", token),),
        )

    def start(self) -> None:
        pool, listener = self.parts.pool, self.parts.listener
        sender = self.parts.sender
        leases = (pool.renew_leases, pool.stop_lapsed)
        approvals = self.parts.approvals
        for work in (listener.listen, pool.claim_runs, *leases, sender.run, approvals.run):
            self.tasks.append(asyncio.create_task(work()))

    async def kill(self) -> None:
        """Stops everything at once; the leases that stay behind run out."""
        await self.freeze()
        await self.lapse()

    async def lapse(self) -> None:
        """Its leases run out now, so that no test depends on how fast its machine is."""
        owner = self.parts.pool._leases.owner
        for table in ("runs", "webhook_deliveries"):
            await self.world.database.execute(
                f"UPDATE {table} SET lease_expire_time = clock_timestamp() WHERE owner = $1",  # noqa: S608 - a table of ours
                owner,
            )

    async def freeze(self) -> None:
        """Stops everything at once; its leases last as long as they were granted for."""
        self.parts.receipts.close()
        jobs = [job.task for job in self.parts.pool._jobs.values()]
        jobs += self.parts.sender._jobs
        for task in [*self.tasks, *jobs]:
            task.cancel()
        await asyncio.gather(*self.tasks, *jobs, return_exceptions=True)


StartReplica = Callable[..., Awaitable[Replica]]


@pytest.fixture
async def world(database: OpenDatabase) -> World:
    keys = Keys()
    policy = Policy(keys)
    # Lists of all attempts, which agent never asks for, stay unimplemented in both.
    return World(
        database=await database("agent"),
        keys=keys,
        policy=policy,
        inference=Inference(Effects(policy), multiplies),  # type: ignore[abstract]
        tools=Tools(Effects(policy), computes),  # type: ignore[abstract]
        subjects=Subjects(),
    )


@pytest.fixture
def owner_execute(world: World) -> Callable[..., Awaitable[None]]:
    """Changes rows by hand, as the owner of the database can and the service cannot."""

    async def execute(statement: str, *args: object) -> None:
        dsn = world.database.dsn.replace("remit_agent@", "remit_agent_owner@")
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(statement, *args)
        finally:
            await connection.close()

    return execute


@pytest.fixture
async def replica(world: World) -> AsyncIterator[StartReplica]:
    """Starts replicas over the world's database."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *, running: bool = True, clock: Clock | None = None, **settings: Any
        ) -> Replica:
            mesh = world.mesh()
            facts = {
                "retry_base_s": 0.02,
                "retry_cap_s": 0.2,
                "claim_poll_s": 0.1,
                # At once, so that whoever asks for a result that the journal has is found out.
                "receipt_linger_s": 0,
                "webhook_retry_base_s": 0.02,
                "webhook_retry_cap_s": 0.1,
                "webhook_poll_s": 0.05,
                "approval_poll_s": 0.05,
                **settings,
            }
            parts = await open_parts(
                AgentSettings.load(**facts),
                mesh.as_caller(options_pb2.CALLER_AGENT),
                world.database,
                clock=clock or SystemClock(),
                ids=SystemIds(),
            )
            guard = world.guard("agent")
            mesh.add(guard, agent_service_pb2_grpc.add_AgentServiceServicer_to_server, parts.runs)
            mesh.add(
                guard,
                conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server,
                parts.conversations,
            )
            mesh.add(
                guard,
                agent_catalog_service_pb2_grpc.add_AgentCatalogServiceServicer_to_server,
                parts.catalog,
            )
            made = Replica(world, parts, mesh)
            if running:
                made.start()
                await in_time(parts.listener.connected.wait(), 10)
            stack.push_async_callback(made.kill)
            return made

        yield start


@pytest.fixture
def agents_dir(tmp_path: Path) -> Path:
    """A folder for agents of a test's own."""
    folder = tmp_path / "agents"
    folder.mkdir()
    return folder
