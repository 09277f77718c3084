"""The service as wired by `open_service`, called through its contracts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from remit import names
from remit.api.audit.v1 import (
    audit_query_service_pb2 as query_pb2,
)
from remit.api.audit.v1 import (
    audit_query_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    event_pb2,
    privacy_service_pb2,
    privacy_service_pb2_grpc,
)
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import permission_pb2, policy_service_pb2, policy_service_pb2_grpc
from remit.audit import merkle
from remit.audit.export import write_export
from remit.audit.key_chain import KeyChain
from remit.audit.key_files import LOG_PUBLIC_KEY, make_log_keys, rotate_log_key
from remit.audit.main import open_service
from remit.audit.note import Verifier, signing_keys
from remit.audit.query_service import _fitting
from remit.audit.settings import AuditSettings
from remit.audit.verifier import verify_export
from remit.rpc.calls import remit_token
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import permissions
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.ids import SystemIds
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import Remit, encode_remit
from tests.audit.events import ALICE, BOB, DETAIL, EVE, ORG, RUN, claim_name, make_event
from tests.conftest import OpenDatabase, PostgresCluster
from tests.waiting import PATIENCE

TOOLS, AUDIT, PUBLIC, AGENT = (
    options_pb2.CALLER_TOOLS,
    options_pb2.CALLER_AUDIT,
    options_pb2.CALLER_PUBLIC,
    options_pb2.CALLER_AGENT,
)
CLOCK = SystemClock()
POLICY_KEY = Ed25519PrivateKey.generate()
Entry = audit_service_pb2.Entry


class Policy(policy_service_pb2_grpc.PolicyServiceServicer):
    """Policy as far as audit knows it: the list of its keys, and whether a reader may read on."""

    def __init__(self) -> None:
        self.answer = permission_pb2.DECISION_ALLOW
        self.questions: list[policy_service_pb2.CheckPermissionRequest] = []

    async def CheckPermission(
        self,
        request: policy_service_pb2.CheckPermissionRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> policy_service_pb2.CheckPermissionResponse:
        self.questions.append(request)
        return policy_service_pb2.CheckPermissionResponse(decision=self.answer, decision_id="d-1")

    async def ListRemitKeys(
        self,
        request: policy_service_pb2.ListRemitKeysRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> policy_service_pb2.ListRemitKeysResponse:
        key = {"key_id": "k1", "public_key": POLICY_KEY.public_key().public_bytes_raw()}
        return policy_service_pb2.ListRemitKeysResponse(keys=[key])  # type: ignore[list-item]


def token(subject: str = ALICE, run: str = RUN, **changes: Any) -> str:
    """A signed remit: a run's, or with `run=""` a client's."""
    return encode_remit(verified(subject, run, **changes), POLICY_KEY)


def verified(subject: str = ALICE, run: str = "", **changes: Any) -> Remit:
    """The content of a remit."""
    now = datetime.now(UTC)
    agent = "agents/assistant" if run else ""
    fields: dict[str, Any] = {
        "remit_id": str(uuid.uuid4()),
        "subject": subject,
        "team": "",
        "agent": agent,
        "run": run,
        "presenter": AGENT if run else PUBLIC,
        "audience": frozenset({TOOLS, AUDIT}),
        "tools": frozenset(),
        "models": frozenset(),
        "account": names.account_path(subject, agent=agent, run=run)[-1],
        "max_cost_nanos": None,
        "fencing_token": 1,
        "policy_epoch": 1,
        "roles": frozenset(),
        "key_id": "k1",
        "issue_time": now,
        "expire_time": now + timedelta(minutes=5),
        "permissions": frozenset(() if run else permissions()),
    }
    return Remit(**(fields | changes))


@dataclass(frozen=True)
class Audit:
    """The running service."""

    mesh: MemoryMesh
    settings: AuditSettings
    policy: Policy

    async def append(
        self, *entries: Entry, caller: options_pb2.Caller.ValueType = TOOLS
    ) -> list[int | RemitError]:
        stub = self.mesh.as_caller(caller).stub(audit_service_pb2_grpc.AuditServiceStub)
        request = audit_service_pb2.AppendEventsRequest(entries=entries)
        return read_results((await stub.AppendEvents(request)).results)

    async def append_outcomes(self, *entries: Entry) -> list[int | RemitError]:
        stub = self.mesh.as_caller(TOOLS).stub(audit_service_pb2_grpc.AuditServiceStub)
        request = audit_service_pb2.AppendOutcomesRequest(entries=entries)
        return read_results((await stub.AppendOutcomes(request)).results)

    @contextlib.contextmanager
    def query(self, reader: str = ALICE) -> Any:
        with remit_token(token(reader, run="")):
            yield self.mesh.as_caller(PUBLIC).stub(
                audit_query_service_pb2_grpc.AuditQueryServiceStub
            )

    async def list_events(self, reader: str = ALICE, **fields: Any) -> query_pb2.ListEventsResponse:
        with self.query(reader) as stub:
            return await stub.ListEvents(query_pb2.ListEventsRequest(**fields))  # type: ignore[no-any-return]

    async def ask(self, method: str, **fields: Any) -> Any:
        with self.query() as stub:
            return await getattr(stub, method)(getattr(query_pb2, f"{method}Request")(**fields))

    async def erase(
        self, request: privacy_service_pb2.EraseSubjectRequest
    ) -> privacy_service_pb2.Erasure:
        with remit_token(token(BOB, run="")):
            stub = self.mesh.as_caller(PUBLIC).stub(privacy_service_pb2_grpc.PrivacyServiceStub)
            return (await stub.EraseSubject(request)).erasure

    async def export(self, **fields: Any) -> list[query_pb2.ExportLogResponse]:
        with self.query() as stub:
            return [m async for m in stub.ExportLog(query_pb2.ExportLogRequest(**fields))]


def read_results(results: Any) -> list[int | RemitError]:
    return [
        RemitError.from_status(result.error) if result.HasField("error") else result.leaf_index
        for result in results
    ]


@pytest.fixture
async def audit(database: OpenDatabase, tmp_path: Path) -> AsyncIterator[Audit]:
    make_log_keys(tmp_path / "keys")
    keys_dsn = (await database("audit_keys")).dsn
    settings = AuditSettings(
        dsn=(await database("audit")).dsn,
        keys_dsn=keys_dsn,
        keys_eraser_dsn=keys_dsn.replace("remit_audit_keys@", "remit_audit_keys_eraser@"),
        keys_dir=tmp_path / "keys",
        pool_size=4,
        subject_key_cache_s=0,
        export_leaves_per_message=4,
        page_looked_at_events=256,
        tail_look_ms=10,
        heartbeat_s=0.05,
    )
    async with serving(settings) as running:
        yield running


@contextlib.asynccontextmanager
async def serving(settings: AuditSettings) -> AsyncIterator[Audit]:
    """One replica of the service."""
    mesh = MemoryMesh(PATIENCE)
    async with open_service(
        settings,
        mesh.as_caller(AUDIT),  # type: ignore[arg-type]
        clock=CLOCK,
        ids=SystemIds(),
    ) as service:
        policy = Policy()  # type: ignore[abstract]
        guard = Guard(
            audience=AUDIT,
            verifier=service.verifier,
            clock=CLOCK,
            max_in_flight=1024,
            permissions=service.permissions,
        )
        mesh.add(guard, policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, policy)
        for add, servicer in service.servicers:
            mesh.add(guard, add, servicer)
        for check in service.ready:
            await check()
        working = [asyncio.ensure_future(work()) for work in service.background]
        yield Audit(mesh, settings, policy)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


def event(event_id: str = "e-1", **changes: Any) -> event_pb2.Event:
    made = make_event(event_id, **changes)
    if "event_time" not in changes:
        made.event_time.FromDatetime(datetime.now(UTC))
    return made


def intent(event_id: str = "e-1", remit: str | None = None, **changes: Any) -> Entry:
    made = event(event_id, **changes)
    return Entry(event=made, remit=token(made.subject) if remit is None else remit)


def admin(event_id: str, **changes: Any) -> Entry:
    fields = {
        "action": "budgets.set",
        "kind": event_pb2.EVENT_KIND_ADMIN,
        "claim": "",
        "run": "",
        "attempt": 0,
    }
    return Entry(event=event(event_id, **(fields | changes)))


def outcome(event_id: str, **changes: Any) -> Entry:
    fields = {"kind": event_pb2.EVENT_KIND_OUTCOME, "outcome": event_pb2.OUTCOME_SUCCEEDED}
    return Entry(event=event(event_id, **(fields | changes)))


def reasons(results: list[int | RemitError]) -> list[int | str]:
    return [r.reason_name if isinstance(r, RemitError) else r for r in results]


# ------------------------------------------------------------------------- appending


async def test_an_effect_is_recorded_before_and_after(audit: Audit) -> None:
    assert await audit.append(intent("e-1")) == [0]
    assert await audit.append_outcomes(outcome("e-1-outcome")) == [1]
    listed = (await audit.list_events()).events
    assert [(e.leaf_index, e.event.event_id) for e in listed] == [(1, "e-1-outcome"), (0, "e-1")]
    assert (listed[1].event.subject, listed[1].event.detail_json) == (ALICE, DETAIL)
    age_s = datetime.now(UTC).timestamp() - listed[0].append_time.seconds
    assert -5 < age_s < 60


async def test_a_bad_entry_fails_alone(audit: Audit) -> None:
    results = await audit.append(
        intent("e-1"),
        intent("e-2", action=""),
        intent("e-1", attempt=7, remit=token()),
        intent("e-3", remit="nonsense"),
        intent("e-4"),
    )
    assert reasons(results) == [0, "INVALID_REQUEST", "KEY_REUSED", "REMIT_INVALID", 1]
    assert isinstance(results[1], RemitError)
    assert [v.field for v in results[1].violations] == ["event.action"]


async def test_a_replay_keeps_its_index(audit: Audit) -> None:
    first = intent("e-1")
    assert await audit.append(first, intent("e-2"), first) == [0, 1, 0]
    results = await audit.append(intent("e-2", detail_json="{}"), first)
    assert reasons(results) == ["KEY_REUSED", 0]


@pytest.mark.parametrize(
    "remit",
    [
        token(BOB),
        token(run=""),
        token(run="runs/0198c0de-0000-7000-8000-000000000002"),
        token(audience=frozenset({TOOLS})),
        token(audience=frozenset({AUDIT})),
        token(expire_time=datetime.now(UTC) - timedelta(minutes=1)),
        token(key_id="k2"),
    ],
)
async def test_an_intent_needs_a_remit_that_covers_it(audit: Audit, remit: str) -> None:
    assert reasons(await audit.append(intent("e-1", remit=remit))) == ["REMIT_INVALID"]
    assert (await audit.list_events()).events == []


async def test_an_intent_needs_a_remit_at_all(audit: Audit) -> None:
    assert reasons(await audit.append(intent("e-1", remit=""))) == ["INVALID_REQUEST"]


async def test_who_may_report_what(audit: Audit) -> None:
    assert reasons(await audit.append(intent(), caller=AGENT)) == ["CALLER_NOT_ALLOWED"]
    assert await audit.append(admin("a-1"), caller=options_pb2.CALLER_POLICY) == [0]
    with pytest.raises(RemitError) as raised:
        await audit.append(admin("a-2"), caller=PUBLIC)
    assert raised.value.reason_name == "CALLER_NOT_ALLOWED"


async def test_only_outcomes_among_outcomes(audit: Audit) -> None:
    results = await audit.append_outcomes(outcome("o-1"), admin("a-1"), intent("e-1"))
    assert reasons(results) == [0, "INVALID_REQUEST", "INVALID_REQUEST"]


@pytest.mark.parametrize("count", [0, 257])
async def test_too_few_or_too_many_entries(audit: Audit, count: int) -> None:
    with pytest.raises(RemitError, match="entries") as raised:
        await audit.append(*(admin(f"a-{n}") for n in range(count)))
    assert raised.value.reason_name == "INVALID_REQUEST"


async def test_an_event_from_the_future(audit: Audit) -> None:
    late = event_pb2.Event().event_time
    late.FromDatetime(datetime.now(UTC) + timedelta(minutes=6))
    results = await audit.append(admin("a-1", event_time=late))
    assert isinstance(results[0], RemitError)
    assert "in the future" in results[0].message


# --------------------------------------------------------------------------- reading


async def test_pages_follow_each_other(audit: Audit) -> None:
    await audit.append(*(admin(f"a-{n}") for n in range(7)))
    page, found = await audit.list_events(page_size=3), []
    for _ in range(3):
        found += [e.event.event_id for e in page.events]
        if page.next_page_token:
            page = await audit.list_events(page_size=3, page_token=page.next_page_token)
    assert found == [f"a-{n}" for n in reversed(range(7))]
    assert page.next_page_token == ""


async def test_each_read_is_an_event_itself(audit: Audit) -> None:
    await audit.list_events(claim=(claim := claim_name()))
    await audit.export()
    listed = (await audit.list_events()).events
    assert [e.event.action for e in listed] == ["audit.export", "audit.read"]
    assert {e.event.kind for e in listed} == {event_pb2.EVENT_KIND_READ}
    assert {e.event.subject for e in listed} == {ALICE}
    assert claim in listed[1].event.detail_json


async def test_a_reader_sees_only_the_own_org(audit: Audit) -> None:
    await audit.append(admin("a-1"), admin("x-1", org="orgs/other", subject=EVE))
    assert [e.event.event_id for e in (await audit.list_events()).events] == ["a-1"]
    first = await audit.list_events(EVE, page_size=1)
    assert [e.event.event_id for e in first.events] == ["x-1"]


async def test_filters(audit: Audit) -> None:
    await audit.append(intent("e-1"), admin("a-1"))
    assert [e.event.event_id for e in (await audit.list_events(run=RUN)).events] == ["e-1"]
    future = datetime.now(UTC) + timedelta(days=1)
    assert (await audit.list_events(start_time=future)).events == []
    assert len((await audit.list_events(end_time=future, claim="")).events) >= 2


async def test_events_of_a_user_an_action_an_outcome_a_kind(audit: Audit) -> None:
    await audit.append(intent("e-1"), outcome("e-1-end"), admin("a-1", subject=BOB, action="x.set"))
    await audit.append_outcomes(outcome("e-2-end", outcome=event_pb2.OUTCOME_REFUSED, subject=BOB))

    async def found(**wanted: Any) -> list[str]:
        listed = await audit.list_events(EVE.replace("other", "acme"), **wanted)
        return [e.event.event_id for e in listed.events]

    assert await found(subject=BOB) == await found(subject="users/bob") == ["e-2-end", "a-1"]
    assert await found(action="x.set") == ["a-1"]
    assert await found(outcome=event_pb2.OUTCOME_REFUSED) == ["e-2-end"]
    assert await found(outcome=event_pb2.OUTCOME_SUCCEEDED, run=RUN) == ["e-1-end"]
    assert await found(kind=event_pb2.EVENT_KIND_INTENT) == ["e-1"]
    assert await found(kind=event_pb2.EVENT_KIND_ADMIN, subject=BOB) == ["a-1"]
    assert await found(kind=event_pb2.EVENT_KIND_ADMIN, subject=ALICE) == []


async def test_the_entry_of_a_read_names_another_user_by_pseudonym(audit: Audit) -> None:
    await audit.list_events(subject=BOB, kind=event_pb2.EVENT_KIND_ADMIN)
    read = (await audit.list_events()).events[0].event
    assert "bob" not in read.detail_json
    detail = json.loads(read.detail_json)
    assert detail["kind"] == "ADMIN"
    assert re.fullmatch(rf"{ORG}/users/~[\w-]{{43}}", detail["subject"])


async def test_a_page_of_rare_events_goes_on_behind_what_was_looked_at(audit: Audit) -> None:
    await audit.append(admin("old", action="tools.call"), *(admin(f"a-{n}") for n in range(255)))
    await audit.append(*(admin(f"b-{n}") for n in range(50)))
    future = await audit.list_events(start_time=datetime(2099, 1, 1, tzinfo=UTC), page_size=9)
    assert (list(future.events), future.next_page_token) == ([], "")
    wanted: dict[str, Any] = {"action": "tools.call", "end_time": datetime.now(UTC)}
    first = await audit.list_events(**wanted)
    assert list(first.events) == []
    second = await audit.list_events(**wanted, page_token=first.next_page_token)
    assert [e.event.event_id for e in second.events] == ["old"]
    assert second.next_page_token == ""


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_token": "x"}, "page_token"),
        ({"page_token": "7-0000000000000000"}, "page_token"),
        ({"page_token": "9" * 40}, "page_token"),
        ({"page_size": -1}, "page_size"),
        ({"run": "r"}, "run"),
        ({"claim": "c"}, "claim"),
        ({"subject": "alice"}, "subject"),
        ({"subject": EVE}, "subject"),
        ({"action": "x" * 129}, "action"),
        ({"action": "\n"}, "action"),
        ({"outcome": 99}, "outcome"),
        ({"kind": 99}, "kind"),
        ({"start_time": {"seconds": 2**60}}, "start_time"),
    ],
)
async def test_bad_list_requests(audit: Audit, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RemitError) as raised:
        await audit.list_events(**fields)
    assert [v.field for v in raised.value.violations] == [field]


def test_a_page_is_cut_where_its_message_would_be_too_large() -> None:
    large = query_pb2.LoggedEvent(event=make_event(detail_json='"' + "x" * 16_000 + '"'))
    page = _fitting([large] * 500)
    assert 150 < len(page) < 200
    assert query_pb2.ListEventsResponse(events=page).ByteSize() < 4 * 1024 * 1024
    huge = query_pb2.LoggedEvent(event=make_event(detail_json="x" * 5_000_000))
    assert len(_fitting([huge, huge])) == 1, "a page never stands still"


async def test_a_page_token_of_other_filters_is_refused(audit: Audit) -> None:
    await audit.append(*(admin(f"a-{n}") for n in range(3)))
    other = (await audit.list_events(page_size=1)).next_page_token
    with pytest.raises(RemitError, match="other filters"):
        await audit.list_events(page_token=other, run=RUN)


async def test_a_deleted_key_takes_the_persons_data_and_no_proof(
    audit: Audit, postgres: PostgresCluster, tmp_path: Path
) -> None:
    await audit.append(intent("e-1"), admin("b-1", subject=BOB, resource=f"{BOB}/apiKeys/k"))
    owner = await asyncpg.connect(
        audit.settings.keys_dsn.replace("remit_audit_keys@", "remit_audit_keys_owner@")
    )
    deleted = await owner.execute("DELETE FROM subject_keys")
    await owner.close()
    assert deleted == "DELETE 2"
    bob, alice = (await audit.list_events(EVE.replace("other", "acme"))).events
    assert (alice.event.event_id, alice.event.subject, alice.event.detail_json) == ("e-1", "", "")
    assert "bob" not in str(bob)
    path = await _exported(audit, tmp_path)
    assert verify_export(path, _public_key(audit)).tree_size == 4


async def test_an_admin_erases_a_subject(audit: Audit, tmp_path: Path) -> None:
    await audit.append(intent("e-1"), intent("e-2", subject=BOB))
    request = privacy_service_pb2.EraseSubjectRequest(subject=ALICE, request_id="r-1")
    erasure = await audit.erase(request)
    assert (await audit.erase(request)).leaf_index == erasure.leaf_index == 2
    told, bob, alice = (await audit.list_events(BOB)).events
    assert (alice.event.subject, alice.event.detail_json) == ("", "")
    assert (bob.event.subject, bob.event.detail_json) == (BOB, DETAIL)
    assert (told.event.action, told.event.subject) == ("audit.erase", BOB)
    assert told.event.resource == erasure.resource
    assert "alice" not in str(told)
    assert erasure.forget_time.ToNanoseconds() >= erasure.erase_time.ToNanoseconds()
    path = await _exported(audit, tmp_path)
    assert verify_export(path, _public_key(audit)).tree_size == 5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"subject": ALICE, "request_id": ""}, "INVALID_REQUEST"),
        ({"subject": "alice", "request_id": "r"}, "INVALID_REQUEST"),
        ({"subject": ORG, "request_id": "r"}, "INVALID_REQUEST"),
        ({"subject": EVE, "request_id": "r"}, "PERMISSION_DENIED"),
        ({"subject": f"{ORG}/users/nobody", "request_id": "r"}, "RESOURCE_NOT_FOUND"),
    ],
)
async def test_erasures_that_are_refused(audit: Audit, fields: dict[str, Any], reason: str) -> None:
    await audit.append(intent("e-1"), intent("e-2", subject=EVE, org="orgs/other"))
    with pytest.raises(RemitError) as raised:
        await audit.erase(privacy_service_pb2.EraseSubjectRequest(**fields))
    assert raised.value.reason_name == reason
    assert len((await audit.list_events()).events) == 1, "nothing was recorded"


# ---------------------------------------------------------------------------- proofs


async def _exported(audit: Audit, folder: Path, **fields: Any) -> Path:
    with audit.query() as stub:
        stream = stub.ExportLog(query_pb2.ExportLogRequest(**fields))
        await write_export(folder / "log.export", stream)
    return folder / "log.export"


def _public_key(audit: Audit) -> str:
    return (audit.settings.keys_dir / LOG_PUBLIC_KEY).read_text()


async def test_an_export_verifies_offline_against_an_earlier_checkpoint(
    audit: Audit, tmp_path: Path
) -> None:
    await audit.append(intent("e-1"), admin("a-1"))
    earlier = (await audit.ask("GetCheckpoint", min_tree_size=2)).checkpoint
    await audit.append_outcomes(outcome("e-1-outcome"))
    path = await _exported(audit, tmp_path)
    report = verify_export(path, _public_key(audit), earlier.signed_note)
    assert (report.tree_size, report.earlier_tree_size) == (4, 2)
    for secret in (b"alice", b"secret-of-alice"):
        assert secret not in path.read_bytes()


async def test_an_export_resumes_where_it_broke_off(audit: Audit) -> None:
    await audit.append(*(admin(f"a-{n}") for n in range(9)))
    whole = await audit.export()
    size = whole[0].checkpoint.tree_size
    await audit.append(admin("later"))
    rest = await audit.export(start_index=5, tree_size=size)
    assert rest[0].checkpoint == whole[0].checkpoint
    leaves = [leaf for part in whole for leaf in part.leaves]
    assert len(leaves) == size == 10
    assert [leaf for part in rest for leaf in part.leaves] == leaves[5:]
    assert [part.sequence for part in rest[1:]] == [5, 9]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start_index": -1}, "start_index"),
        ({"tree_size": -1}, "tree_size"),
        ({"start_index": 1}, "tree_size"),
        ({"start_index": 1, "tree_size": 77}, "tree_size"),
    ],
)
async def test_bad_export_requests(audit: Audit, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RemitError) as raised:
        await audit.export(**fields)
    assert [v.field for v in raised.value.violations] == [field]


async def test_an_export_that_starts_beyond_its_end(audit: Audit) -> None:
    size = (await audit.export())[0].checkpoint.tree_size
    with pytest.raises(RemitError) as raised:
        await audit.export(start_index=size + 1, tree_size=size)
    assert [v.field for v in raised.value.violations] == ["start_index"]


async def test_proofs_verify_against_the_checkpoints(audit: Audit) -> None:
    await audit.append(*(admin(f"a-{n}") for n in range(5)))
    old = (await audit.ask("GetCheckpoint", min_tree_size=5)).checkpoint
    await audit.append(*(admin(f"b-{n}") for n in range(6)))
    new = (await audit.ask("GetCheckpoint", min_tree_size=11)).checkpoint
    proof = await audit.ask("GetInclusionProof", leaf_index=3, tree_size=11)
    merkle.verify_inclusion(proof.leaf_hash, 3, 11, list(proof.hashes), new.root_hash)
    grown = await audit.ask("GetConsistencyProof", first_tree_size=5, second_tree_size=11)
    merkle.verify_consistency(5, 11, old.root_hash, new.root_hash, list(grown.hashes))
    with pytest.raises(merkle.ProofError):
        merkle.verify_inclusion(proof.leaf_hash, 3, 5, list(proof.hashes), old.root_hash)


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("GetCheckpoint", {"min_tree_size": -1}, "min_tree_size"),
        ("GetCheckpoint", {"min_tree_size": 99}, "min_tree_size"),
        ("GetInclusionProof", {"leaf_index": 0, "tree_size": 99}, "tree_size"),
        ("GetInclusionProof", {"leaf_index": 0, "tree_size": 0}, "tree_size"),
        ("GetInclusionProof", {"leaf_index": 1, "tree_size": 1}, "leaf_index"),
        ("GetInclusionProof", {"leaf_index": -1, "tree_size": 1}, "leaf_index"),
        ("GetConsistencyProof", {"first_tree_size": 0, "second_tree_size": 1}, "first_tree_size"),
        ("GetConsistencyProof", {"first_tree_size": 1, "second_tree_size": 99}, "second_tree_size"),
        ("GetConsistencyProof", {"first_tree_size": 2, "second_tree_size": 1}, "first_tree_size"),
    ],
)
async def test_proofs_that_do_not_exist(
    audit: Audit, method: str, fields: dict[str, int], field: str
) -> None:
    await audit.append(admin("a-1"))
    with pytest.raises(RemitError) as raised:
        await audit.ask(method, **fields)
    assert [v.field for v in raised.value.violations] == [field]


async def test_reading_without_a_remit_is_refused(audit: Audit) -> None:
    stub = audit.mesh.as_caller(PUBLIC).stub(audit_query_service_pb2_grpc.AuditQueryServiceStub)
    with pytest.raises(RemitError) as raised:
        await stub.ListEvents(query_pb2.ListEventsRequest())
    assert raised.value.reason_name == "REMIT_INVALID"
    assert (await audit.list_events()).events == []


# ------------------------------------------------------------------------- rotation


def operator_events(leaves: list[bytes]) -> list[dict[str, Any]]:
    read = [json.loads(leaf) for leaf in leaves]
    return [leaf for leaf in read if leaf["org"] == "orgs/operator"]


async def test_replicas_with_two_keys_serve_one_log(audit: Audit, tmp_path: Path) -> None:
    """A rolling restart: the first replica still has the old key, the second the new one."""
    first_key = _public_key(audit)
    await audit.append(intent("e-1"))
    old = (await audit.ask("GetCheckpoint", min_tree_size=1)).checkpoint
    rotate_log_key(audit.settings.keys_dir, datetime.now(UTC))
    await audit.append_outcomes(outcome("e-1-outcome"))
    between = (await audit.ask("GetCheckpoint", min_tree_size=2)).checkpoint
    async with serving(audit.settings) as second:
        assert (await second.ask("GetCheckpoint")).checkpoint.tree_size == 3, "and its rotation"
        await audit.append(admin("a-1"))
        asked = await audit.ask("GetCheckpoint", min_tree_size=4)
    new = asked.checkpoint
    signers = [signing_keys(each.signed_note).pop()[1] for each in (old, between, new)]
    keys = [Verifier.parse(text).key_id for text in (first_key, first_key, _public_key(audit))]
    assert signers == keys
    path = await _exported(audit, tmp_path)
    for key in (first_key, _public_key(audit)):
        for earlier in (old, between, new):
            report = verify_export(path, key, earlier.signed_note)
            assert report.earlier_tree_size == earlier.tree_size
    assert KeyChain.read(Verifier.parse(first_key), asked.key_rotations).open_checkpoint(
        new.signed_note
    )


async def test_a_rotation_is_recorded_once(audit: Audit) -> None:
    rotation = rotate_log_key(audit.settings.keys_dir, datetime.now(UTC))
    leaves: list[bytes] = []
    for _ in range(2):
        async with serving(audit.settings) as replica:
            leaves = [leaf for part in await replica.export() for leaf in part.leaves]
    [event] = operator_events(leaves)
    assert (event["kind"], event["action"]) == ("ADMIN", "audit.rotate_key")
    assert (event["resource"], event["reporter"]) == (rotation.new.name, "audit")


async def test_a_resumed_export_keeps_the_checkpoint_of_the_old_key(audit: Audit) -> None:
    await audit.append(*(admin(f"a-{n}") for n in range(3)))
    whole = await audit.export()
    rotate_log_key(audit.settings.keys_dir, datetime.now(UTC))
    async with serving(audit.settings) as second:
        size = whole[0].checkpoint.tree_size
        rest = await second.export(start_index=2, tree_size=size)
    assert rest[0].checkpoint == whole[0].checkpoint


async def test_a_replica_without_the_new_key_files_says_so_and_appends(
    audit: Audit, tmp_path: Path
) -> None:
    shutil.copytree(audit.settings.keys_dir, tmp_path / "handed out")
    rotate_log_key(tmp_path / "handed out", datetime.now(UTC))
    settings = audit.settings.model_copy(update={"keys_dir": tmp_path / "handed out"})
    async with serving(settings):
        with pytest.raises(RemitError, match="give this replica the new key files") as raised:
            await audit.ask("GetCheckpoint")
        assert raised.value.reason_name == "CONFIGURATION_INVALID"
        assert await audit.append(intent("e-1")) == [1]
        shutil.rmtree(audit.settings.keys_dir)
        shutil.copytree(tmp_path / "handed out", audit.settings.keys_dir)
        assert (await audit.ask("GetCheckpoint", min_tree_size=2)).checkpoint.tree_size == 2


# ----------------------------------------------------------------------------- start


async def test_a_missing_key_file_stops_the_start(tmp_path: Path) -> None:
    settings = AuditSettings(keys_dir=tmp_path / "nothing")
    mesh = MemoryMesh(PATIENCE).as_caller(AUDIT)
    with pytest.raises(RemitError, match=r"log\.key is missing") as raised:
        async with open_service(settings, mesh, clock=CLOCK, ids=SystemIds()):  # type: ignore[arg-type]
            pass
    assert raised.value.reason_name == "CONFIGURATION_INVALID"


async def test_keys_of_another_log_stop_the_start(audit: Audit, tmp_path: Path) -> None:
    make_log_keys(tmp_path / "other")
    settings = audit.settings.model_copy(update={"keys_dir": tmp_path / "other"})
    mesh = MemoryMesh(PATIENCE).as_caller(AUDIT)
    with pytest.raises(RemitError, match="did not sign") as raised:
        async with open_service(settings, mesh, clock=CLOCK, ids=SystemIds()):  # type: ignore[arg-type]
            pass
    assert raised.value.reason_name == "CONFIGURATION_INVALID"
    assert ORG
