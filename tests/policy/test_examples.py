"""The example policies in docs/policies: they pass, and say what their cases say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.cases import decide_cases, read_cases, unreached
from remit.policy.epochs import read_policies
from remit.policy.rule_sets import PolicySource
from remit.policy.rules import RuleBook, rule_book
from remit.policy.schema import SHIPPED_POLICIES
from remit.rpc.errors import RemitError

EXAMPLES = Path(__file__).parents[2] / "docs" / "policies"
SHIPPED = read_policies(SHIPPED_POLICIES)


def with_examples() -> RuleBook:
    files = {**SHIPPED.files, **read_policies(EXAMPLES).files}
    return rule_book(PolicySource(files, SHIPPED.schema), 1)


def test_they_say_what_their_cases_say_and_each_is_reached() -> None:
    book = with_examples()
    outcomes = decide_cases(book, read_cases((EXAMPLES / "cases.yaml").read_bytes(), "cases.yaml"))
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert set(unreached(book, outcomes)) <= set(unreached(rule_book(SHIPPED, 1), []))


def test_the_policy_of_the_page_is_one_of_them() -> None:
    page = (EXAMPLES.parent / "GUARDRAILS.md").read_text("utf-8")
    (policy,) = re.findall(r"```cedar\n(.*?)```", page, re.DOTALL)
    assert policy in (EXAMPLES / "guardrails.cedar").read_text("utf-8")


def a_case(**fields: str) -> bytes:
    given = {"name": "x", "subject": "orgs/acme/users/bob", "resource": "orgs/acme"} | fields
    lines = "".join(f"  {name}: {value!r}\n" for name, value in given.items())
    return f"cases:\n- {lines.lstrip()}".encode()


def test_a_case_of_guardrails_that_is_not_met_is_told_in_the_words_of_an_annotation() -> None:
    for said, words in (
        ("", "expected nothing, got agent.secrets.input=refuse, inference.secrets.input=redact"),
        ("ip_addresses.output=flag", "expected inference.ip_addresses.output=flag, tools.ip"),
    ):
        case = a_case(action="guardrails.apply", guardrails=said)
        (outcome,) = decide_cases(with_examples(), read_cases(case, "c"))
        assert outcome.fault.startswith(words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"action": "guardrails.apply", "expect": "allow"}, "a case of guardrails.apply says"),
        ({"action": "guardrails.apply"}, "a case of guardrails.apply says"),
        ({"action": "runs.create"}, "any other says `expect`"),
        ({"action": "runs.create", "guardrails": ""}, "any other says `expect`"),
        ({"action": "guardrails.apply", "guardrails": "secret.input=flag"}, "no detector secret"),
    ],
)
def test_a_case_expects_one_thing(fields: dict[str, str], words: str) -> None:
    with pytest.raises(RemitError, match=words) as caught:
        read_cases(a_case(**fields), "cases.yaml")
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
