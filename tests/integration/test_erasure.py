"""A subject among others leaves ten thousand entries, is erased, and nothing of it can be read.

Real processes, a real PostgreSQL, tiles on. What is looked through afterwards is every row of every
database, in clear, in base64, in hex and decompressed, and every file of the tiles.
"""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf import json_format, struct_pb2

from remit.api.agent.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    run_pb2,
)
from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    event_pb2,
    privacy_service_pb2,
    privacy_service_pb2_grpc,
)
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc, message_pb2
from remit.api.policy.v1 import policy_admin_service_pb2, policy_admin_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.local.state import StateDirectory
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity
from remit.rpc.mesh import Mesh
from tests.integration import haystack
from tests.integration.clients import a_run, bearer, channel, followed, reason_of, result_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.tools.receiver import Receiver, answer, receiving
from tests.waiting import PATIENCE, eventually

ENTRIES: Final = 10_000
BATCH: Final = 100
REMEMBERED_S: Final = 2
NETWORKS: Final = "127.0.0.0/8,::1/128"
SETTINGS: Final = {
    "REMIT_AUDIT_SUBJECT_KEY_CACHE_S": str(REMEMBERED_S),
    "REMIT_AGENT_WEBHOOK_NETWORKS": NETWORKS,
    "REMIT_TOOLS_WEBHOOK_NETWORKS": NETWORKS,
    "REMIT_AGENT_WEBHOOK_POLL_S": "0.1",
    "REMIT_AGENT_WEBHOOK_RETRY_BASE_S": "0.1",
    "REMIT_AGENT_WEBHOOK_MAX_TRIES": "2",
}


@pytest.fixture(scope="module")
def mesh_with_memory() -> Iterator[RunningMesh]:
    """A mesh whose services remember keys for a time that a test can outwait."""
    with started_mesh({"agent": 2}, environment=SETTINGS) as running:
        yield running


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@dataclass
class Subject:
    """A user, what they did, and the words that stand in nothing else."""

    mesh: RunningMesh
    user: str
    key: str
    runs: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.mesh.org}/users/{self.user}"

    def word(self, where: str) -> str:
        """A word of theirs, for one place."""
        return self.words.setdefault(where, f"w{uuid.uuid4().hex}{where}")

    def number(self) -> int:
        """A number of theirs, for a calculation; its triple is theirs, too."""
        number = uuid.uuid4().int % 10**14 + 10**14
        self.words |= {"operand": str(number), "product": str(3 * number)}
        return number

    async def run(self, task: str, **fields: Any) -> run_pb2.Run:
        request = a_run(task, **fields)
        run = result_of(await followed(self.mesh.address, self.key, request))
        self.runs.append(run.name)
        return run


async def a_subject(mesh: RunningMesh, user: str) -> Subject:
    async with channel(mesh.address) as edge:
        admin = policy_admin_service_pb2_grpc.PolicyAdminServiceStub(edge)
        made = await admin.CreateApiKey(
            policy_admin_service_pb2.CreateApiKeyRequest(
                display_name="erasure",
                user=f"{mesh.org}/users/{user}",
                roles=["member"],
                request_id=str(uuid.uuid4()),
            ),
            metadata=bearer(mesh.api_key),
        )
    return Subject(mesh, user, str(made.secret))


async def live(subject: Subject, receiver: Receiver) -> None:
    """Leaves words in every place where a subject can leave some."""
    path = f"{subject.word('path')}.txt"
    receiver.answers += [answer(500)] * 2
    async with channel(subject.mesh.address) as edge:
        talks = conversation_service_pb2_grpc.ConversationServiceStub(edge)
        begun = await talks.CreateConversation(
            conversation_service_pb2.CreateConversationRequest(
                display_name=subject.word("thread"), request_id="talk"
            ),
            metadata=bearer(subject.key),
        )
        await _calls(subject, edge)
    talk = begun.conversation.name
    run = await subject.run(
        f"What is {subject.number()} * 3?",
        context={subject.word("fact"): subject.word("value")},
        conversation=talk,
    )
    assert subject.words["product"] in run.result
    await subject.run(f"Remember {subject.word('task')}", conversation=talk)
    await subject.run(f"Write '{subject.word('content')}' to {path}", agent="agents/clerk")
    shown = await subject.run(f"Read {path}")
    assert subject.words["content"] in shown.result
    await subject.run(f"Read {subject.word('missing')}.txt")
    hook = f"http://localhost:{receiver.port}/{subject.word('hook')}"
    told = await subject.run("What is 1 + 1?", webhook=hook)

    async def given_up() -> bool:
        return (await get_run(subject, told.name)).webhook.tries >= 2

    await eventually(given_up, 60)


