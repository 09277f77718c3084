"""What a rule book keeps of its answers: never another one than it would give."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.policy.answers import MAX_CONTEXT_CHARS, Answers, key_of
from remit.policy.entities import Principal, reference_to
from remit.policy.epochs import read_policies
from remit.policy.facts import facts_of
from remit.policy.grants import Grant, Grants, render
from remit.policy.rule_sets import PolicySource, compile_policies
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.schema import SHIPPED_POLICIES, actions
from tests.policy.world import MovedClock

SHIPPED = read_policies(SHIPPED_POLICIES)
BOB = Principal("orgs/acme/users/bob", "orgs/acme", "", ("member",))
RULES = compile_policies(SHIPPED)
EXECUTE = 4
RUN_A, RUN_B = (f"runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5{n}" for n in "ab")


def call(run: str = RUN_A, digest: str = "00", **arguments: object) -> Question:
    context = {
        "run": reference_to(run),
        "tool_call": {"arguments_digest": digest, "facts": facts_of(arguments).to_cedar()},
    }
    return Question(BOB, "tools.call", "tools/t", 2, context)


def book(text: str = "", *, clock: MovedClock | None = None, grants: Grants | None = None) -> Any:
    files = {**SHIPPED.files, "more.cedar": text} if text else SHIPPED.files
    rules = compile_policies(PolicySource(files, SHIPPED.schema)) if text else RULES
    return RuleBook(rules, 7, clock=clock or MovedClock(), grants=grants)


def kept(by: Any) -> int:
    return len(by._answers)


forbidding = st.sampled_from(
    [
        "when { context has run }",
        f'when {{ context has run && context.run == Run::"{RUN_B}" }}',
        'when { context has tool_call && context.tool_call.arguments_digest == "01" }',
        "when { context has tool_call && context.tool_call.facts.path_escapes }",
        'when { context.now < datetime("2026-01-01") }',
    ]
)
asked = st.lists(
    st.one_of(
        st.builds(
            call,
            st.sampled_from([RUN_A, RUN_B]),
            st.sampled_from(["00", "01"]),
            path=st.sampled_from(["a", "../a"]),
        ),
        st.builds(
            Question,
            st.sampled_from([BOB, replace(BOB, roles=()), replace(BOB, roles=("admin",))]),
            st.sampled_from(actions()),
            st.sampled_from(["orgs/acme", "orgs/b", "models/m", "tools/t"]),
            st.integers(0, 4),
        ),
    ),
    min_size=1,
    max_size=12,
)


@given(forbidding, asked)
def test_what_is_kept_is_what_would_be_decided(condition: str, questions: list[Question]) -> None:
    text = f'@id("added") forbid (principal, action, resource) {condition};'
    clock = MovedClock()
    keeping = book(text, clock=clock)
    for question in questions * 2:
        fresh = RuleBook(keeping.rules, 7, clock=clock)
        assert keeping.decide(question) == fresh.decide(question)


def test_questions_alike_are_asked_once_whatever_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = book()
    decision = keeping.decide(call(RUN_A, "00", path="x"))
    monkeypatch.setattr(keeping, "_decide", None)
    assert keeping.decide(call(RUN_B, "01", path="x")) is decision
    assert kept(keeping) == 1


def test_a_later_epoch_begins_without_answers() -> None:
    keeping = book()
    keeping.decide(call())
    later = keeping.with_grants(Grants(), 8)
    assert (kept(keeping), kept(later)) == (1, 0)
    assert later.decide(call()).epoch == 8


def test_a_policy_that_looks_at_the_time_is_asked_each_time() -> None:
    clock = MovedClock()
    end = (clock.now() + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    late = f'context.now > datetime("{end}")'
    until = f'@id("late") forbid (principal, action, resource) when {{ {late} }};'
    keeping = book(until, clock=clock)
    assert keeping.decide(call()).allow
    clock.move(120)
    assert not keeping.decide(call()).allow
    assert kept(keeping) == 0


def test_what_rests_on_a_grant_ends_with_it() -> None:
    clock = MovedClock()
    end = clock.now() + timedelta(seconds=60)
    keeping = book(clock=clock, grants=Grants([granted(end)]))
    question = replace(call(), permission_class=EXECUTE)
    assert keeping.decide(question).allow
    clock.move(120)
    assert not keeping.decide(question).allow
    assert kept(keeping) == 0


def granted(end: datetime) -> Grant:
    name = "grants/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
    policy = render(
        name=name,
        org=BOB.org,
        principal=BOB.user,
        tool="tools/t",
        permission_class=0,
        expire_time=end,
        author="orgs/acme/users/root",
    )
    return Grant(name, BOB.user, "tools/t", 0, end, policy, "granted")


def test_what_cannot_be_evaluated_is_asked_again() -> None:
    answers = Answers()
    failed = Decision(allow=False, policy_ids=(), reason="", epoch=1, errors=("it failed",))
    key = key_of(call(), frozenset())
    assert answers.keep(key, failed) is failed
    assert answers.get(key) is None


@pytest.mark.parametrize(
    ("condition", "facts"),
    [
        ("context has agent", set()),
        ("context has run", {"run"}),
        ('context has run && context["run"] == context.run', {"run"}),
        ('context.now > datetime("2026-01-01")', {"now"}),
        (
            'context has tool_call && context.tool_call.arguments_digest == "x"',
            {"arguments_digest"},
        ),
        ("context has tool_call && context.tool_call.facts.incomplete", set()),
        ("[context].contains(context)", {"run", "now", "arguments_digest"}),
        (
            "context has tool_call && [context.tool_call].contains(context.tool_call)",
            {"run", "now", "arguments_digest"},
        ),
    ],
)
def test_what_a_policy_looks_at_is_never_missed(condition: str, facts: set[str]) -> None:
    call_of_a_tool = 'principal, action == Action::"tools.call", resource is Tool'
    text = f'@id("x") @reason("run now") forbid ({call_of_a_tool}) when {{ {condition} }};'
    rules = book(text).rules
    assert {fact for policy in rules.policies for fact in policy.looked_at} == facts
    one, other = (key_of(call(*told), frozenset(facts)) for told in ((RUN_A, "00"), (RUN_B, "01")))
    assert (one is not None and one == other) is not bool(facts)


def test_memory_is_bounded() -> None:
    answers, decision = Answers(most=2), Decision(allow=True, policy_ids=(), reason="", epoch=1)
    keys = [key_of(call(path=path), frozenset()) for path in ("a", "b", "c")]
    answers.keep(keys[0], decision)
    answers.keep(keys[1], decision)
    assert answers.get(keys[0]) is decision  # asked again, so it stays
    answers.keep(keys[2], decision)
    assert [answers.get(key) is not None for key in keys] == [True, False, True]
    assert len(answers) == 2
    assert key_of(call(path="x" * MAX_CONTEXT_CHARS), frozenset()) is None


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_is_no_json_has_no_key_and_is_denied(value: object) -> None:
    question = replace(call(), context={"tool_call": value})
    assert key_of(question, frozenset()) is None
    assert not book().decide(question).allow


def test_a_replay_is_asked_at_its_own_time_where_a_policy_looks_at_it() -> None:
    question = replace(call(), time=MovedClock().now())
    assert key_of(question, frozenset({"now"})) is None
    assert key_of(question, frozenset()) == key_of(call(), frozenset()) is not None
