"""What attempts leave is sealed: unreadable after an erasure, and no reason to repeat anything."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects import EffectRequest, EffectResult, Outcome, Permit
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, replica, settled_down
from tests.waiting import eventually

ALICE = "orgs/acme/users/alice"
SECRET = "the tide at noon"


@pytest.fixture
async def claims(database: OpenDatabase) -> Database:
    return await database("tools")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def one(claims: Database, world: World) -> Replica:
    return another("one", claims, world)


def another(name: str, claims: Database, world: World) -> Replica:
    return replica(ClaimStore(claims, owner=name, lease_s=LEASE_S), world)


async def perform(here: Replica, world: World, request: EffectRequest | None = None) -> bytes:
    async def effect(permit: Permit) -> EffectResult:
        return replace(await world.effect(permit), payload=SECRET.encode())

    with a_call():
        return (await here.gate.perform(request or a_request(), effect)).payload


async def failing(here: Replica, world: World, key: str = "key") -> None:
    async def effect(permit: Permit) -> EffectResult:
        await world.effect(permit)
        error = RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, SECRET)
        return EffectResult(Outcome.FAILED, usage_pb2.Usage(calls=1), error=error)

    with a_call(), pytest.raises(RemitError, match=SECRET):
        await here.gate.perform(a_request(key), effect)


async def refused(here: Replica, world: World, request: EffectRequest | None = None) -> RemitError:
    """Why a call does not get its answer."""
    with pytest.raises(RemitError) as caught:
        await perform(here, world, request)
    return caught.value


async def lies_there(claims: Database, text: str) -> bool:
    """Whether a text is in a column of any row."""
    rows = await claims.fetch("SELECT * FROM effect_attempts JOIN effect_claims USING (claim)")
    values = [value for row in rows for value in row.values()]
    raw = [each if isinstance(each, bytes) else str(each).encode() for each in values]
    return any(text.encode() in each for each in raw)


async def unsealed(claims: Database, result: bytes) -> None:
    """The only attempt, as it was stored before ends were sealed."""
    await claims.execute(
        "UPDATE effect_attempts SET is_sealed = false, sealed_digest = NULL, error = '',"
        " result = $1",
        result,
    )


def outcomes(world: World) -> list[event_pb2.Event]:
    return [event for event in world.events.values() if event.outcome]


@pytest.fixture
async def left_open(claims: Database, world: World) -> AsyncIterator[None]:
    """A result and an error that a dead replica did not close."""
    dead = another("dead", claims, world)
    dead.closer.close_soon = lambda ended: None  # type: ignore[method-assign]
    await perform(dead, world)
    await failing(dead, world, "fails")
    yield
    assert sum(world.touched.values()) == 2


async def swept(here: Replica) -> None:
    async def all_closed() -> bool:
        await here.closer.sweep()
        return not await here.store.unclosed(older_than_s=0)

    await eventually(all_closed)


# ------------------------------------------------------------------------------- stored


async def test_nothing_of_it_lies_in_the_claims(
    one: Replica, world: World, claims: Database
) -> None:
    assert await perform(one, world) == SECRET.encode()
    await failing(one, world, "fails")
    assert await lies_there(claims, "tools/send_email")
    assert not await lies_there(claims, SECRET)
    await unsealed(claims, SECRET.encode())
    assert await lies_there(claims, SECRET), "it would have been found"


async def test_why_it_was_refused_is_sealed(one: Replica, world: World, claims: Database) -> None:
    world.denied = True
    assert (await refused(one, world)).message == "because"
    row = await claims.fetchrow("SELECT state, is_sealed, error FROM effect_attempts")
    assert row is not None
    assert (row["state"], row["is_sealed"]) == ("REFUSED", True)
    assert b"because" not in row["error"]


async def test_an_attempt_keeps_no_key_but_its_own(
    one: Replica, world: World, claims: Database
) -> None:
    """What is sealed opens in its own place alone."""
    await perform(one, world, a_request("a"))
    await perform(one, world, a_request("b"))
    await claims.execute(
        "UPDATE effect_attempts a SET result = b.result, sealed_digest = b.sealed_digest"
        " FROM effect_attempts b WHERE a.claim <> b.claim"
    )
    for key in ("a", "b"):
        assert (await refused(one, world, a_request(key))).reason_name == "DATA_CORRUPT"
    assert sum(world.touched.values()) == 2


async def test_what_is_older_is_read_and_dropped_as_it_was(
    one: Replica, world: World, claims: Database
) -> None:
    asked = a_request()
    agent = options_pb2.CALLER_AGENT
    asked = replace(asked, remit=replace(asked.remit, presenter=agent))
    await perform(one, world, asked)
    await unsealed(claims, b"old")
    assert await perform(one, world, asked) == b"old"
    claim = await claims.fetchval("SELECT claim FROM effect_claims")
    assert [s.code for s in await one.gate.acknowledge([f"claims/{claim}"], agent)] == [0]
    assert (await refused(one, world, asked)).reason_name == "RESULT_NOT_KEPT"
    assert sum(world.touched.values()) == 1


# -------------------------------------------------------------------------------- keys


async def test_without_a_key_nothing_starts(one: Replica, world: World, claims: Database) -> None:
    world.subjects.away = True
    assert (await refused(one, world)).reason_name == "DEPENDENCY_UNAVAILABLE"
    await settled_down(one)
    assert not world.touched
    assert not world.open_holds()
    row = await claims.fetchrow("SELECT state, is_sealed, closed_time FROM effect_attempts")
    assert row is not None
    assert (row["state"], row["is_sealed"]) == ("REFUSED", False)
    world.subjects.away = False
    assert await perform(one, world) == SECRET.encode()


async def test_a_subject_costs_one_question_and_no_later_one(one: Replica, world: World) -> None:
    for number in range(10):
        await perform(one, world, a_request(f"{number}"))
    assert world.subjects.batches == [[(ALICE, b"")]]


async def test_the_key_is_in_hand_before_the_start(one: Replica, world: World) -> None:
    async def effect(permit: Permit) -> EffectResult:
        world.subjects.away = True
        world.subjects.erase(ALICE)
        return replace(await world.effect(permit), payload=SECRET.encode())

    world.subjects.remember_s = 0
    with a_call():
        assert (await one.gate.perform(a_request(), effect)).payload == SECRET.encode()


# ------------------------------------------------------------------------------ erasure


async def test_after_an_erasure_a_key_answers_that_and_does_nothing_again(
    one: Replica, world: World, claims: Database
) -> None:
    world.subjects.remember_s = 0
    await perform(one, world)
    await failing(one, world, "fails")
    world.subjects.erase(ALICE)
    for here in (one, another("two", claims, world)):
        for key in ("key", "fails"):
            error = await refused(here, world, a_request(key))
            assert error.reason_name == "SUBJECT_ERASED"
            assert error.metadata["claim"].startswith("claims/")
    assert sum(world.touched.values()) == 2
    assert await perform(one, world, a_request("new")) == SECRET.encode(), "under a new key"
    assert await perform(one, world, a_request("new")) == SECRET.encode()


async def test_a_digest_of_what_is_not_kept_goes_too(one: Replica, world: World) -> None:
    world.subjects.remember_s = 0
    asked = a_request()
    agent = options_pb2.CALLER_AGENT
    asked = replace(asked, remit=replace(asked.remit, presenter=agent))
    with a_call():
        claim = (await one.gate.perform(asked, world.effect)).claim
    await one.gate.acknowledge([claim], agent)
    assert (await refused(one, world, asked)).reason_name == "RESULT_NOT_KEPT"
    world.subjects.erase(ALICE)
    error = await refused(one, world, asked)
    assert error.reason_name == "SUBJECT_ERASED"
    assert "result_sha256" not in error.metadata


async def test_while_audit_is_away_a_key_answers_that(one: Replica, world: World) -> None:
    world.subjects.remember_s = 0
    await perform(one, world)
    world.subjects.away = True
    assert (await refused(one, world)).reason_name == "DEPENDENCY_UNAVAILABLE"
    world.subjects.away = False
    assert await perform(one, world) == SECRET.encode()
    assert sum(world.touched.values()) == 1


# ------------------------------------------------------------------------------- closing


@pytest.mark.usefixtures("left_open")
async def test_who_closes_what_died_tells_the_log_all_of_it(one: Replica, world: World) -> None:
    await swept(one)
    assert not world.open_holds()
    details = {e.outcome: json.loads(e.detail_json) for e in outcomes(world)}
    assert details[event_pb2.OUTCOME_FAILED]["message"] == SECRET
    assert len(details[event_pb2.OUTCOME_SUCCEEDED]["result_sha256"]) == 64
    assert not any("erased" in detail for detail in details.values())
    assert len(world.subjects.batches) == 2, "one of the dead replica, one of this"


@pytest.mark.usefixtures("left_open")
async def test_what_an_erased_subject_left_open_is_closed_without_its_key(
    one: Replica, world: World
) -> None:
    world.subjects.erase(ALICE)
    await swept(one)
    assert not world.open_holds()
    details = [json.loads(event.detail_json) for event in outcomes(world)]
    assert [detail["erased"] for detail in details] == [True, True]
    assert SECRET not in repr(details)
    assert {detail["result_sha256"] for detail in details} == {""}


@pytest.mark.usefixtures("left_open")
async def test_money_waits_for_no_key(one: Replica, world: World, claims: Database) -> None:
    world.subjects.away = True

    async def settled() -> bool:
        await one.closer.sweep()
        return not world.open_holds()

    await eventually(settled)
    assert not outcomes(world)
    assert await claims.fetchval("SELECT count(*) FROM effect_attempts WHERE closed_time IS NULL")
    world.subjects.away = False
    await swept(one)
    assert len(outcomes(world)) == 2


@pytest.mark.usefixtures("left_open")
async def test_what_is_damaged_is_closed(one: Replica, world: World, claims: Database) -> None:
    await claims.execute(
        "UPDATE effect_attempts"
        " SET sealed_digest = set_byte(sealed_digest, 40, get_byte(sealed_digest, 40) # 1)"
        " WHERE outcome = 'SUCCEEDED'"
    )
    await claims.execute("UPDATE effect_attempts SET error = 'noise' WHERE outcome = 'FAILED'")
    await swept(one)
    assert not world.open_holds()
    assert all(json.loads(event.detail_json)["erased"] for event in outcomes(world))
