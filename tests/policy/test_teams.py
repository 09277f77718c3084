"""Teams: what is granted to one counts for whoever's credential names it, and for nobody else."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import grant_service_pb2, principal_service_pb2
from remit.policy.entities import Principal
from remit.policy.epochs import read_policies
from remit.policy.facts import facts_of
from remit.policy.grants import Grant, Grants, reason_of, render
from remit.policy.identity_tokens import Identity
from remit.policy.rule_sets import compile_policies
from remit.policy.rules import Question, RuleBook
from remit.policy.schema import SHIPPED_POLICIES
from remit.rpc.calls import remit_token
from tests.policy.test_admin_service import as_admin, create, refused, revoke
from tests.policy.test_grants import EXECUTE, ask, at, granted, is_allowed
from tests.policy.test_service import check as question
from tests.policy.test_service import issue
from tests.policy.test_service_accounts import CI, CREATE_RUN, key, make, token_of
from tests.policy.world import ALICE, BOB, ORG, MovedClock, World

CORE, OPS = "orgs/acme/teams/core", "orgs/acme/teams/ops"
MAIL = "tools/send_email"


async def calls(world: World, secret: str, tool: str = MAIL) -> bool:
    """Whether a run that this key starts may call a tool of the highest class."""
    client = await token_of(world, secret, CREATE_RUN)
    running = await issue(world, f"runs/{uuid.uuid4()}", client=client, tools=[tool])
    asked = question(running, resource=tool, permission_class=EXECUTE)
    return is_allowed(await world.hot().CheckPermission(asked))


async def listed(world: World, roles: tuple[str, ...] = ("admin",), **fields: Any) -> Any:
    with remit_token(world.client_token(ALICE, roles=roles)):
        request = principal_service_pb2.ListTeamsRequest(**fields)
        return await world.principals().ListTeams(request)


# ------------------------------------------------------------------------------------- their grants


async def test_a_grant_to_a_team_counts_for_keys_of_it_and_for_no_others(world: World) -> None:
    async def made(number: int, **fields: Any) -> str:
        given = create(request_id=f"k{number}", **fields)
        return str((await as_admin(world, "CreateApiKey", given)).secret)

    member, of_other = await made(1, team=CORE), await made(2, team=OPS)
    of_none = await made(3)
    colleague = await made(4, team=CORE, user="orgs/acme/users/carol")
    await make(world, team=CORE)
    machine = (await key(world, request_id="k5")).secret
    everybody = (member, of_other, of_none, colleague, machine)
    assert [await calls(world, secret) for secret in everybody] == [False] * 5
    grant = await granted(world, principal=CORE)
    assert [await calls(world, secret) for secret in everybody] == [
        *(True, False, False),
        *(True, True),
    ]
    assert not await calls(world, member, "tools/execute_command")
    listing = grant_service_pb2.ListToolGrantsRequest(principal=CORE)
    assert list((await ask(world, "ListToolGrants", listing)).grants) == [grant]
    gone = grant_service_pb2.RevokeToolAccessRequest(name=grant.name, request_id="r2")
    await ask(world, "RevokeToolAccess", gone)
    assert [await calls(world, secret) for secret in everybody] == [False] * 5


async def test_a_team_of_an_identity_providers_token_counts_too(
    world: World, clock: MovedClock
) -> None:
    end = clock.now() + timedelta(hours=1)
    await granted(world, principal=CORE)
    book = await world.policies.newest()
    for team, allowed in ((CORE, True), (OPS, False)):
        who = Principal(BOB, ORG, team, ("member",))
        identity = Identity(who, "corporate", team.encode(), end)
        session = await world.credentials.token_session(identity)
        assert book.decide(about(session.principal)).allow is allowed


def about(who: Principal, tool: str = MAIL) -> Question:
    call = {"arguments_digest": "", "facts": facts_of({}).to_cedar()}
    return Question(who, "tools.call", tool, EXECUTE, {"tool_call": call})


RULES = compile_policies(read_policies(SHIPPED_POLICIES))
TEAMS = (CORE, OPS, "orgs/acme/teams/core-2", "orgs/acme/teams/cor", "orgs/other/teams/core")
TOOLS = (MAIL, "tools/send_email2", "tools/x")


def rendered(number: int, principal: str, tool: str, permission_class: int) -> Grant:
    org = "/".join(principal.split("/")[:2])
    name = f"{org}/grants/{uuid.UUID(int=number)}"
    text = render(
        name=name,
        org=org,
        principal=principal,
        tool=tool,
        permission_class=permission_class,
        expire_time=None,
        author=ALICE,
    )
    reason = reason_of(ALICE, principal, tool, permission_class, None)
    return Grant(name, principal, tool, permission_class, None, text, reason)


class Unsorted(Grants):
    """Puts every question to all grants, so that nothing but their text says whose they are."""

    def __init__(self, grants: Sequence[Grant]) -> None:
        super().__init__(grants)
        self._all = grants

    def of(self, principals: Iterable[str], tool: str) -> list[Grant]:
        return list(self._all)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*TEAMS, BOB, "orgs/acme/users/carol"]),
            st.one_of(
                st.tuples(st.sampled_from(TOOLS), st.just(0)),
                st.tuples(st.just(""), st.integers(1, 4)),
            ),
        ),
        max_size=5,
    ),
    st.sampled_from([*TEAMS[:4], ""]),
    st.sampled_from(TOOLS),
)
def test_a_grant_to_a_team_widens_nobody_elses_rights(
    wanted: Sequence[tuple[str, tuple[str, int]]], team: str, tool: str
) -> None:
    grants = [rendered(number, who, *what) for number, (who, what) in enumerate(wanted)]
    asked = about(Principal(BOB, ORG, team, ("member",)), tool)
    own = [grant for grant in grants if grant.principal in {BOB, team}]
    found = RuleBook(RULES, 1, grants=Grants(grants)).decide(asked)
    assert found == RuleBook(RULES, 1, grants=Grants(own)).decide(asked)
    assert found == RuleBook(RULES, 1, grants=Unsorted(grants)).decide(asked)
    applies = {
        grant.name for grant in own if grant.tool == tool or grant.permission_class == EXECUTE
    }
    assert set(found.policy_ids) == applies
    assert found.allow == bool(applies)


# ---------------------------------------------------------------------------------------- the list


async def test_teams_are_listed_with_their_keys_and_grants(world: World, clock: MovedClock) -> None:
    for number in range(2):
        await as_admin(world, "CreateApiKey", create(team=CORE, request_id=f"k{number}"))
    carols = create(team=CORE, user="orgs/acme/users/carol", request_id="k9")
    last = await as_admin(world, "CreateApiKey", carols)
    await make(world, team=OPS)
    only = "orgs/acme/teams/zeta"
    await granted(world, principal=CORE, request_id="g1")
    await granted(world, principal=only, request_id="g2")
    end = at(clock.now() + timedelta(hours=1))
    await granted(world, principal="orgs/acme/teams/old", expire_time=end, request_id="g3")
    await granted(world, principal=CI, request_id="g4")
    await world.database.execute(
        "UPDATE tool_grants SET revoke_time = now() WHERE principal = $1", "orgs/acme/teams/old"
    )
    core, ops, zeta = (await listed(world)).teams
    assert (core.name, core.member_count, core.working_key_count, core.grant_count) == (
        *(CORE, 2),
        *(3, 1),
    )
    assert (ops.name, ops.member_count, ops.grant_count) == (OPS, 0, 0)
    assert core.HasField("create_time")
    assert (zeta.name, zeta.HasField("create_time"), zeta.grant_count) == (only, False, 1)
    await as_admin(world, "RevokeApiKey", revoke(last.api_key.name, "x"))
    core = (await listed(world)).teams[0]
    assert (core.member_count, core.working_key_count) == (1, 2)


async def test_teams_are_listed_in_pages_and_those_of_other_orgs_are_not(world: World) -> None:
    made = [f"orgs/acme/teams/t{number}" for number in range(5)]
    for name in made:
        await granted(world, principal=name, request_id=name[-2:])
    eve = {"user": "orgs/other/users/eve", "team": "orgs/other/teams/core"}
    await as_admin(world, "CreateApiKey", create(**eve), user="orgs/other/users/mallory")
    found: list[str] = []
    token = ""
    while not found or token:
        page = await listed(world, page_size=2, page_token=token)
        found += [each.name for each in page.teams]
        token = page.next_page_token
    assert found == made
    everything = await listed(world, page_size=10_000)
    assert (len(everything.teams), everything.next_page_token) == (5, "")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"page_size": -1}, ["page_size"]),
        ({"page_token": "x"}, ["page_token"]),
        ({"page_token": "orgs/other/teams/core"}, ["page_token"]),
        ({"page_size": -1, "page_token": BOB}, ["page_size", "page_token"]),
    ],
)
async def test_a_page_that_is_none_is_refused(
    world: World, fields: dict[str, Any], names: list[str]
) -> None:
    error = await refused(listed(world, **fields))
    assert [each.field for each in error.violations] == names


async def test_members_list_no_teams(world: World) -> None:
    error = await refused(listed(world, ("member",)))
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED
