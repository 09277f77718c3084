"""Questions that are alike get the answer that each of them would get alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.policy.entities import Principal, reference_to
from remit.policy.epochs import read_policies
from remit.policy.grants import Grant, Grants, render
from remit.policy.likeness import Likenesses
from remit.policy.replay import Candidate, Trial
from remit.policy.rule_sets import PolicySource, compile_policies
from remit.policy.rules import Question, RuleBook, default_denial
from remit.policy.schema import SHIPPED_POLICIES
from remit.policy.sight import Sight

SHIPPED = read_policies(SHIPPED_POLICIES)
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
RUNS = [f"runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5{n}" for n in "abc"]
APPROVALS = [name.replace("runs/", "approvals/") for name in RUNS]
FACTS = "context.tool_call.facts"
PATHS = ["", "/a", "/a/b", "/ab", "/secret/x", "/é*"]
ATOMS = [
    f'{FACTS}.common_path like "/a*"',
    f'({FACTS}.common_path like "/a*") != ({FACTS}.common_path like "/s*" && {FACTS}.path_escapes)',
    f'{FACTS}.common_path like "*"',
    f'{FACTS}.common_path like ""',
    f'{FACTS}.common_path like "*b"',
    f'{FACTS}.common_path like "/s*r*x"',
    f'{FACTS}.common_path like "/é\\*"',
    f'{FACTS}.common_path == "/a"',
    f'"/a/b" != {FACTS}.common_path',
    f'["/a", "/ab"].contains({FACTS}.common_path)',
    f"{FACTS}.path_prefixes.contains({FACTS}.common_path)",
    f'{FACTS}.path_prefixes.contains("/a")',
    f'{FACTS}.path_prefixes.containsAll(["/a", "/a/b"])',
    f'["/a", "/ab"].containsAll({FACTS}.path_prefixes)',
    f'{FACTS}.path_prefixes.containsAny(["/secret/x", "/ab"])',
    f'["/a"].containsAny({FACTS}.path_prefixes)',
    f'{FACTS}.path_prefixes == ["/a", "/ab"]',
    f"{FACTS}.path_prefixes.isEmpty()",
    f"{FACTS}.path_prefixes == {FACTS}.hosts",
    f"{FACTS} == {FACTS} && [{FACTS}].contains(context.tool_call.facts)",
    f"{FACTS}.path_escapes",
    'context.tool_call.arguments_digest like "0*"',
    "principal.roles.contains(context.tool_call.arguments_digest)",
    "context.tool_call has repeats_doubt",
    "(context.tool_call has repeats_doubt && context.tool_call.repeats_doubt)",
]
CALLED = "context has tool_call"
CALLS = [f"{CALLED} && {atom}" for atom in ATOMS] + [
    "resource is Tool && resource.permission_class <= 2",
    "resource is Tool && resource.permission_class * 9223372036854775807 > 0",
    'resource == Tool::"tools/a"',
]
ANYWHERE = [
    "context has tool_call",
    "context has run",
    "context has run && resource == context.run",
    f'context has run && context.run == Run::"{RUNS[0]}"',
    'context has agent && context.agent == Agent::"agents/x"',
    'principal == User::"orgs/acme/users/a"',
    'principal in Team::"orgs/acme/teams/t"',
    'principal in [Team::"orgs/acme/teams/u", Team::"orgs/b/teams/t"]',
    'principal in Org::"orgs/b"',
    "principal in resource",
    "resource in principal.org",
    "principal.org == resource",
    "principal == resource",
    'principal.roles.contains("member")',
    'context.now < datetime("2026-11-29T12:00:00.500Z")',
    'context.now.toTime() >= duration("12h499ms")',
    'principal == resource && context.now.toDate() == datetime("2026-11-29")',
    '[context.now].contains(datetime("2026-11-29T12:00:00Z"))',
    'context.now.offset(duration("9223372036854775807ms")) > context.now',
    "resource is Approval && resource.requester == principal",
    "resource is User && resource.org == principal.org",
    "[context].contains(context)",
]


@st.composite
def policies(draw: st.DrawFn) -> PolicySource:
    """Some policies, each of a few conditions."""
    texts = []
    for number in range(draw(st.integers(1, 5))):
        effect = draw(st.sampled_from(["permit", "permit", "forbid"]))
        about_calls = draw(st.booleans())
        conditions = draw(
            st.lists(st.sampled_from(CALLS if about_calls else ANYWHERE), min_size=1, max_size=2)
        )
        clause = draw(st.sampled_from(["when", "unless"]))
        joined = draw(st.sampled_from([" && ", " || "])).join(f"({each})" for each in conditions)
        scope = (
            'principal, action == Action::"tools.call", resource is Tool'
            if about_calls
            else "principal, action, resource"
        )
        wanted = draw(st.sampled_from(["", "", '@approval("team:ops") ']))
        texts.append(f'@id("p{number}") {wanted}{effect} ({scope}) {clause} {{ {joined} }};')
    try:
        source = PolicySource({"x.cedar": "\n".join(texts)}, SHIPPED.schema)
        compile_policies(source)
    except ValueError:
        # A condition that Cedar finds impossible in its scope.
        return PolicySource(
            {"x.cedar": '@id("p") permit (principal, action, resource);'}, SHIPPED.schema
        )
    return source


users = st.sampled_from([f"orgs/{org}/users/{name}" for org in ("acme", "b") for name in "ab"])
orgs = st.sampled_from(["orgs/acme", "orgs/b", "orgs/c"])
principals = st.builds(
    Principal,
    users,
    orgs,
    st.sampled_from(["", "orgs/acme/teams/t", "orgs/acme/teams/u", "orgs/b/teams/t"]),
    st.sampled_from([(), ("member",), ("admin", "member")]),
)
texts = st.sampled_from(PATHS)
calls: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "arguments_digest": st.sampled_from(["00", "01", "member", "\ud800"]),
        "facts": st.fixed_dictionaries(
            {
                "common_path": texts,
                "path_prefixes": st.lists(texts, max_size=3),
                "path_escapes": st.booleans(),
                "hosts": st.lists(texts, max_size=1),
                "mail_domains": st.just([]),
                "incomplete": st.sampled_from([False, False, False, 0]),
            }
        ),
    },
    optional={"repeats_doubt": st.sampled_from([True, True, False, 1])},
)
contexts = st.fixed_dictionaries(
    {},
    optional={
        "agent": st.sampled_from(["agents/x", "agents/y", "agents/z"]).map(reference_to),
        "run": st.sampled_from(RUNS).map(reference_to),
        "tool_call": calls,
    },
)
resources = st.one_of(
    users,
    orgs,
    st.sampled_from(
        [
            *RUNS,
            *APPROVALS,
            "orgs/acme/teams/t",
            "orgs/b/apiKeys/k",
            "agents/x",
            "models/m",
            "no name",
        ]
    ),
)
times = st.sampled_from([0, 1, 499_000, 500_000, 600_000]).map(
    lambda after: NOW + timedelta(microseconds=after)
)
tools = st.sampled_from(["tools/a", "tools/b", "tools/c"])
questions = st.one_of(
    st.builds(
        Question, principals, st.just("tools.call"), tools, st.integers(0, 4), contexts, times
    ),
    st.builds(
        Question,
        principals,
        st.sampled_from(["runs.read", "approvals.decide", "keys.create", "audit.read"]),
        resources,
        st.integers(0, 4),
        contexts,
        times,
        users,
    ),
)


@st.composite
def alike(draw: st.DrawFn) -> list[Question]:
    """A question, and such as differ from it in one thing: no policy may look at that."""
    first = draw(questions)
    asked = [first]
    for _ in range(draw(st.integers(3, 12))):
        other, base = draw(questions), draw(st.sampled_from(asked))
        changed = draw(
            st.sampled_from(["user", "org", "team", "resource", "time", "context", "fact"])
        )
        if changed in {"user", "org", "team"}:
            who = {changed: getattr(other.principal, changed)}
            asked.append(replace(base, principal=replace(base.principal, **who)))
        elif changed == "resource":
            is_tool = base.action == "tools.call"
            asked.append(replace(base, resource=draw(tools if is_tool else resources)))
        elif changed == "fact" and "tool_call" in base.context:
            stated: Any = base.context["tool_call"]
            fact = draw(st.sampled_from(sorted(stated["facts"])))
            facts = {**stated["facts"], fact: draw(calls)["facts"][fact]}
            asked.append(
                replace(base, context={**base.context, "tool_call": {**stated, "facts": facts}})
            )
        elif changed == "time":
            asked.append(replace(base, time=other.time))
        else:
            name = draw(st.sampled_from(["agent", "run"]))
            context = {key: value for key, value in base.context.items() if key != name}
            if name in other.context:
                context[name] = other.context[name]
            asked.append(replace(base, context=context))
    return asked


def granted(number: int, principal: str, tool: str, end: datetime | None) -> Grant:
    name = f"orgs/acme/grants/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5{number}"
    policy = render(
        name=name,
        org="orgs/acme",
        principal=principal,
        tool=tool,
        permission_class=0 if tool else 2,
        expire_time=end,
        author="orgs/acme/users/root",
    )
    return Grant(name, principal, tool, 0 if tool else 2, end, policy, "granted")


grants = st.lists(
    st.builds(
        granted,
        st.integers(0, 9),
        st.one_of(users, st.sampled_from(["orgs/acme/teams/t", "agents/x"])),
        st.one_of(st.just(""), tools),
        st.sampled_from([None, NOW + timedelta(microseconds=500_100)]),
    ),
    max_size=2,
    unique_by=lambda grant: grant.name,
).map(tuple)


@settings(deadline=None, max_examples=60)
@given(policies(), grants, alike())
def test_one_answer_is_that_of_all_that_are_alike(
    source: PolicySource, given_grants: tuple[Grant, ...], asked: list[Question]
) -> None:
    agree(source, given_grants, asked)


def agree(source: PolicySource, given_grants: tuple[Grant, ...], asked: list[Question]) -> int:
    """Compare each answer with the one that the question gets alone; return how many were asked."""
    trial = Trial(Candidate(source, given_grants))
    book = RuleBook(compile_policies(source), 0, grants=Grants(given_grants))
    new = 0
    for question in asked:
        alone = book.decide(question)
        _, answer, is_new = trial.answer(question)
        new += is_new
        assert (answer.allowed, answer.policy_ids) == (alone.allow, alone.policy_ids), question
        assert (answer.reason or default_denial(question)) == alone.reason
        assert not (alone.errors and answer.allowed)
    return new


@pytest.mark.parametrize("atom", ATOMS)
def test_every_test_of_a_fact_tells_apart_what_cedar_does(atom: str) -> None:
    permits = '@id("p") permit (principal, action, resource);'
    forbids = (
        f'@id("f") forbid (principal, action, resource is Tool) when {{ {CALLED} && {atom} }};'
    )
    asked = [
        call(common_path=path, path_prefixes=list(prefixes), hosts=hosts, path_escapes=escapes)
        for path in PATHS
        for count in range(3)
        for prefixes in combinations(PATHS[1:5], count)
        for hosts in ([], ["/a"])
        for escapes in (False, True)
    ]
    source = PolicySource({"x.cedar": permits + forbids}, SHIPPED.schema)
    new = agree(source, (), asked)
    # What compares all facts at once tells every two of these questions apart.
    assert new == len(asked) if atom.startswith(f"{FACTS} == ") else new <= len(asked) / 2


@pytest.mark.parametrize("condition", ANYWHERE)
def test_every_use_of_a_name_tells_apart_what_cedar_does(condition: str) -> None:
    texts = f'@id("p") permit (principal, action, resource) when {{ {condition} }};'
    asked = [
        Question(Principal(user, org, team, ("member",)), *asked, 2, context, time, user[:-1] + "b")
        for user in ("orgs/acme/users/a", "orgs/acme/users/b", "orgs/b/users/a")
        for org in ("orgs/acme", "orgs/b")
        for team in ("", "orgs/acme/teams/t", "orgs/acme/teams/u", "orgs/acme/teams/v")
        for asked in (
            ("audit.read", "orgs/acme/users/a"),
            ("audit.read", "orgs/b/users/b"),
            ("runs.read", RUNS[0]),
            ("runs.read", RUNS[1]),
            ("approvals.decide", APPROVALS[0]),
            ("tools.call", "orgs/b"),
        )
        for context in (
            {},
            {"run": reference_to(RUNS[0]), "agent": reference_to("agents/x")},
            {"run": reference_to(RUNS[1]), "agent": reference_to("agents/y")},
        )
        for time in (NOW, NOW + timedelta(seconds=0.5))
    ]
    new = agree(PolicySource({"x.cedar": texts}, SHIPPED.schema), (), asked)
    assert new < len(asked) / 2


def test_every_grant_tells_apart_whom_and_what_it_is_for() -> None:
    end = NOW + timedelta(microseconds=500_100)
    given = tuple(
        granted(number, principal, tool, until)
        for number, (principal, tool, until) in enumerate(
            [
                ("orgs/acme/users/a", "tools/a", end),
                ("orgs/acme/teams/t", "", None),
                ("agents/x", "tools/b", end),
            ]
        )
    )
    asked = [
        Question(
            Principal(user, "orgs/acme", team, ()),
            "tools.call",
            tool,
            permission_class,
            {"agent": reference_to(agent)},
            NOW + timedelta(microseconds=after),
        )
        for user in ("orgs/acme/users/a", "orgs/acme/users/b")
        for team in ("", "orgs/acme/teams/t", "orgs/acme/teams/u")
        for tool in ("tools/a", "tools/b", "tools/c")
        for permission_class in (2, 3)
        for agent in ("agents/x", "agents/y")
        for after in (0, 499_000, 500_000, 500_099, 500_200, 900_000)
    ]
    files = {"x.cedar": '@id("p") permit (principal, action, resource is Org);'}
    assert agree(PolicySource(files, SHIPPED.schema), given, asked) < len(asked) / 2


def call(**changed: Any) -> Question:
    facts = {
        "common_path": "/a",
        "path_prefixes": ["/a"],
        "path_escapes": False,
        "hosts": [],
        "mail_domains": [],
        "incomplete": False,
    }
    context = {"tool_call": {"arguments_digest": "", "facts": {**facts, **changed}}}
    who = Principal("orgs/acme/users/a", "orgs/acme", "", ("member",))
    return Question(who, "tools.call", "tools/a", 2, context, NOW)


def doubted(question: Question, *, repeats_doubt: object) -> Question:
    stated: Any = question.context["tool_call"]
    return replace(question, context={"tool_call": {**stated, "repeats_doubt": repeats_doubt}})


def likenesses(condition: str = "") -> Likenesses:
    more = f'@id("x") forbid (principal, action, resource is Tool) when {{ {condition} }};'
    files = {**SHIPPED.files, **({"x.cedar": more} if condition else {})}
    return Likenesses(RuleBook(compile_policies(PolicySource(files, SHIPPED.schema)), 0))


def test_what_the_shipped_policies_cannot_tell_apart_is_alike() -> None:
    alike = likenesses()
    one = call()
    bob = replace(one.principal, user="orgs/acme/users/bob")
    later = replace(
        call(common_path="/b"), resource="tools/b", principal=bob, time=NOW.replace(hour=1)
    )
    assert alike.of(one) == alike.of(later)
    for other in (
        call(path_escapes=True),
        replace(one, permission_class=3),
        replace(one, principal=replace(one.principal, roles=())),
        replace(one, principal=replace(one.principal, team="orgs/acme/teams/t")),
        replace(one, action="tools.list"),
        replace(one, context={}),
        replace(one, context={**one.context, "run": reference_to(RUNS[0])}),
        doubted(one, repeats_doubt=True),
    ):
        assert alike.of(one) != alike.of(other)


@pytest.mark.parametrize(
    ("condition", "other"),
    [
        (f'context has tool_call && {FACTS}.common_path like "/b*"', {"common_path": "/b/c"}),
        (f'context has tool_call && {FACTS}.hosts.contains("h")', {"hosts": ["h"]}),
        (
            f"context has tool_call && {FACTS}.hosts.contains({FACTS}.common_path)",
            {"hosts": ["/a"]},
        ),
        (f"context has tool_call && [{FACTS}].contains({FACTS})", {"mail_domains": ["x"]}),
    ],
)
def test_what_a_test_tells_apart_is_not_alike(condition: str, other: dict[str, Any]) -> None:
    assert likenesses().of(call()) == likenesses().of(call(**other))
    alike = likenesses(condition)
    assert alike.of(call()) != alike.of(call(**other))


def test_what_has_another_form_is_like_itself_alone() -> None:
    alike = likenesses()
    odd = call(incomplete=0)
    assert alike.of(odd) == alike.of(call(incomplete=0))
    assert alike.of(odd) != alike.of(call(incomplete=False))
    assert alike.of(odd) != alike.of(replace(odd, resource="tools/b"))
    others: tuple[dict[str, Any], ...] = (
        {"resource": "no name"},
        {"permission_class": 0},
        {"context": {"agent": {"__entity": {"type": "Agent", "id": "runs/x"}}}},
        {"context": {"more": 1}},
        {"context": doubted(call(), repeats_doubt=1).context},
    )
    for changed in others:
        assert alike.of(replace(call(), **changed))[0] == "odd"


def test_names_of_scopes_and_conditions_are_seen() -> None:
    text = 'permit (principal in Team::"t", action, resource) unless { resource == Org::"o" };'
    sight = Sight([text])
    assert sight.names == {"t", "o"}
