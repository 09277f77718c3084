"""Guardrails by policy: which policies say so, for whom, and that no remit ever has less."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2
from remit.guardrails import Wanted, parse_wanted
from remit.guardrails.wanted import SERVICES
from remit.policy.entities import Principal
from remit.policy.epochs import read_policies
from remit.policy.guarding import wanted_for_client, wanted_for_run
from remit.policy.identity_tokens import Identity
from remit.policy.metrics import DECISIONS
from remit.policy.registration import registration_of, sub_registration
from remit.policy.rule_sets import PolicyFaultsError, PolicySource, compile_policies
from remit.policy.rules import Question, RuleBook, rule_book
from remit.policy.schema import APPLY_GUARDRAILS, SHIPPED_POLICIES, schema_text
from remit.rpc.calls import REMIT_KEY
from remit.rpc.remits import Remit
from tests.guardrails.test_wanted import no_looser
from tests.policy.test_delegation import delegated, new_run, root, verified
from tests.policy.test_ext_authz import check, headers_of
from tests.policy.test_policy_sets import ask, files, push
from tests.policy.world import ALICE, CACHE_S, MovedClock, World

SHIPPED = read_policies(SHIPPED_POLICIES)
SUPPORT, CORE = "orgs/acme/teams/support", "orgs/acme/teams/core"
AGENT, TOOLS = options_pb2.CALLER_AGENT, options_pb2.CALLER_TOOLS


def policy(name: str, said: str, scope: str = "resource", condition: str = "") -> str:
    return (
        f'@id("{name}") @guardrails("{said}")'
        f' permit (principal, action == Action::"{APPLY_GUARDRAILS}", {scope}) {condition};'
    )


def of_team(team: str) -> str:
    return f'when {{ principal in Team::"{team}" }}'


def of_agent(agent: str) -> str:
    return f'resource == Agent::"{agent}"'


def book(*more: str) -> RuleBook:
    texts = {f"more{number}.cedar": text for number, text in enumerate(more)}
    return rule_book(PolicySource(dict(SHIPPED.files) | texts, schema_text()), 7)


def member(team: str = "", *roles: str) -> Principal:
    return Principal(ALICE, "orgs/acme", team, roles or ("member",))


def a_run(*agents: str, team: str = "") -> Any:
    """The registration of a run, below those of other agents if there are any."""
    first, *rest = agents
    request = policy_service_pb2.IssueRemitRequest(run=new_run(), fencing_token=1, agent=first)
    found = registration_of(member(team), request)
    for agent in rest:
        below = policy_service_pb2.DelegateRemitRequest(run=new_run(), fencing_token=1, agent=agent)
        found = sub_registration(found, below)
    return found


# ----------------------------------------------------------------------------------- whose it is


def test_a_policy_says_for_whom_by_its_scope_and_its_conditions() -> None:
    rules = book(
        policy("support", "tools.personal_data.output=redact", condition=of_team(SUPPORT)),
        policy("clerk", "secrets.input=refuse", of_agent("agents/clerk")),
    )
    redact = parse_wanted("tools.personal_data.output=redact")
    refuse = parse_wanted("secrets.input=refuse")
    assert wanted_for_client(rules, member(SUPPORT)) == redact
    assert wanted_for_client(rules, member(CORE)) == Wanted()
    assert wanted_for_run(rules, a_run("agents/clerk", team=CORE)) == refuse
    assert wanted_for_run(rules, a_run("agents/other", team=CORE)) == Wanted()
    both = wanted_for_run(rules, a_run("agents/clerk", team=SUPPORT))
    assert both == Wanted.of([redact, refuse])


def test_a_policy_may_look_at_agent_and_run_and_roles() -> None:
    rules = book(
        policy(
            "runs", "secrets.output=flag", condition="when { context has agent && context has run }"
        ),
        policy(
            "machines",
            "secrets.output=redact",
            condition='when { principal.roles.contains("service_account") }',
        ),
    )
    assert wanted_for_client(rules, member()) == Wanted()
    assert wanted_for_run(rules, a_run("agents/a")) == parse_wanted("secrets.output=flag")
    machine = member("", "member", "service_account")
    assert wanted_for_client(rules, machine) == parse_wanted("secrets.output=redact")


def test_without_annotations_nothing_is_wanted_and_nothing_asked() -> None:
    rules = book()
    assert rules.guarding == ()
    assert wanted_for_client(rules, member("", "admin")) == Wanted()
    assert wanted_for_run(rules, a_run("agents/a")) == Wanted()


def test_such_a_policy_permits_nothing_else() -> None:
    rules = book(policy("all", "secrets.output=redact"))
    nobody = Principal(ALICE, "orgs/acme", "", ("guest",))
    for action in ("runs.create", "tools.call", "policies.push"):
        assert not rules.decide(Question(nobody, action, "orgs/acme")).allow
    assert wanted_for_client(rules, nobody) == parse_wanted("secrets.output=redact")


def test_no_forbid_of_another_kind_takes_it_away() -> None:
    forbid = '@id("none") forbid (principal, action, resource is Agent);'
    rules = book(policy("all", "secrets.output=redact"), forbid)
    assert wanted_for_run(rules, a_run("agents/a")) == parse_wanted("secrets.output=redact")


@pytest.mark.parametrize("answers", [1, 2])
def test_one_that_cannot_be_evaluated_counts_as_one_that_applies(answers: int) -> None:
    undecided = DECISIONS.labels("other", "UNDECIDED")
    before = undecided._value.get()
    broken = policy(
        "broken",
        "secrets.output=refuse",
        condition="when { 9223372036854775807 + (if context has run then 1 else 0) > 0 }",
    )
    rules = book(broken, policy("other", "secrets.input=flag"))
    for _ in range(answers):
        assert wanted_for_client(rules, member()) == Wanted.of(
            [parse_wanted("secrets.output=refuse"), parse_wanted("secrets.input=flag")]
        )
        assert wanted_for_run(rules, a_run("agents/a")) == Wanted.of(
            [parse_wanted("secrets.output=refuse"), parse_wanted("secrets.input=flag")]
        )
    # What failed is told each time.
    assert undecided._value.get() == before + answers


def test_where_nothing_can_be_asked_every_policy_applies() -> None:
    rules = book(
        policy("support", "secrets.output=refuse", condition=of_team(SUPPORT)),
        policy("clerk", "secrets.input=flag", of_agent("agents/clerk")),
    )
    nobody = Principal("mallory", "orgs/acme", "", ())
    assert wanted_for_client(rules, nobody) == parse_wanted(
        "secrets.output=refuse, secrets.input=flag"
    )


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            policy("p", "secret.input=flag, tools.secrets.input=off"),
            ("no detector secret", "a policy only tightens"),
        ),
        (policy("p", ""), ("says nothing",)),
        (
            '@id("p") @guardrails permit (principal, action, resource);',
            ("says nothing", "stands on"),
        ),
        (
            '@id("p") @guardrails("secrets.input=flag") permit (principal, action, resource);',
            ("stands on `permit (principal, action == ",),
        ),
        (policy("p", "secrets.input=flag").replace("permit", "forbid"), ("stands on",)),
        (
            '@approval("team:ops") ' + policy("p", "secrets.input=drop"),
            ("does not go with @approval", "the mode must be"),
        ),
        (
            f'@id("p") forbid (principal, action == Action::"{APPLY_GUARDRAILS}", resource);',
            ("says nothing about guardrails.apply without @guardrails",),
        ),
        (policy("p", "secrets.input=flag", 'resource == Tool::"tools/t"'), ("p",)),
    ],
)
def test_a_set_with_what_is_not_understood_is_never_in_force(
    text: str, faults: tuple[str, ...]
) -> None:
    with pytest.raises(PolicyFaultsError) as caught:
        compile_policies(PolicySource({"p.cedar": text}, schema_text()))
    (fault,) = caught.value.faults
    assert (fault.file, fault.policy) == ("p.cedar", "p")
    for words in faults:
        assert words in str(fault)


# ------------------------------------------------------------------------------------- properties

saids = st.sampled_from(
    [
        f"{service}{detector}.{direction}={mode}"
        for service in ("", "tools.", "inference.")
        for detector in ("secrets", "personal_data")
        for direction in ("input", "output")
        for mode in ("flag", "redact", "refuse")
    ]
)
agents = st.sampled_from(["agents/a", "agents/b", "agents/c"])
teams = st.sampled_from(["", SUPPORT, CORE])
scopes = st.one_of(st.just("resource"), agents.map(of_agent), st.just("resource is Agent"))
conditions = st.one_of(
    st.just(""),
    st.sampled_from([SUPPORT, CORE]).map(of_team),
    st.just('unless { principal.roles.contains("admin") }'),
    st.just("when { 9223372036854775807 + (if context has run then 1 else 0) > 0 }"),
)
written = st.lists(st.tuples(saids, scopes, conditions), max_size=5).map(
    lambda said: [policy(f"p{number}", *each) for number, each in enumerate(said)]
)


def covers(stricter: Wanted, than: Wanted) -> bool:
    return all(no_looser(stricter.rules(each), than.rules(each)) for each in SERVICES)


@settings(deadline=None, max_examples=40)
@given(written, st.lists(agents, min_size=1, max_size=4), teams)
def test_no_run_in_a_chain_has_less_than_the_one_above_it(
    texts: list[str], line: list[str], team: str
) -> None:
    rules = book(*texts)
    above = Wanted()
    for depth in range(1, len(line) + 1):
        run = a_run(*line[:depth], team=team)
        assert run.line == tuple(line[:depth])
        wanted = wanted_for_run(rules, run)
        assert covers(wanted, above)
        assert covers(wanted, wanted_for_run(rules, a_run(line[depth - 1], team=team)))
        above = wanted


@settings(deadline=None, max_examples=40)
@given(written, saids, scopes, conditions, agents, teams)
def test_a_policy_that_is_added_never_loosens(
    texts: list[str], said: str, scope: str, condition: str, agent: str, team: str
) -> None:
    before = book(*texts)
    after = book(policy("added", said, scope, condition), *texts)
    run, client = a_run(agent, team=team), member(team)
    assert covers(wanted_for_run(after, run), wanted_for_run(before, run))
    assert covers(wanted_for_client(after, client), wanted_for_client(before, client))


# ------------------------------------------------------------------------------ through the service


async def put_in_force(world: World, *texts: str) -> None:
    more = {f"more{number}.cedar": text for number, text in enumerate(texts)}
    source = replace(SHIPPED, files={**SHIPPED.files, **more})
    await type(world.policies).open(world.sets, source, world.clock)


async def renewed(world: World, run: str, token: int = 1) -> Remit:
    request = policy_service_pb2.IssueRemitRequest(run=run, fencing_token=token)
    response = await world.hot(AGENT).IssueRemit(request)
    remit = await verified(world, response.remit)
    assert response.guardrails == remit.guardrails
    return remit


REDACT = parse_wanted("tools.personal_data.output=redact").claim


async def test_a_run_has_what_the_policies_of_its_registration_and_renewal_want(
    world: World,
) -> None:
    run = new_run()
    assert (await verified(world, await root(world, run))).guardrails == ""
    said = policy("core", "tools.personal_data.output=redact", condition=of_team(CORE))
    await put_in_force(world, said)
    remit = await renewed(world, run)
    assert remit.guardrails == REDACT
    assert remit.policy_epoch == 2
    assert (await verified(world, await root(world, new_run()))).guardrails == REDACT
    await put_in_force(world)
    assert (await renewed(world, run)).guardrails == ""


async def test_a_replica_that_knows_the_run_renews_by_what_another_accepted(
    world: World, clock: MovedClock
) -> None:
    run = new_run()
    await root(world, run)
    other = await World.open(world.database, clock)
    await put_in_force(other, policy("all", "tools.personal_data.output=redact"))
    assert world.policies.book.epoch == 1
    assert (await renewed(world, run)).guardrails == REDACT


async def test_a_sub_run_has_no_less_than_its_parent_and_keeps_it_when_it_is_renewed(
    world: World,
) -> None:
    await put_in_force(
        world,
        policy("all", "tools.personal_data.output=redact", of_agent("agents/coordinator")),
        policy("sub", "tools.secrets.output=refuse", of_agent("agents/researcher")),
    )
    sub = new_run()
    parent = await root(world, new_run())
    first = await verified(world, await delegated(world, parent, sub))
    both = parse_wanted("tools.personal_data.output=redact, tools.secrets.output=refuse").claim
    assert first.guardrails == both
    assert (await renewed(world, sub, 2)).guardrails == both


async def test_what_the_parents_remit_wants_is_passed_on_until_both_are_renewed(
    world: World,
) -> None:
    await put_in_force(world, policy("all", "tools.personal_data.output=redact"))
    run, sub = new_run(), new_run()
    parent = await root(world, run)
    await put_in_force(world)
    assert (await verified(world, await delegated(world, parent, sub))).guardrails == REDACT
    assert (await renewed(world, run)).guardrails == ""
    assert (await renewed(world, sub)).guardrails == ""


async def test_a_client_has_it_within_the_time_that_the_edge_remembers(
    world: World, clock: MovedClock
) -> None:
    secret = await world.admin_secret()
    bearer = f"Bearer {secret}"

    async def shown() -> Remit:
        response = await check(world, authorization=bearer)
        return await world.verifier.verify(headers_of(response)[REMIT_KEY], audience=TOOLS)

    assert (await shown()).guardrails == ""
    pushed = push(files=files(p=policy("all", "tools.personal_data.output=redact")))
    await ask(world, "PushPolicySet", pushed)
    clock.move(CACHE_S + 1)
    assert (await shown()).guardrails == REDACT


async def test_whoever_signs_in_has_it_by_the_team_of_the_token(
    world: World, clock: MovedClock
) -> None:
    await put_in_force(
        world, policy("core", "tools.personal_data.output=redact", condition=of_team(CORE))
    )
    for number, (team, claim) in enumerate(((CORE, REDACT), (SUPPORT, ""))):
        end = clock.now() + timedelta(minutes=5)
        identity = Identity(member(team), "idp", bytes([number]) * 32, end)
        session = await world.credentials.token_session(identity)
        remit = await world.verifier.verify(session.token("runs.read"), audience=TOOLS)
        assert (remit.team, remit.guardrails) == (team, claim)


async def test_a_push_of_what_is_not_understood_names_the_policy(world: World) -> None:
    await world.admin_secret()
    pushed = push(files=files(p=policy("wrong", "tools.secret.output=hide")))
    with pytest.raises(Exception, match="no detector secret") as caught:
        await ask(world, "PushPolicySet", pushed)
    assert getattr(caught.value, "reason", None) == error_reason_pb2.ERROR_REASON_POLICY_INVALID
    assert "policy wrong" in str(caught.value)
