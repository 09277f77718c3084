"""Results that their callers recorded: dropped for their owner alone, and never lost before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects import EffectRequest, EffectResult, Outcome, Permit
from remit.effects.steps import Change, Finish
from remit.effects.store import ClaimStore
from remit.names import claim_name
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, replica, settled_down
from tests.waiting import eventually

AGENT, PUBLIC = options_pb2.CALLER_AGENT, options_pb2.CALLER_PUBLIC
DIGEST = hashlib.sha256(b"answer").digest()


@pytest.fixture
async def claims(database: OpenDatabase) -> Database:
    return await database("tools")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def one(claims: Database, world: World) -> Replica:
    return replica(ClaimStore(claims, owner="one", lease_s=LEASE_S), world)


def of_agent(key: str = "key") -> EffectRequest:
    """A call that the agent service presents."""
    asked = a_request(key)
    return replace(asked, remit=replace(asked.remit, presenter=AGENT))


async def performed(one: Replica, world: World, request: EffectRequest) -> str:
    """The claim of an effect that succeeded."""
    with a_call():
        return (await one.gate.perform(request, world.effect)).claim


async def kept(world: World, claims: Database) -> list[tuple[bytes | None, bytes]]:
    """Result (None: dropped) and digest of every attempt, as its subject reads them."""
    rows = await claims.fetch(
        "SELECT claim, attempt, subject, result, sealed_digest, result_digest"
        " FROM effect_attempts ORDER BY claim"
    )
    found = []
    for row in rows:
        assert row["result_digest"] is None, "a digest in clear"
        key = world.subjects.key(row["subject"])
        record = key.of_record(f"claims/{row['claim']}/{row['attempt']}".encode())
        result = row["result"] and record.open(row["result"], part=b"result")
        found.append((result, record.open(row["sealed_digest"], part=b"digest")))
    return found


def reason_of(status: status_pb2.Status) -> str:
    return RemitError.from_status(status).reason_name if status.code else "OK"


async def test_a_recorded_result_is_dropped_and_its_digest_kept(
    one: Replica, world: World, claims: Database
) -> None:
    claim = await performed(one, world, of_agent())
    assert await one.gate.acknowledge([claim], AGENT) == [status_pb2.Status()]
    assert await kept(world, claims) == [(None, DIGEST)]


async def test_its_key_answers_where_the_result_is(one: Replica, world: World) -> None:
    claim = await performed(one, world, of_agent())
    await one.gate.acknowledge([claim], AGENT)
    with a_call(), pytest.raises(RemitError) as refused:
        await one.gate.perform(of_agent(), world.effect)
    assert refused.value.reason == reasons.ERROR_REASON_RESULT_NOT_KEPT
    assert refused.value.metadata == {"claim": claim, "result_sha256": DIGEST.hex()}
    assert sum(world.touched.values()) == 1, "it is not performed again"


async def test_to_say_it_twice_changes_nothing(
    one: Replica, world: World, claims: Database
) -> None:
    claim = await performed(one, world, of_agent())
    answers = [await one.gate.acknowledge([claim, claim], AGENT) for _ in range(3)]
    assert answers == [[status_pb2.Status()] * 2] * 3
    assert await kept(world, claims) == [(None, DIGEST)]


async def test_a_claim_of_another_presenter_is_as_if_it_did_not_exist(
    one: Replica, world: World, claims: Database
) -> None:
    foreign = await performed(one, world, a_request("of a client"))
    missing = f"claims/{uuid.uuid4()}"
    answers = await one.gate.acknowledge([foreign, missing], AGENT)
    assert [reason_of(answer) for answer in answers] == ["RESOURCE_NOT_FOUND"] * 2
    assert answers[0].message == answers[1].message.replace(missing, foreign)
    assert await kept(world, claims) == [(b"answer", DIGEST)]


async def test_a_claim_from_before_presenters_were_stored_keeps_its_result(
    one: Replica, world: World, claims: Database
) -> None:
    claim = await performed(one, world, of_agent())
    await claims.execute("UPDATE effect_claims SET presenter = NULL")
    (answer,) = await one.gate.acknowledge([claim], AGENT)
    assert reason_of(answer) == "RESOURCE_NOT_FOUND"
    assert await kept(world, claims) == [(b"answer", DIGEST)]


async def test_one_refused_claim_leaves_the_others_alone(one: Replica, world: World) -> None:
    own = await performed(one, world, of_agent())
    foreign = await performed(one, world, a_request("of a client"))
    answers = await one.gate.acknowledge([foreign, own], AGENT)
    assert [reason_of(answer) for answer in answers] == ["RESOURCE_NOT_FOUND", "OK"]


async def test_what_has_not_succeeded_is_not_recorded(one: Replica, world: World) -> None:
    error = RemitError(reasons.ERROR_REASON_TOOL_FAILED, "no such file")

    async def fails(permit: Permit) -> EffectResult:
        return EffectResult(Outcome.FAILED, usage_pb2.Usage(calls=1), error=error)

    with a_call():
        with pytest.raises(RemitError) as failed:
            await one.gate.perform(of_agent(), fails)
        (answer,) = await one.gate.acknowledge([failed.value.metadata["claim"]], AGENT)
        assert reason_of(answer) == "INVALID_STATE"
        with pytest.raises(RemitError, match="no such file"):
            await one.gate.perform(of_agent(), fails)


async def test_an_effect_under_way_is_not_recorded(
    one: Replica, world: World, claims: Database
) -> None:
    started, end = asyncio.Event(), asyncio.Event()

    async def slow(permit: Permit) -> EffectResult:
        started.set()
        await end.wait()
        return await world.effect(permit)

    with a_call():
        call = asyncio.create_task(one.gate.perform(of_agent(), slow))
        await started.wait()
        claim = claim_name(str(await claims.fetchval("SELECT claim FROM effect_claims")))
        (answer,) = await one.gate.acknowledge([claim], AGENT)
        assert (reason_of(answer), answer.code) == ("INVALID_STATE", code_pb2.FAILED_PRECONDITION)
        end.set()
        assert (await call).payload == b"answer"
    assert await kept(world, claims) == [(b"answer", DIGEST)]


async def test_an_outcome_that_a_sweeper_records_names_the_dropped_result(
    one: Replica, world: World
) -> None:
    async def effect(permit: Permit) -> EffectResult:
        world.away.add("audit")
        return await world.effect(permit)

    with a_call():
        claim = (await one.gate.perform(of_agent(), effect)).claim
    await settled_down(one)
    await one.gate.acknowledge([claim], AGENT)
    world.away.clear()

    async def swept() -> bool:
        await one.closer.sweep()
        return not await one.store.unclosed(older_than_s=0)

    await eventually(swept)
    (detail,) = [json.loads(event.detail_json) for event in world.events.values() if event.outcome]
    assert detail["result_sha256"] == DIGEST.hex()


async def test_a_result_whose_commit_was_not_told_is_found_after_it_was_dropped(
    one: Replica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Change] = []
    change = one.store.change

    async def noted(step: Change) -> bool:
        sent.append(step)
        return await change(step)

    monkeypatch.setattr(one.store, "change", noted)
    claim = await performed(one, world, of_agent())
    (finish,) = (step for step in sent if isinstance(step, Finish))
    assert await one.store.holds(finish)
    await one.gate.acknowledge([claim], AGENT)
    assert await one.store.holds(finish)
    assert not await one.store.holds(replace(finish, end=replace(finish.end, digest=b"other")))


@pytest.mark.parametrize(
    ("named", "field"),
    [
        (["claims/x"], "claims[0]"),
        ([f"claims/{uuid.uuid4()}", ""], "claims[1]"),
        ([f"claims/{uuid.uuid4()}"] * 257, "claims"),
    ],
)
async def test_what_is_no_batch_of_claims_is_refused(
    one: Replica, named: Sequence[str], field: str
) -> None:
    with pytest.raises(RemitError) as refused:
        await one.gate.acknowledge(named, AGENT)
    assert refused.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_around_the_drop_loses_nothing_and_it_can_be_said_again(
    claims: Database, world: World, moment: str
) -> None:
    mortal = replica(_MortalStore(claims, moment), world)
    claim = await performed(mortal, world, of_agent())
    with pytest.raises(ConnectionAbortedError):
        await mortal.gate.acknowledge([claim], AGENT)

    survivor = replica(ClaimStore(claims, owner="survivor", lease_s=LEASE_S), world)
    assert await kept(world, claims) == [
        (b"answer", DIGEST) if moment == "before" else (None, DIGEST)
    ]
    if moment == "before":
        with a_call():
            again = await survivor.gate.perform(of_agent(), world.effect)
        assert (again.payload, again.replayed) == (b"answer", True)
    assert await survivor.gate.acknowledge([claim], AGENT) == [status_pb2.Status()]
    assert await kept(world, claims) == [(None, DIGEST)]
    assert sum(world.touched.values()) == 1


class _MortalStore(ClaimStore):
    """A store whose process dies before or after results are dropped."""

    def __init__(self, database: Database, moment: str) -> None:
        super().__init__(database, owner="mortal", lease_s=LEASE_S)
        self._moment = moment

    async def acknowledge(self, claims: Sequence[str], presenter: str) -> Any:
        if self._moment == "after":
            await super().acknowledge(claims, presenter)
        raise ConnectionAbortedError


keys = st.integers(0, 2)
acts = st.one_of(
    st.tuples(st.just("perform"), keys, st.sampled_from([AGENT, PUBLIC])),
    st.tuples(st.just("acknowledge"), keys, st.sampled_from([AGENT, PUBLIC])),
    st.tuples(st.just("sweep"), keys, st.just(AGENT)),
)
numbers = iter(range(10**9))


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(acts, min_size=1, max_size=12))
async def test_a_result_is_there_until_its_owner_recorded_it(
    claims: Database, script: list[tuple[str, int, Any]]
) -> None:
    """Whatever comes in whatever order, over two replicas: no result is lost or doubled."""
    scene = World()
    two = [replica(ClaimStore(claims, owner=name, lease_s=LEASE_S), scene) for name in ("a", "b")]
    number = next(numbers)
    owners: dict[int, Any] = {}
    named: dict[int, str] = {}
    dropped: set[int] = set()
    with a_call():
        for turn, (act, key, who) in enumerate(script):
            here = two[turn % 2]
            if act == "sweep":
                await here.closer.sweep()
            elif act == "perform":
                asked = a_request(f"{number}-{key}")
                asked = replace(asked, remit=replace(asked.remit, presenter=who))
                owners.setdefault(key, who)
                try:
                    outcome = await here.gate.perform(asked, scene.effect)
                except RemitError as error:
                    refused = error.reason_name
                    assert (refused, key in dropped) == ("RESULT_NOT_KEPT", True)
                else:
                    assert key not in dropped
                    assert outcome.payload == b"answer"
                    assert named.setdefault(key, outcome.claim) == outcome.claim
            elif key in named:
                (answer,) = await here.gate.acknowledge([named[key]], who)
                assert (answer.code == code_pb2.OK) == (owners[key] == who)
                if owners[key] == who:
                    dropped.add(key)
    await asyncio.gather(*(settled_down(here) for here in two))
    assert sum(scene.touched.values()) == len(named)
    outcomes = [e for e in scene.events.values() if e.outcome]
    assert {json.loads(e.detail_json)["result_sha256"] for e in outcomes} <= {DIGEST.hex()}
