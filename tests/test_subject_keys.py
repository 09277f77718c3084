"""An area's keys of subjects: what is sealed opens in its place alone, and not after an erasure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit import subject_keys
from remit.api.audit.v1 import subject_key_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import RemitVerifier
from remit.subject_keys import OVERHEAD_BYTES, AreaKey, SubjectKeys, is_erased, key_id_of
from tests.effects.world import NoKeys
from tests.subject_keys import SubjectKeyService, Subjects
from tests.waiting import PATIENCE, eventually

ALICE, BOB = "orgs/acme/users/alice", "orgs/acme/users/bob"
KEY = AreaKey(b"generat1", bytes(range(32)))
NONCE = b"n" * 12


class Clock(SystemClock):
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.elapsed_s = 1000.0

    def monotonic(self) -> float:
        return self.elapsed_s


class Area:
    """One replica of an area."""

    def __init__(self, subjects: Subjects, caller: options_pb2.Caller.ValueType) -> None:
        mesh = MemoryMesh(PATIENCE)
        guard = Guard(
            audience=options_pb2.CALLER_AUDIT,
            verifier=RemitVerifier(NoKeys(), SystemClock()),
            clock=SystemClock(),
            max_in_flight=1000,
        )
        mesh.add(
            guard,
            subject_key_service_pb2_grpc.add_SubjectKeyServiceServicer_to_server,
            SubjectKeyService(subjects),
        )
        stub = mesh.as_caller(caller).stub(subject_key_service_pb2_grpc.SubjectKeyServiceStub)
        self.clock = Clock()
        self.keys = SubjectKeys(stub, self.clock)


@pytest.fixture
def subjects() -> Subjects:
    return Subjects()


@pytest.fixture
def area(subjects: Subjects) -> Area:
    return Area(subjects, options_pb2.CALLER_TOOLS)


# ------------------------------------------------------------------------------ sealing


@given(st.binary(max_size=300), st.binary(max_size=40), st.binary(max_size=10))
def test_what_is_sealed_opens_in_its_place_alone(clear: bytes, record: bytes, part: bytes) -> None:
    nonce = os.urandom(12)
    sealed = KEY.of_record(record).seal(clear, part=part, nonce=nonce)
    assert len(sealed) == len(clear) + OVERHEAD_BYTES
    assert KEY.of_record(record).open(sealed, part=part) == clear
    for other in (
        KEY.of_record(record + b"x"),
        AreaKey(KEY.key_id, b"x" * 32).of_record(record),
        AreaKey(b"generat2", KEY.secret).of_record(record),
    ):
        with pytest.raises(RemitError) as caught:
            other.open(sealed, part=part)
        assert caught.value.reason_name == "DATA_CORRUPT"
    with pytest.raises(RemitError, match="damaged or moved"):
        KEY.of_record(record).open(sealed, part=part + b"x")


def test_every_bit_that_is_changed_is_noticed() -> None:
    sealed = KEY.seal(b"secret", bound_to=b"claim", nonce=NONCE)
    for place in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[place] ^= 1
        with pytest.raises(RemitError) as caught:
            KEY.open(bytes(damaged), bound_to=b"claim")
        assert caught.value.reason_name == "DATA_CORRUPT"
    assert KEY.open(sealed, bound_to=b"claim") == b"secret"


def test_the_head_names_the_key() -> None:
    sealed = KEY.seal(b"", bound_to=b"claim", nonce=NONCE)
    assert key_id_of(sealed) == b"generat1"
    assert KEY.opens(sealed)
    assert not AreaKey(b"generat2", KEY.secret).opens(sealed)
    for clear in (b"", b"clear", b"\x01" + b"short", b"\x02" + sealed[1:]):
        with pytest.raises(RemitError, match="no form that is known"):
            key_id_of(clear)


def test_no_secret_is_shown() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret)[2:10] not in repr(KEY)


# ------------------------------------------------------------------------------ keys


async def test_a_key_is_asked_for_once_and_used_for_its_time(
    subjects: Subjects, area: Area
) -> None:
    key = await area.keys.for_writing(ALICE)
    assert key == AreaKey(subjects.key_id(ALICE), subjects.area_key(ALICE))
    assert await area.keys.for_reading(ALICE, key.key_id) is key
    assert area.keys.remembered(ALICE) is key
    subjects.erase(ALICE)
    area.clock.elapsed_s += 47.9
    assert await area.keys.for_writing(ALICE) is key, "four fifths of its time are not over"
    assert area.keys.sent == 1
    area.clock.elapsed_s += 0.1
    assert (await area.keys.for_writing(ALICE)).key_id != key.key_id
    assert area.keys.sent == 2


def answering(area: Area, answer: Callable[[Any], Awaitable[Any]]) -> None:
    """What the area asks is answered so."""
    stub = type("Stub", (), {"GetSubjectKeys": lambda _, request: answer(request)})
    area.keys._audit = stub()


async def test_the_time_counts_from_before_the_question(subjects: Subjects, area: Area) -> None:
    async def slowly(request: Any) -> Any:
        area.clock.elapsed_s += 48
        return await SubjectKeyService(subjects).GetSubjectKeys(request, None)

    answering(area, slowly)
    assert await area.keys.for_writing(ALICE)
    assert area.keys.remembered(ALICE) is None


async def test_a_key_is_out_of_memory_when_its_time_is_over() -> None:
    subjects = Subjects(remember_s=0.05)
    area = Area(subjects, options_pb2.CALLER_TOOLS)
    area.keys._clock = SystemClock()
    await area.keys.for_writing(ALICE)
    await eventually(lambda: not area.keys._keys)


async def test_what_was_erased_is_read_by_nobody(subjects: Subjects, area: Area) -> None:
    key = await area.keys.for_writing(ALICE)
    sealed = key.seal(b"secret", bound_to=b"claim", nonce=NONCE)
    assert await area.keys.opened(ALICE, sealed, bound_to=b"claim") == b"secret"
    subjects.erase(ALICE)
    other = Area(subjects, options_pb2.CALLER_TOOLS)
    for replica in (other, other):
        with pytest.raises(RemitError) as caught:
            await replica.keys.opened(ALICE, sealed, bound_to=b"claim")
        assert caught.value.reason_name == "SUBJECT_ERASED"
        assert is_erased(caught.value)
    assert other.keys.sent == 1, "what is gone is gone"
    new = await other.keys.for_writing(ALICE)
    fresh = new.seal(b"again", bound_to=b"claim", nonce=NONCE)
    assert await area.keys.opened(ALICE, fresh, bound_to=b"claim") == b"again"
    with pytest.raises(RemitError, match="erased"):
        await other.keys.opened(ALICE, sealed, bound_to=b"claim")


async def test_questions_at_once_are_one(subjects: Subjects, area: Area) -> None:
    users = [f"orgs/acme/users/u{n}" for n in range(300)]
    found = await asyncio.gather(*(area.keys.for_writing(user) for user in users * 3))
    assert [key.key_id for key in found] == [subjects.key_id(user) for user in users * 3]
    assert sum(len(batch) for batch in subjects.batches) == 300
    assert max(len(batch) for batch in subjects.batches) <= 256
    assert len(subjects.batches) <= 5


async def test_a_bad_question_fails_alone(subjects: Subjects, area: Area) -> None:
    subjects.erase(BOB)
    erased, written = await asyncio.gather(
        area.keys.for_reading(BOB, b"generat1"),
        area.keys.for_writing(ALICE),
        return_exceptions=True,
    )
    assert isinstance(erased, RemitError)
    assert isinstance(written, AreaKey)
    assert len(subjects.batches) == 1


async def test_without_an_answer_there_is_no_key(subjects: Subjects, area: Area) -> None:
    subjects.away = True
    found = await asyncio.gather(
        *(area.keys.for_writing(ALICE) for _ in range(2)), return_exceptions=True
    )
    assert [type(each) for each in found] == [RemitError, RemitError]
    assert found[0] is not found[1], "who adds to an error adds to the own one"
    assert {each.reason_name for each in found if isinstance(each, RemitError)} == {
        "DEPENDENCY_UNAVAILABLE"
    }
    subjects.away = False
    assert await area.keys.for_writing(ALICE)


async def test_who_leaves_takes_no_answer_from_others(subjects: Subjects, area: Area) -> None:
    leaving = asyncio.ensure_future(area.keys.for_writing(ALICE))
    staying = asyncio.ensure_future(area.keys.for_writing(ALICE))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).key_id == subjects.key_id(ALICE)
    assert len(subjects.batches) == 1


async def test_memory_is_bounded(area: Area, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_keys, "REMEMBERED", 3)
    users = [f"orgs/acme/users/u{n}" for n in range(10)]
    await asyncio.gather(*(area.keys.for_writing(user) for user in users))
    await asyncio.gather(
        *(area.keys.for_reading(user, b"generat1") for user in users), return_exceptions=True
    )
    assert len(area.keys._keys) == len(area.keys._erased) == 3


async def test_those_who_wait_are_bounded(
    subjects: Subjects, area: Area, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_keys, "MAX_WAITING", 2)
    users = [f"orgs/acme/users/u{n}" for n in range(4)]
    found = await asyncio.gather(
        *(area.keys.for_writing(user) for user in users), return_exceptions=True
    )
    assert [e.reason_name for e in found if isinstance(e, RemitError)] == ["OVERLOADED"] * 2
    assert await area.keys.for_writing(users[3])


@pytest.mark.parametrize("spoilt", ["key_id", "area_key", "another", "too few"])
async def test_an_answer_that_is_none_is_not_used(
    subjects: Subjects, area: Area, spoilt: str
) -> None:
    async def spoil(request: Any) -> Any:
        response = await SubjectKeyService(subjects).GetSubjectKeys(request, None)
        changes: dict[str, Callable[[], object]] = {
            "key_id": lambda: response.results[0].key.ClearField("key_id"),
            "area_key": lambda: response.results[0].key.ClearField("area_key"),
            "another": lambda: setattr(response.results[0].key, "key_id", b"8 others"),
            "too few": lambda: response.ClearField("results"),
        }
        changes[spoilt]()
        return response

    answering(area, spoil)
    with pytest.raises(RemitError) as caught:
        await area.keys.for_reading(ALICE, subjects.key_id(ALICE))
    assert caught.value.reason_name == "DEPENDENCY_UNAVAILABLE"
    assert area.keys.remembered(ALICE) is None
