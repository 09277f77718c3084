"""Keys that other areas are given: their own, nobody else's, and none once a subject is erased."""

from __future__ import annotations

import hmac
import json

import asyncpg
import pytest

from remit.access import USE_SUBJECT_KEY
from remit.access_recorder import AccessRecorder
from remit.api.audit.v1 import event_pb2, privacy_service_pb2, subject_key_service_pb2_grpc
from remit.api.audit.v1 import subject_key_service_pb2 as keys_pb2
from remit.api.options.v1 import options_pb2
from remit.audit.key_files import load_log_keys
from remit.audit.sealing import Pseudonyms, SubjectKey, area_key
from remit.rpc.errors import RemitError
from tests.audit.events import ALICE, BOB
from tests.audit.test_service import AGENT, AUDIT, PUBLIC, TOOLS, Audit, audit, intent
from tests.conftest import PostgresCluster
from tests.waiting import eventually

__all__ = ["audit"]
INFERENCE = options_pb2.CALLER_INFERENCE


async def ask(
    audit: Audit,
    *asked: tuple[str, bytes],
    caller: options_pb2.Caller.ValueType = TOOLS,
) -> list[keys_pb2.SubjectKeyResult]:
    stub = audit.mesh.as_caller(caller).stub(subject_key_service_pb2_grpc.SubjectKeyServiceStub)
    requests = [keys_pb2.SubjectKeyRequest(subject=s, key_id=key_id) for s, key_id in asked]
    response = await stub.GetSubjectKeys(keys_pb2.GetSubjectKeysRequest(requests=requests))
    return list(response.results)


def reason(result: keys_pb2.SubjectKeyResult) -> str:
    return RemitError.from_status(result.error).reason_name


async def test_a_key_is_made_once_and_is_the_areas_own(audit: Audit) -> None:
    [first, again] = await ask(audit, (ALICE, b""), (ALICE, b""))
    assert first == again
    assert (len(first.key.key_id), len(first.key.area_key)) == (8, 32)
    assert first.key.HasField("remember_for")
    [read] = await ask(audit, (ALICE, first.key.key_id))
    assert read == first
    found = [
        (await ask(audit, (subject, b""), caller=caller))[0].key.area_key
        for caller in (TOOLS, INFERENCE, AGENT)
        for subject in (ALICE, BOB)
    ]
    assert len(set(found)) == 6
    assert first.key.area_key in found


def test_an_areas_key_is_none_of_the_logs() -> None:
    """Its derivation begins as no other of the same key does."""
    key = SubjectKey(b"generat1", b"s" * 32)
    derived = hmac.digest(b"s" * 32, b"remit/area/v1\0tools", "sha256")
    assert area_key(key, "tools") == derived
    assert area_key(key, "tools") != area_key(key, "agent")
    assert area_key(key, "tools") != area_key(SubjectKey(b"generat1", b"t" * 32), "tools")


async def test_after_an_erasure_the_key_is_gone_for_every_area(audit: Audit) -> None:
    await audit.append(intent("e-1"))
    [before] = await ask(audit, (ALICE, b""))
    [others] = await ask(audit, (BOB, b""))
    await audit.erase(privacy_service_pb2.EraseSubjectRequest(subject=ALICE, request_id="r-1"))
    for caller in (TOOLS, INFERENCE, AGENT):
        gone, kept = await ask(
            audit, (ALICE, before.key.key_id), (BOB, others.key.key_id), caller=caller
        )
        assert reason(gone) == "SUBJECT_ERASED"
        assert kept.key.key_id == others.key.key_id
    gone, new, gone_still = await ask(
        audit, (ALICE, before.key.key_id), (ALICE, b""), (ALICE, before.key.key_id)
    )
    assert new.key.key_id != before.key.key_id
    assert new.key.area_key != before.key.area_key
    assert [reason(gone), reason(gone_still)] == ["SUBJECT_ERASED"] * 2


async def test_a_subject_that_areas_alone_know_can_be_erased(audit: Audit) -> None:
    [before] = await ask(audit, (ALICE, b""))
    await audit.erase(privacy_service_pb2.EraseSubjectRequest(subject=ALICE, request_id="r-1"))
    assert reason((await ask(audit, (ALICE, before.key.key_id)))[0]) == "SUBJECT_ERASED"


