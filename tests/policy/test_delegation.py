"""Sub-runs: their remits are subsets of their parents', whatever chain they stand in."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2
from remit.policy.registration import sub_registration
from remit.policy.runs import Registration
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit
from tests.policy.world import ALICE, MovedClock, World

AGENT, TOOLS, PUBLIC = options_pb2.CALLER_AGENT, options_pb2.CALLER_TOOLS, options_pb2.CALLER_PUBLIC
CORE = "orgs/acme/teams/core"


def new_run() -> str:
    return f"runs/{uuid.uuid4()}"


async def root(world: World, run: str, **fields: Any) -> str:
    given: dict[str, Any] = {
        "agent": "agents/coordinator",
        "tools": ["tools/clock"],
        "models": ["models/rules"],
        "delegable_tools": ["tools/search", "tools/write_file"],
        "delegable_models": ["models/small"],
        "max_cost_nanos": 900,
    }
    request = policy_service_pb2.IssueRemitRequest(
        run=run,
        fencing_token=1,
        client_remit=world.client_token(team=CORE),
        **given | fields,
    )
    return (await world.hot(AGENT).IssueRemit(request)).remit


async def delegated(world: World, parent: str, run: str, token: int = 1, **fields: Any) -> str:
    given: dict[str, Any] = {
        "agent": "agents/researcher",
        "tools": ["tools/search"],
        "models": ["models/small"],
        "max_cost_nanos": 500,
    }
    request = policy_service_pb2.DelegateRemitRequest(
        parent_remit=parent, run=run, fencing_token=token, **given | fields
    )
    return (await world.hot(AGENT).DelegateRemit(request)).remit


async def verified(world: World, token: str) -> Remit:
    return await world.verifier.verify(token, audience=TOOLS, presenter=AGENT)


async def refused(call: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    return caught.value


async def test_a_sub_run_acts_for_the_same_subject_below_the_parents_account(world: World) -> None:
    top, middle, leaf = new_run(), new_run(), new_run()
    first = await root(world, top)
    second = await delegated(
        world, first, middle, tools=[], delegable_tools=["tools/search"], max_cost_nanos=None
    )
    remit = await verified(world, await delegated(world, second, leaf))
    base = f"{CORE}/users/alice/agents/coordinator/{top}"
    assert remit.account == f"{base}/agents/researcher/{middle}/agents/researcher/{leaf}"
    assert (remit.subject, remit.team, remit.run) == (ALICE, CORE, leaf)
    assert (remit.outer_limits_nanos, remit.max_cost_nanos) == ((900, None), 500)
    assert remit.tools == {"tools/search"}


async def test_it_may_use_nothing_that_its_parent_may_not_pass_on(world: World) -> None:
    parent = await root(world, new_run())
    cases: Sequence[tuple[dict[str, Any], str]] = (
        ({"tools": ["tools/send_email"]}, "tools/send_email"),
        ({"delegable_tools": ["tools/send_email"]}, "tools/send_email"),
        ({"models": ["models/huge"]}, "models/huge"),
        ({"delegable_models": ["models/huge"]}, "models/huge"),
    )
    for fields, beyond in cases:
        error = await refused(delegated(world, parent, new_run(), **fields))
        assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
        assert beyond in error.message


async def test_what_may_be_passed_on_may_not_be_used(world: World) -> None:
    remit = await verified(world, await root(world, new_run()))
    assert not remit.offers_tool("tools/write_file")
    assert not remit.offers_model("models/small")


async def test_a_fenced_parent_delegates_nothing(world: World) -> None:
    run = new_run()
    parent = await root(world, run)
    fence = policy_service_pb2.FenceRunRequest(run=run, min_fencing_token=2)
    await world.hot(AGENT).FenceRun(fence)
    error = await refused(delegated(world, parent, new_run()))
    assert error.reason == error_reason_pb2.ERROR_REASON_FENCED


async def test_a_clients_remit_delegates_nothing(world: World) -> None:
    error = await refused(delegated(world, world.client_token(), new_run()))
    assert error.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID


async def test_asking_twice_is_asking_once_and_another_grant_is_refused(world: World) -> None:
    parent, run = await root(world, new_run()), new_run()
    first = await verified(world, await delegated(world, parent, run))
    again = await verified(world, await delegated(world, parent, run, token=2))
    assert (first.account, first.tools) == (again.account, again.tools)
    others: Sequence[dict[str, Any]] = (
        {"tools": []},
        {"agent": "agents/clerk"},
        {"max_cost_nanos": 1},
    )
    for fields in others:
        error = await refused(delegated(world, parent, run, token=2, **fields))
        assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED
    other = await root(world, new_run())
    error = await refused(delegated(world, other, run, token=2))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED


async def test_an_adopted_sub_run_is_renewed_without_its_parent(
    world: World, clock: MovedClock
) -> None:
    run = new_run()
    await delegated(world, await root(world, new_run()), run)
    clock.move(3600)
    request = policy_service_pb2.IssueRemitRequest(run=run, fencing_token=2)
    adopted = await World.open(world.database, clock)
    remit = await verified(world, (await adopted.hot(AGENT).IssueRemit(request)).remit)
    assert (remit.outer_limits_nanos, remit.max_cost_nanos) == ((900,), 500)


async def test_whoever_may_not_run_the_agent_gets_no_sub_run(world: World) -> None:
    parent = await root(world, new_run())
    source = world.policies.book.source
    forbid = (
        '@id("no-clerk") @reason("no clerks today")'
        ' forbid(principal, action == Action::"agents.run", resource == Agent::"agents/clerk");'
    )
    await type(world.policies).open(
        world.sets, replace(source, files={**source.files, "stop.cedar": forbid}), world.clock
    )
    error = await refused(delegated(world, parent, new_run(), agent="agents/clerk"))
    assert error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert error.metadata["permission"] == "agents.run"


async def test_every_violation_of_a_delegation_is_named(world: World) -> None:
    parent = await root(world, new_run())
    bad: Sequence[tuple[dict[str, Any], set[str]]] = (
        ({"run": "runs/x"}, {"run"}),
        ({"token": 0}, {"fencing_token"}),
        ({"agent": ""}, {"agent"}),
        ({"tools": ["x"], "delegable_models": ["y"]}, {"tools[0]", "delegable_models[0]"}),
        ({"max_cost_nanos": -1}, {"max_cost_nanos"}),
    )
    for fields, named in bad:
        error = await refused(delegated(world, parent, **{"run": new_run()} | fields))
        assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
        assert {violation.field for violation in error.violations} == named


async def test_only_the_agent_service_delegates(world: World) -> None:
    request = policy_service_pb2.DelegateRemitRequest(run=new_run(), fencing_token=1)
    error = await refused(world.hot(PUBLIC).DelegateRemit(request))
    assert error.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


# ------------------------------------------------------------------------------ chains of any kind

GRANT = st.lists(st.sampled_from([f"tools/t{n}" for n in range(5)]), max_size=5)
MODELS = st.lists(st.sampled_from([f"models/m{n}" for n in range(3)]), max_size=3)
LIMIT = st.none() | st.integers(0, 1000)
LINK = st.tuples(GRANT, GRANT, MODELS, MODELS, LIMIT)


def link(parent: Registration, grant: Any) -> Registration:
    tools, passes_on, models, passes_on_models, limit = grant
    request = policy_service_pb2.DelegateRemitRequest(
        run=new_run(),
        fencing_token=1,
        agent="agents/a",
        tools=tools,
        delegable_tools=passes_on,
        models=models,
        delegable_models=passes_on_models,
        max_cost_nanos=limit,
    )
    return sub_registration(parent, request)


def everything(registration: Registration) -> set[str]:
    return {
        *registration.tools,
        *registration.delegable_tools,
        *registration.models,
        *registration.delegable_models,
    }


@given(st.lists(LINK, min_size=1, max_size=6), LINK)
def test_no_chain_ever_widens(chain: list[Any], first: Any) -> None:
    tools, passes_on, models, passes_on_models, limit = first
    run = new_run()
    parent = Registration(
        run=run,
        subject=ALICE,
        team="",
        roles=("member",),
        agent="agents/a",
        tools=tuple(tools),
        models=tuple(models),
        account=names.account_path(ALICE, agent="agents/a", run=run)[-1],
        max_cost_nanos=limit,
        delegable_tools=tuple(passes_on),
        delegable_models=tuple(passes_on_models),
    )
    for grant in chain:
        if {*grant[0], *grant[1], *grant[2], *grant[3]} - everything(parent):
            with pytest.raises(RemitError, match="may not pass on"):
                link(parent, grant)
            return
        child = link(parent, grant)
        assert everything(child) <= everything(parent)
        assert child.account.startswith(f"{parent.account}/")
        assert names.is_account_of(child.account, ALICE, agent="agents/a", run=child.run)
        assert child.outer_limits_nanos == (*parent.outer_limits_nanos, parent.max_cost_nanos)
        assert (child.subject, child.team, child.roles) == (
            parent.subject,
            parent.team,
            parent.roles,
        )
        parent = child