async def _calls(subject: Subject, edge: grpc.aio.Channel) -> None:
    """Effects outside of runs: what they answer is kept by their claims alone."""
    await tool_service_pb2_grpc.ToolServiceStub(edge).CallTool(
        a_tool_call(subject), metadata=bearer(subject.key), timeout=60 * PATIENCE
    )
    request = inference_service_pb2.GenerateTextRequest(
        model="models/builtin-rules",
        messages=[
            message_pb2.Message(
                role=message_pb2.ROLE_USER, text=f"What is {subject.word('prompt')}?"
            )
        ],
        request_id="direct",
    )
    await inference_service_pb2_grpc.InferenceServiceStub(edge).GenerateText(
        request, metadata=bearer(subject.key), timeout=60 * PATIENCE
    )


def a_tool_call(subject: Subject) -> tool_service_pb2.CallToolRequest:
    arguments = struct_pb2.Struct()
    content = subject.word("direct")
    arguments.update({"path": f"{subject.word('file')}.txt", "content": content})
    return tool_service_pb2.CallToolRequest(
        tool="tools/write_file", arguments=arguments, request_id="direct"
    )


async def get_run(subject: Subject, run: str) -> run_pb2.Run:
    async with channel(subject.mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        request = agent_service_pb2.GetRunRequest(name=run)
        return (
            await agents.GetRun(request, metadata=bearer(subject.key), timeout=20 * PATIENCE)
        ).run


async def events_about(subject: Subject, count: int = 200) -> list[event_pb2.Event]:
    """The newest events of a subject, as an administrator reads them."""
    async with channel(subject.mesh.address) as edge:
        audit = audit_query_service_pb2_grpc.AuditQueryServiceStub(edge)
        request = audit_query_service_pb2.ListEventsRequest(subject=subject.name, page_size=count)
        response = await audit.ListEvents(
            request, metadata=bearer(subject.mesh.api_key), timeout=30 * PATIENCE
        )
    return [logged.event for logged in response.events]


async def append_events(subject: Subject, count: int) -> None:
    """Entries of the log about a subject, as a service of the mesh appends them."""
    folder = StateDirectory.existing(subject.mesh.state).tls_folder("policy")
    address = str(subject.mesh.topology.mesh)
    async with Mesh.connect(address, TlsIdentity.load(folder)) as mesh:
        audit = mesh.stub(audit_service_pb2_grpc.AuditServiceStub)
        for first in range(0, count, BATCH):
            entries = [_entry(subject, first + n) for n in range(min(BATCH, count - first))]
            request = audit_service_pb2.AppendEventsRequest(entries=entries)
            await eventually(functools.partial(_appended, audit, request), 60)


async def _appended(audit: Any, request: audit_service_pb2.AppendEventsRequest) -> bool:
    """Whether all of them are in the log; what was not answered in time is sent again."""
    try:
        response = await audit.AppendEvents(request)
    except RemitError as error:
        if error.reason_name not in {"DEADLINE_EXCEEDED", "DEPENDENCY_UNAVAILABLE"}:
            raise
        return False
    return all(result.HasField("leaf_index") for result in response.results)


def _entry(subject: Subject, number: int) -> audit_service_pb2.Entry:
    event = event_pb2.Event(
        event_id=f"{subject.user}-{number}-{uuid.uuid4()}",
        kind=event_pb2.EVENT_KIND_ADMIN,
        org=subject.mesh.org,
        subject=subject.name,
        action="keys.create",
        resource=f"{subject.name}/keys/k{number}",
        outcome=event_pb2.OUTCOME_SUCCEEDED,
        detail_json=json.dumps({"note": f"{subject.word('detail')} {number}"}),
    )
    event.event_time.FromDatetime(datetime.now(UTC))
    return audit_service_pb2.Entry(event=event)


async def erase(subject: Subject) -> privacy_service_pb2.Erasure:
    async with channel(subject.mesh.address) as edge:
        privacy = privacy_service_pb2_grpc.PrivacyServiceStub(edge)
        request = privacy_service_pb2.EraseSubjectRequest(subject=subject.name, request_id="e-1")
        response = await privacy.EraseSubject(
            request, metadata=bearer(subject.mesh.api_key), timeout=20 * PATIENCE
        )
    return response.erasure


async def readable(subject: Subject) -> set[str]:
    """Those of a subject's words that any RPC still tells, to them or to an administrator."""
    told = [json_format.MessageToJson(event) for event in await events_about(subject)]
    async with channel(subject.mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        for run in subject.runs:
            for key in (subject.key, subject.mesh.api_key):
                told += await _told_of(agents, run, bearer(key))
        talks = conversation_service_pb2_grpc.ConversationServiceStub(edge)
        listed = await talks.ListConversations(
            conversation_service_pb2.ListConversationsRequest(), metadata=bearer(subject.key)
        )
        told.append(json_format.MessageToJson(listed))
        runs = await agents.ListRuns(
            agent_service_pb2.ListRunsRequest(page_size=50), metadata=bearer(subject.key)
        )
        told.append(json_format.MessageToJson(runs))
    return {word for word in subject.words.values() if any(word in text for text in told)}


async def _told_of(agents: Any, run: str, metadata: Any) -> list[str]:
    """What is told of a run: all of it, or an error that says why not."""
    told = []
    try:
        found = await agents.GetRun(agent_service_pb2.GetRunRequest(name=run), metadata=metadata)
        told.append(json_format.MessageToJson(found))
        request = agent_service_pb2.WatchRunRequest(name=run)
        async for each in agents.WatchRun(request, metadata=metadata, timeout=30 * PATIENCE):
            told.append(json_format.MessageToJson(each))
            if each.event.WhichOneof("event") == "ended":
                break
    except grpc.aio.AioRpcError as error:
        reason = reason_of(error)
        assert reason.reason_name == "SUBJECT_ERASED", reason
        told.append(reason.message)
    return told


@pytest.mark.timeout(900)
async def test_nothing_of_an_erased_subject_can_be_read_and_all_proofs_verify(
    mesh_with_memory: RunningMesh, receiver: Receiver, tmp_path: Path
) -> None:
    mesh = mesh_with_memory
    alice, bob = await asyncio.gather(a_subject(mesh, "alice"), a_subject(mesh, "bob"))
    for subject in (alice, bob):
        await live(subject, receiver)
    await append_events(bob, 10)
    await append_events(alice, ENTRIES)
    words = [*alice.words.values()]
    assert len(words) == len(set(words)) >= 12

    socket = json.loads((mesh.state / "mesh.json").read_text())["postgres_socket"]
    async with haystack.planted(socket, "w0123456789abcdefghijklmnopqrstuvwxyzplanted") as places:
        found = await haystack.in_databases(
            socket, ["w0123456789abcdefghijklmnopqrstuvwxyzplanted"]
        )
        assert sorted(found) == sorted(places), "whatever lies there in any form is found"
    before = await readable(alice)
    assert {alice.words[place] for place in ("task", "product", "content", "detail")} <= before
    checkpoint = await asyncio.to_thread(mesh.run, "audit", "export", str(tmp_path / "before"))
    assert checkpoint.returncode == 0, checkpoint.stderr

    erasure = await erase(alice)
    forget = erasure.forget_time.ToDatetime(UTC)
    assert (forget - erasure.erase_time.ToDatetime(UTC)).total_seconds() < REMEMBERED_S + 30
    await eventually(lambda: datetime.now(UTC) > forget, 30)

    left = {
        "by RPC": await readable(alice),
        "in databases": await haystack.in_databases(socket, words),
        "in tiles": haystack.in_files(mesh.state / "tiles", words),
    }
    assert not any(left.values()), left
    await _calls_answer_that(alice)

    assert {bob.words[place] for place in ("task", "product", "content", "detail")} <= (
        await readable(bob)
    )
    await _verified(mesh, tmp_path)


async def _calls_answer_that(subject: Subject) -> None:
    """A key of before answers that its subject was erased, and does nothing again."""
    async with channel(subject.mesh.address) as edge:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await tool_service_pb2_grpc.ToolServiceStub(edge).CallTool(
                a_tool_call(subject), metadata=bearer(subject.key), timeout=60 * PATIENCE
            )
    assert reason_of(refused.value).reason_name == "SUBJECT_ERASED"


async def _verified(mesh: RunningMesh, folder: Path) -> None:
    """Export and tiles verify, and both extend what was exported before the erasure."""
    key = str(StateDirectory.existing(mesh.state).audit_key_file)
    exported = await asyncio.to_thread(mesh.run, "audit", "export", str(folder / "after"))
    assert exported.returncode == 0, exported.stderr
    for source in (folder / "before", folder / "after", mesh.state / "tiles"):
        done = await asyncio.to_thread(
            mesh.run, "audit", "verify", str(source), "--key", key, timeout_s=120
        )
        assert done.returncode == 0, f"{source}: {done.stdout}{done.stderr}"