async def test_to_read_makes_no_key(audit: Audit) -> None:
    assert reason((await ask(audit, (ALICE, b"8 random")))[0]) == "SUBJECT_ERASED"
    [made] = await ask(audit, (ALICE, b""))
    assert made.key.key_id != b"8 random"


async def test_bad_requests_fail_alone(audit: Audit) -> None:
    results = await ask(audit, ("alice", b""), (ALICE, b""), (ALICE, b"short"), ("", b"x"))
    assert [r.WhichOneof("result") for r in results] == ["error", "key", "error", "error"]
    assert {reason(results[n]) for n in (0, 2, 3)} == {"INVALID_REQUEST"}


@pytest.mark.parametrize("count", [0, 257])
async def test_too_few_or_too_many(audit: Audit, count: int) -> None:
    with pytest.raises(RemitError, match="requests") as caught:
        await ask(audit, *[(ALICE, b"")] * count)
    assert caught.value.reason_name == "INVALID_REQUEST"


async def test_as_many_as_are_allowed_fit(audit: Audit) -> None:
    users = [(f"orgs/acme/users/{'u' * 50}{n}", b"") for n in range(256)]
    assert len({r.key.key_id for r in await ask(audit, *users)}) == 256
    gone = [(user, b"8 random") for user, _ in users]
    assert {reason(r) for r in await ask(audit, *gone)} == {"SUBJECT_ERASED"}


@pytest.mark.parametrize("caller", [PUBLIC, AUDIT, options_pb2.CALLER_COST])
async def test_nobody_else_is_given_a_key(
    audit: Audit, caller: options_pb2.Caller.ValueType
) -> None:
    with pytest.raises(RemitError) as caught:
        await ask(audit, (ALICE, b""), caller=caller)
    assert caught.value.reason_name == "CALLER_NOT_ALLOWED"


async def test_a_damaged_key_fails_alone(audit: Audit, postgres: PostgresCluster) -> None:
    await ask(audit, (ALICE, b""), (BOB, b""))
    name = audit.settings.keys_dsn.split("?")[0].rsplit("/", 1)[1]
    owner = await asyncpg.connect(postgres.dsn(name, "remit_audit_keys_owner"))
    changed = await owner.execute(
        "UPDATE subject_keys SET key_id = '\\x0102030405060708' WHERE subject_pseudonym = $1",
        Pseudonyms(load_log_keys(audit.settings.keys_dir).pseudonym).of(ALICE),
    )
    await owner.close()
    assert changed == "UPDATE 1"
    results = await ask(audit, (ALICE, b""), (BOB, b""), ("orgs/acme/users/carol", b""))
    assert reason(results[0]) == "DATA_CORRUPT"
    assert [r.WhichOneof("result") for r in results[1:]] == ["key", "key"]


async def test_who_is_given_a_key_of_whom_is_in_the_log_once_an_interval(audit: Audit) -> None:
    [refused] = await ask(audit, (BOB, b"8 random"))
    assert reason(refused) == "SUBJECT_ERASED"
    for caller in (TOOLS, INFERENCE, TOOLS):
        await ask(audit, (ALICE, b""), caller=caller)

    async def told() -> list[event_pb2.Event]:
        events = [logged.event for logged in (await audit.list_events()).events]
        found = [event for event in events if event.action == USE_SUBJECT_KEY]
        return found if len(found) == 2 else []

    found = await eventually(told)
    assert {event.subject for event in found} == {ALICE}
    assert {event.kind for event in found} == {event_pb2.EVENT_KIND_ACCESS}
    assert {event.outcome for event in found} == {event_pb2.OUTCOME_SUCCEEDED}
    details = [json.loads(event.detail_json) for event in found]
    assert {detail["asked_by"] for detail in details} == {"tools", "inference"}
    assert {name for detail in details for name in detail["methods"]} == {
        "/remit.api.audit.v1.SubjectKeyService/GetSubjectKeys"
    }


async def test_a_key_of_which_the_log_cannot_be_told_is_not_given(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccessRecorder, "_has_room", lambda *_, **__: False)
    [result] = await ask(audit, (ALICE, b""))
    assert reason(result) == "OVERLOADED"
