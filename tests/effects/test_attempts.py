"""What is told of attempts: each state as it is, by durations of one clock, and nothing changed."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.effects.v1.attempt_pb2 import Attempt, AttemptKey
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.effects.attempts import MAX_KEYS, AttemptReader
from remit.effects.settings import EffectSettings
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import (
    LEASE_S,
    Replica,
    World,
    a_call,
    a_request,
    replica,
    settings,
    settled_down,
)

ALL = AttemptKey()


@pytest.fixture
async def claims(database: OpenDatabase) -> Database:
    return await database("tools")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def one(claims: Database, world: World) -> Replica:
    return replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)


@pytest.fixture
def reader(claims: Database) -> AttemptReader:
    return AttemptReader(claims, settings())


async def performed(one: Replica, world: World, key: str = "key") -> AttemptKey:
    with a_call():
        outcome = await one.gate.perform(a_request(key), world.effect)
    await settled_down(one)
    return AttemptKey(claim=outcome.claim, attempt=outcome.attempt)


async def test_a_settled_effect_says_what_it_was_billed(
    one: Replica, world: World, reader: AttemptReader
) -> None:
    key = await performed(one, world)
    (told,) = await reader.these([key])
    assert told.key == key
    assert (told.state, told.outcome) == (Attempt.STATE_CLOSED, event_pb2.OUTCOME_SUCCEEDED)
    assert (told.hold_nanos, told.cost_nanos, told.org) == (100, 100, "orgs/acme")
    assert told.used == usage_pb2.Usage(calls=1)
    assert (told.run, told.action, told.resource) == ("", "tools.call", "tools/send_email")
    assert told.decision == f"decisions/{key.claim}-1"
    assert told.HasField("intent_leaf_index")
    assert told.HasField("closed_for")
    assert told.HasField("ended_for")
    assert not told.HasField("lapsed_for")
    assert told.age.ToTimedelta() >= told.ended_for.ToTimedelta()


async def test_a_refused_effect_held_nothing(
    one: Replica, world: World, reader: AttemptReader
) -> None:
    world.denied = True
    with a_call(), pytest.raises(RemitError) as caught:
        await one.gate.perform(a_request(), world.effect)
    await settled_down(one)
    (told,) = (await reader.between(ALL, ALL, 0)).attempts
    assert told.state == Attempt.STATE_REFUSED
    assert caught.value.metadata["claim"] == told.key.claim
    assert not told.HasField("intent_leaf_index")
    assert not told.HasField("hold_nanos")
    assert not told.HasField("used")


async def test_a_lapsed_lease_and_a_doubt_say_for_how_long(
    one: Replica, world: World, reader: AttemptReader, claims: Database
) -> None:
    key = await performed(one, world)
    await claims.execute(
        "UPDATE effect_attempts SET state = 'STARTED', outcome = NULL, closed_time = NULL,"
        " used = NULL, lease_expires = clock_timestamp() - interval '1 minute'"
    )
    (told,) = await reader.these([key])
    assert (told.state, told.outcome) == (Attempt.STATE_STARTED, event_pb2.OUTCOME_UNSPECIFIED)
    assert told.lapsed_for.ToTimedelta() >= timedelta(minutes=1)
    assert not told.HasField("ended_for")
    await one.store.lapse()
    (told,) = await reader.these([key])
    assert (told.state, told.outcome) == (Attempt.STATE_IN_DOUBT, event_pb2.OUTCOME_IN_DOUBT)
    assert told.HasField("ended_for")
    assert not told.HasField("closed_for")
    await claims.execute("UPDATE effect_attempts SET state = 'CLAIMED', outcome = NULL")
    await claims.execute(
        "UPDATE effect_attempts SET lease_expires = clock_timestamp() + interval '1 minute'"
    )
    (told,) = await reader.these([key])
    assert not told.HasField("lapsed_for")


async def test_what_there_is_not_is_unknown(
    one: Replica, world: World, reader: AttemptReader
) -> None:
    key = await performed(one, world)
    asked = [
        AttemptKey(claim=f"claims/{uuid.uuid4()}", attempt=1),
        AttemptKey(claim=key.claim, attempt=2),
        key,
    ]
    told = await reader.these(asked)
    assert [each.key for each in told] == asked
    states = [Attempt.STATE_UNKNOWN, Attempt.STATE_UNKNOWN, Attempt.STATE_CLOSED]
    assert [each.state for each in told] == states
    assert await reader.these([]) == []


async def test_a_span_is_read_page_by_page(
    one: Replica, world: World, reader: AttemptReader
) -> None:
    keys = [await performed(one, world, f"key {number}") for number in range(5)]
    keys.sort(key=lambda key: key.claim)
    first = await reader.between(ALL, ALL, 2)
    assert ([each.key for each in first.attempts], first.has_more) == (keys[:2], True)
    rest = await reader.between(keys[1], ALL, 3)
    assert ([each.key for each in rest.attempts], rest.has_more) == (keys[2:], False)
    span = await reader.between(keys[0], keys[3], 0)
    assert ([each.key for each in span.attempts], span.has_more) == (keys[1:4], False)


async def test_reading_changes_nothing(
    one: Replica, world: World, reader: AttemptReader, claims: Database
) -> None:
    key = await performed(one, world)
    await claims.execute(
        "UPDATE effect_attempts SET state = 'STARTED', outcome = NULL, closed_time = NULL,"
        " lease_expires = clock_timestamp() - interval '1 year'"
    )
    before = await claims.fetch("SELECT * FROM effect_attempts")
    await reader.these([key])
    await reader.between(ALL, ALL, 0)
    assert await claims.fetch("SELECT * FROM effect_attempts") == before


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        ([AttemptKey(claim="claims/x", attempt=0)], {"keys[0].claim", "keys[0].attempt"}),
        ([AttemptKey(claim=f"claims/{uuid.UUID(int=1)}", attempt=1)] * (MAX_KEYS + 1), {"keys"}),
    ],
)
async def test_what_is_no_batch_of_keys_is_refused(
    reader: AttemptReader, keys: list[AttemptKey], fields: set[str]
) -> None:
    with pytest.raises(RemitError) as refused:
        await reader.these(keys)
    assert refused.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert {violation.field for violation in refused.value.violations} == fields


async def test_what_is_no_span_is_refused(reader: AttemptReader) -> None:
    for after, through, size in (
        (AttemptKey(claim="x", attempt=1), ALL, 0),
        (ALL, AttemptKey(claim="claims/x", attempt=1), 0),
        (ALL, ALL, -1),
    ):
        with pytest.raises(RemitError) as refused:
            await reader.between(after, through, size)
        assert refused.value.reason == reasons.ERROR_REASON_INVALID_REQUEST


def test_the_bound_of_the_lag_follows_from_the_settings() -> None:
    chosen = EffectSettings(effect_lease_s=10, effect_sweep_s=2, effect_closing_linger_s=0.1)
    assert chosen.closing_bound_s == pytest.approx(10 + 4 * 2 + 3 * (0.1 + 5))
    shorter = EffectSettings(effect_lease_s=2, effect_sweep_s=1, effect_closing_linger_s=0)
    assert shorter.closing_bound_s == pytest.approx(2 + 4 + 15)
