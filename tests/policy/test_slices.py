"""A question put to its slice gets the answer that all policies together would give."""

from __future__ import annotations

from dataclasses import replace

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.policy import slices as slices_module
from remit.policy.entities import Principal
from remit.policy.rule_sets import PolicySource, RuleSet, compile_policies
from remit.policy.rules import Question, RuleBook
from remit.policy.schema import actions, schema_text
from remit.policy.slices import Slice, Slices

SCHEMA = schema_text()
WHO = Principal("orgs/acme/users/a", "orgs/acme", "", ("member",))
FACTS = {
    "common_path": "",
    "path_prefixes": [],
    "path_escapes": False,
    "hosts": [],
    "mail_domains": [],
    "incomplete": False,
}
CONTEXT = {"tool_call": {"arguments_digest": "", "facts": FACTS}}
OVERFLOWS = "resource.permission_class * 9223372036854775807 > 0"

effects = st.sampled_from(["permit", "forbid"])
scopes = st.sampled_from(
    [
        ("action", "resource", ""),
        ('action == Action::"tools.call"', "resource is Tool", ""),
        ('action == Action::"tools.call"', 'resource == Tool::"tools/t"', ""),
        ('action == Action::"tools.call"', 'resource == Tool::"tools/other"', ""),
        ('action == Action::"tools.call"', 'resource == Tool::"tools/t"', OVERFLOWS),
        ('action == Action::"tools.call"', 'resource == Tool::"tools/other"', OVERFLOWS),
        ('action in Action::"tools"', "resource", ""),
        ('action in [Action::"runs", Action::"models.list"]', "resource", ""),
        ('action == Action::"runs.create"', 'resource == Org::"orgs/acme"', ""),
        ('action == Action::"models.generate"', 'resource == Model::"models/m"', ""),
    ]
)


class Whole(Slices):
    """All policies for every question, as Cedar alone does it."""

    def __init__(self, rules: RuleSet) -> None:
        super().__init__(rules)
        self._all = Slice(rules.policies)

    def of(self, action: str, resource: str) -> Slice:
        del action, resource
        return self._all


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(effects, scopes), min_size=1, max_size=12),
    st.lists(
        st.sampled_from(
            [
                Question(WHO, "tools.call", "tools/t", 2, CONTEXT),
                Question(WHO, "tools.call", "tools/unnamed", 4, CONTEXT),
                Question(WHO, "tools.call", "orgs/acme"),
                Question(WHO, "runs.create", "orgs/acme"),
                Question(WHO, "models.generate", "models/m"),
                Question(WHO, "models.list", "orgs/acme"),
                Question(WHO, "runs.fly", "orgs/acme"),
            ]
        ),
        min_size=1,
    ),
)
def test_a_slice_decides_as_the_whole(
    written: list[tuple[str, tuple[str, str, str]]], asked: list[Question]
) -> None:
    text = "\n".join(
        f'@id("p{number}") {effect} (principal, {action}, {resource})'
        + (f" when {{ {condition} }};" if condition else ";")
        for number, (effect, (action, resource, condition)) in enumerate(written)
    )
    rules = compile_policies(PolicySource({"x.cedar": text}, SCHEMA))
    sliced, whole = RuleBook(rules, 1), RuleBook(rules, 1, slices=Whole(rules))
    for question in asked:
        one, other = sliced.decide(question), whole.decide(question)
        # Cedar's words number the policies of the set; the names that we give them are the same.
        assert (one.allow, one.policy_ids, one.reason, one.failed_policies) == (
            other.allow,
            other.policy_ids,
            other.reason,
            other.failed_policies,
        )


def test_only_what_may_apply_is_in_a_slice() -> None:
    text = "\n".join(
        f'@id("t{number}") permit (principal, action == Action::"tools.call",'
        f' resource == Tool::"tools/t{number}");'
        for number in range(100)
    )
    slices = Slices(compile_policies(PolicySource({"x.cedar": text}, SCHEMA)))
    assert [p.identifier for p in slices.of("tools.call", "tools/t7").policies] == ["t7"]
    assert slices.of("tools.call", "tools/none").policies == ()
    assert slices.of("runs.create", "orgs/acme").policies == ()
    assert slices.of("runs.read", "x") is slices.of("runs.list", "y")


def test_slices_that_are_kept_hold_a_bounded_number_of_policies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside policies for one tool each, those for every tool are in a slice for each of them."""
    monkeypatch.setattr(slices_module, "MOST_POLICIES", 100)
    text = "\n".join(
        f'@id("a{number}") permit (principal, action == Action::"tools.call", resource);'
        f'@id("t{number}") forbid (principal, action == Action::"tools.call",'
        f' resource == Tool::"tools/t{number}");'
        for number in range(20)
    )
    rules = compile_policies(PolicySource({"x.cedar": text}, SCHEMA))
    slices = Slices(rules)
    book = RuleBook(rules, 1, slices=slices)
    asked = Question(WHO, "tools.call", "tools/unnamed", 2, CONTEXT)
    for _ in range(2):
        for number in range(20):
            forbidden = book.decide(replace(asked, resource=f"tools/t{number}"))
            assert forbidden.policy_ids == (f"t{number}",)
            assert slices.policy_count <= 100
    assert slices.policy_count == 84, "four slices of 21"
    monkeypatch.setattr(slices_module, "MOST_POLICIES", 5)
    assert book.decide(asked).allow
    assert slices.policy_count == 20, "what is asked now is kept, however many it holds"


def test_every_action_stands_in_the_group_that_the_slices_look_for() -> None:
    """A policy may name a group; the schema says which actions it holds."""
    schema = cedarpy.Schema.from_str(SCHEMA)
    for action in actions():
        group = action.partition(".")[0]
        policy = (
            f'permit (principal, action in Action::"{group}", resource == Org::"orgs/acme")'
            f' when {{ action == Action::"{action}" }};'
        )
        assert cedarpy.validate_policies(policy, schema).validation_passed
        assert f'action "{action}" in ["{group}"]' in SCHEMA
