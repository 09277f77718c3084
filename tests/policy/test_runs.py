"""Runs: a fence only rises, a registration never changes, whatever arrives together."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.runs import Claim, Registration, RunStore, Standing, _settle
from remit.postgres import Database
from remit.rpc.errors import RemitError

BASE = Registration(
    run="runs/x",
    subject="orgs/acme/users/alice",
    team="",
    roles=("member",),
    agent="agents/a",
    tools=("tools/t",),
    models=("models/m",),
    account="orgs/acme/users/alice/agents/a/runs/x",
    max_cost_nanos=None,
)


def registration() -> Registration:
    return replace(BASE, run=f"runs/{uuid.uuid4()}")


@pytest.fixture
def runs(policy_database: Database) -> RunStore:
    return RunStore(policy_database, max_batch=16, max_queue=1000)


async def test_the_first_claim_registers_and_later_ones_need_only_the_token(
    runs: RunStore,
) -> None:
    wanted = registration()
    assert await runs.claim(wanted.run, 1, wanted) == wanted
    assert await runs.claim(wanted.run, 1, None) == wanted
    assert await runs.claim(wanted.run, 5, None) == wanted
    assert (await runs.look_up(wanted.run))[0] == wanted
    assert (await runs.fences([wanted.run])).min_tokens == {wanted.run: 5}


async def test_a_lower_token_is_fenced_and_changes_nothing(runs: RunStore) -> None:
    wanted = registration()
    await runs.claim(wanted.run, 6, wanted)
    with pytest.raises(RemitError, match="token 5") as refused:
        await runs.claim(wanted.run, 5, wanted)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_FENCED
    assert (await runs.fences([wanted.run])).min_tokens == {wanted.run: 6}


@pytest.mark.parametrize(
    "change",
    [{"agent": "agents/b"}, {"tools": ()}, {"models": ("models/n",)}, {"max_cost_nanos": 5}],
)
async def test_a_registration_cannot_be_replaced(runs: RunStore, change: dict[str, object]) -> None:
    wanted = registration()
    await runs.claim(wanted.run, 1, wanted)
    with pytest.raises(RemitError) as refused:
        await runs.claim(wanted.run, 2, replace(wanted, **change))  # type: ignore[arg-type]
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED
    assert (await runs.look_up(wanted.run))[0] == wanted
    assert (await runs.fences([wanted.run])).min_tokens == {wanted.run: 1}


async def test_a_run_can_be_fenced_before_it_is_registered(runs: RunStore) -> None:
    wanted = registration()
    assert await runs.fence(wanted.run, 3) == 3
    with pytest.raises(RemitError) as refused:
        await runs.claim(wanted.run, 2, wanted)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_FENCED
    with pytest.raises(RemitError) as unknown:
        await runs.claim(wanted.run, 3, None)
    assert unknown.value.reason == error_reason_pb2.ERROR_REASON_RUN_NOT_FOUND
    assert await runs.claim(wanted.run, 3, wanted) == wanted


async def test_fencing_never_lowers(runs: RunStore) -> None:
    run = registration().run
    assert await runs.fence(run, 9) == 9
    assert await runs.fence(run, 4) == 9


async def test_an_unknown_run_is_not_claimed_without_a_registration(runs: RunStore) -> None:
    run = registration().run
    with pytest.raises(RemitError) as refused:
        await runs.claim(run, 1, None)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_RUN_NOT_FOUND
    assert (await runs.fences([run])).min_tokens == {}


async def test_claims_and_fences_from_everywhere_at_once_agree(
    runs: RunStore, policy_database: Database
) -> None:
    other = RunStore(policy_database, max_batch=16, max_queue=1000)
    wanted = [registration() for _ in range(10)]
    results = await asyncio.gather(
        *(
            store.claim(run.run, token, run)
            for token in range(1, 6)
            for run in wanted
            for store in (runs, other)
        ),
        *(runs.fence(run.run, 3) for run in wanted),
        return_exceptions=True,
    )
    errors = [r for r in results if isinstance(r, BaseException)]
    assert all(isinstance(error, RemitError) for error in errors)
    assert {error.reason for error in errors if isinstance(error, RemitError)} <= {
        error_reason_pb2.ERROR_REASON_FENCED
    }
    fences = await runs.fences([run.run for run in wanted])
    assert set(fences.min_tokens.values()) == {5}
    for run in wanted:
        assert (await runs.look_up(run.run))[0] == run


claims = st.builds(
    Claim,
    st.just("runs/x"),
    st.integers(1, 5),
    st.sampled_from([None, BASE, replace(BASE, agent="agents/b")]),
    st.booleans(),
)


@given(st.lists(claims, max_size=12))
def test_a_fence_only_rises_and_the_first_registration_stays(arrived: list[Claim]) -> None:
    standings = {"runs/x": Standing(1, None)}
    first: Registration | None = None
    lowest = 1
    for claim in arrived:
        answer = _settle(standings, claim)
        after = standings["runs/x"]
        assert after.min_token >= lowest
        if isinstance(answer, RemitError):
            assert after.min_token == lowest
        elif not claim.fence_only:
            assert claim.token >= lowest
        lowest = after.min_token
        first = first or after.registration
        assert after.registration == first
