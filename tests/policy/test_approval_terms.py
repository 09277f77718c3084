"""The annotation `@approval`: what it means, and what is refused at load."""

from __future__ import annotations

import re

import pytest

from remit.policy.approval_terms import Rule, Terms, parsed_terms, wanted, words_of
from remit.policy.entities import Principal
from remit.policy.epochs import read_policies
from remit.policy.rule_sets import PolicySource
from remit.policy.rules import Question, RuleBook, rule_book
from remit.policy.schema import SHIPPED_POLICIES, schema_text
from remit.rpc.errors import RemitError
from scripts.protos import ROOT
from tests.policy.approvals import GUARDED, guarded
from tests.policy.test_rules import ADMIN, EXECUTE, MEMBER, WRITE, call

PERMIT = """
@id("shell-with-approval")
@approval("role:admin; quorum=2; expires=1h")
permit (principal, action == Action::"tools.call", resource == Tool::"tools/shell");
"""


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("team:ops", Terms((Rule(("team:ops",), 1),), 86_400)),
        (
            "team:ops, user:alice; quorum=2; expires=90m",
            Terms((Rule(("team:ops", "user:alice"), 2),), 5400),
        ),
        ("expires=30d;role:admin", Terms((Rule(("role:admin",), 1),), 2_592_000)),
    ],
)
def test_an_annotation_is_read(text: str, terms: Terms) -> None:
    assert parsed_terms(text) == terms


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "is not understood"),
        ("", "is not understood"),
        ("quorum=2", "names nobody"),
        ("ops", "'ops', which is not understood"),
        ("team:ops; quorum=0", "quorum is 0; it is from 1 to 10"),
        ("team:ops; quorum=11", "quorum is 11"),
        ("team:ops; quorum=1; quorum=2", "says quorum twice"),
        ("team:ops; expires=59s", "is 59; it is from 60"),
        ("team:ops; expires=31d", "it is from 60 to 2592000"),
        ("team:ops; expires=soon", "'expires=soon', which is not understood"),
        ("team:ops; team:dev", "'team:dev', which is not understood"),
        ("team:ops;", "'', which is not understood"),
        ("team:ops quorum=2", "not understood"),
        (", ".join(f"user:u{n}" for n in range(21)), "21 approvers; 20 are the most"),
    ],
)
def test_what_is_not_understood_refuses_the_policies(text: str | None, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parsed_terms(text)


def test_a_set_with_an_unknown_form_is_never_in_force() -> None:
    with pytest.raises(RemitError, match=r"mail\.cedar.*mail-with-approval.*quorum is 99"):
        rule_book(guarded("team:ops; quorum=99"), 1)


def test_a_quorum_counts_people_who_were_asked() -> None:
    rule = Rule(("role:admin", "team:ops"), 2)
    ops, admin, other = frozenset({"team:ops"}), frozenset({"role:admin"}), frozenset({"team:x"})
    assert rule.is_met([ops, admin])
    assert not rule.is_met([ops, other])
    assert not rule.is_met([ops])


def test_words_are_what_the_credential_says() -> None:
    words = words_of("orgs/acme/users/bob", "orgs/acme/teams/ops", {"member"})
    assert words == {"user:bob", "team:ops", "role:member"}


def test_of_several_every_one_must_be_met() -> None:
    one, two = parsed_terms("team:ops; expires=1h"), parsed_terms("role:admin; quorum=2")
    both = wanted(["a", "b"], {"a": one, "b": two})
    assert both == Terms((*one.rules, *two.rules), 3600)
    assert wanted(["a", "plain"], {"a": one}) is None
    assert wanted([], {"a": one}) is None


# ------------------------------------------------------------------------------------ decisions


def book(*more: str) -> RuleBook:
    files = dict(read_policies(SHIPPED_POLICIES).files)
    files |= {f"more{n}.cedar": text for n, text in enumerate(more)}
    return rule_book(PolicySource(files, schema_text()), 7)


def about(who: Principal, tool: str, permission_class: int) -> Question:
    return Question(who, "tools.call", f"tools/{tool}", permission_class, context=call())


def test_a_forbid_forbids_until_it_is_approved() -> None:
    rules = book(GUARDED.format(terms="team:ops"))
    found = rules.decide(about(MEMBER, "send_mail", WRITE))
    assert not found.allow
    assert found.approval == parsed_terms("team:ops")
    assert found.policy_ids == ("mail-with-approval",)
    assert found.reason == "needs approval: mail leaves the house only with approval"
    assert rules.decide(about(MEMBER, "calculator", WRITE)).allow


def test_no_approval_is_asked_for_what_nothing_permits() -> None:
    rules = book(GUARDED.format(terms="team:ops"))
    found = rules.decide(about(MEMBER, "send_mail", EXECUTE))
    assert (found.allow, found.approval) == (False, None)
    assert found.reason.startswith("no policy permits")


def test_no_approval_lifts_a_plain_forbid() -> None:
    plain = '@id("never") forbid (principal, action, resource == Tool::"tools/send_mail");'
    found = book(GUARDED.format(terms="team:ops"), plain).decide(about(MEMBER, "send_mail", WRITE))
    assert (found.allow, found.approval) == (False, None)
    assert found.policy_ids == ("mail-with-approval", "never")


def test_a_permit_permits_once_it_is_approved() -> None:
    rules = book(PERMIT)
    found = rules.decide(about(MEMBER, "shell", EXECUTE))
    assert (found.allow, found.approval) == (False, parsed_terms("role:admin;quorum=2;expires=1h"))
    # What something else permits anyway needs nobody.
    assert rules.decide(about(ADMIN, "shell", EXECUTE)).allow


def test_a_permit_and_a_forbid_want_both() -> None:
    forbid = GUARDED.replace("tools/send_fax", "tools/shell").format(terms="team:ops; expires=2m")
    found = book(PERMIT, forbid).decide(about(MEMBER, "shell", EXECUTE))
    assert found.approval == Terms((Rule(("team:ops",), 1), Rule(("role:admin",), 2)), 120)


def test_a_policy_that_fails_denies_whatever_an_approval_would_lift() -> None:
    broken = (
        '@id("broken") forbid (principal, action == Action::"tools.call", resource is Tool)'
        " when { resource.permission_class + 9223372036854775807 > 0 };"
    )
    found = book(GUARDED.format(terms="team:ops"), broken).decide(about(MEMBER, "send_mail", WRITE))
    assert (found.allow, found.approval) == (False, None)
    assert found.failed_policies == ("broken",)


APPROVAL = "approvals/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"


@pytest.mark.parametrize(
    ("who", "requester", "allowed", "by"),
    [
        (MEMBER, "orgs/acme/users/carl", True, "members-work"),
        (MEMBER, MEMBER.user, False, "nobody-approves-their-own"),
        (ADMIN, ADMIN.user, False, "nobody-approves-their-own"),
        (ADMIN, "orgs/other/users/carl", False, "own-approvals-only"),
    ],
)
def test_who_may_decide(who: Principal, requester: str, *, allowed: bool, by: str) -> None:
    found = book().decide(Question(who, "approvals.decide", APPROVAL, requester=requester))
    assert (found.allow, by in found.policy_ids) == (allowed, True)


def test_an_approval_without_its_requester_is_denied() -> None:
    assert not book().decide(Question(ADMIN, "approvals.decide", APPROVAL)).allow


def test_the_policies_of_the_page_work() -> None:
    page = (ROOT / "docs" / "APPROVALS.md").read_text("utf-8")
    examples = re.findall(r"```cedar\n(.*?)```", page, re.DOTALL)
    rules = book(*examples)
    found = rules.decide(about(ADMIN, "send_email", EXECUTE))
    assert found.approval == parsed_terms("team:ops, role:admin; quorum=2; expires=4h")
    team = "orgs/acme/teams/trainees"
    trainee = Principal("orgs/acme/users/tim", "orgs/acme", team, ("admin",))
    asked = Question(trainee, "approvals.decide", APPROVAL, requester=MEMBER.user)
    assert rules.decide(asked).policy_ids == ("trainees-approve-nothing",)
