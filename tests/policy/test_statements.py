"""Cedar text taken apart: lines are right, and no text, however deep, ends the process."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.policy.rule_sets import (
    MAX_TEXT_BYTES,
    PolicyFault,
    PolicyFaultsError,
    PolicySource,
    WrittenPolicy,
    compile_policies,
)
from remit.policy.schema import schema_text
from remit.policy.statements import TextFaultError, statements

SCHEMA = schema_text()
AMPLE_S = 60.0
DEEP = 20_000


def test_each_policy_has_its_line_and_its_comments() -> None:
    text = (
        '// for all\n// of us\n\n@id("a")\npermit (principal, action, resource); // tail\n'
        '@id("b;{") // why\nforbid (principal, action, resource)\nwhen { "x\n;" == "//" };\n'
    )
    first, second = statements(text)
    assert (first.line, second.line) == (4, 6)
    assert first.text.startswith("// for all")
    assert second.text.endswith('when { "x\n;" == "//" };')


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        ("permit(\nprincipal", 1, "not closed"),
        ("\npermit(principal, action, resource)", 2, "does not end with `;`"),
        ("permit(principal];", 1, "closes nothing"),
        ("permit(principal;", 1, "is not closed before `;`"),
        ('\n\npermit(principal) when { "abc };', 3, "does not end"),
        ("}", 1, "closes nothing"),
    ],
)
def test_what_cannot_be_taken_apart_is_told_with_its_line(text: str, line: int, fault: str) -> None:
    with pytest.raises(TextFaultError, match=fault) as refused:
        statements(text)
    assert refused.value.line == line


def policy(condition: str) -> PolicySource:
    text = f'@id("deep") permit (principal, action, resource) when {{ {condition} }};'
    return PolicySource({"deep.cedar": text}, SCHEMA)


@pytest.mark.parametrize(
    "condition",
    [
        "(" * DEEP + "true" + ")" * DEEP,
        "[" * DEEP + "]" * DEEP,
        "{a:" * DEEP + "1" + "}" * DEEP,
        "!" * DEEP + "true",
        " && ".join(["true"] * DEEP),
        " || ".join(["context has agent"] * DEEP),
        "+".join(["1"] * DEEP) + " == 1",
        "-" * DEEP + "1 == 1",
        "if true then " * DEEP + "true" + " else false" * DEEP,
        "context" + ".a" * DEEP,
        "context" + '["a"]' * DEEP,
        "principal is User " * DEEP,
        " && ".join(["true"] * 150),
        "(" * 31 + " || ".join(["context has agent"] * 180) + ")" * 31,
    ],
)
def test_what_nests_too_deep_is_refused_and_soon(condition: str) -> None:
    """Cedar's own parser would end the process: it works by recursion, without a bound."""
    began = time.monotonic()
    with pytest.raises(PolicyFaultsError) as refused:
        compile_policies(policy(condition))
    assert refused.value.faults[0].file == "deep.cedar"
    assert time.monotonic() - began < AMPLE_S


def test_a_long_list_is_no_depth() -> None:
    names = ", ".join(f'"host{number}.example"' for number in range(1_500))
    condition = f"context has tool_call && [{names}].containsAll(context.tool_call.facts.hosts)"
    assert len(compile_policies(policy(condition)).policies) == 1


def test_a_giant_text_is_refused_before_it_is_parsed() -> None:
    line = '@id("p{}") permit (principal, action, resource);\n'
    text = "".join(line.format(number) for number in range(MAX_TEXT_BYTES // 40))
    with pytest.raises(PolicyFaultsError, match="bytes"):
        compile_policies(PolicySource({"giant.cedar": text}, SCHEMA))


FRAGMENTS = st.sampled_from(
    [
        *'(){}[];,.!+-*<>=&|@"\\/?:\n\r\0 ',
        "permit",
        "forbid",
        "principal",
        "action",
        "resource",
        "when",
        "unless",
        "context",
        "has",
        "like",
        "is",
        "in",
        "if",
        "then",
        "else",
        "true",
        "==",
        "&&",
        "||",
        "//",
        '"x"',
        '@id("p")',
        'Action::"tools.call"',
        'User::"orgs/a/users/b"',
        "?principal",
        "principal.roles",
        '.contains("member")',
        'datetime("2026-01-01")',
        "9223372036854775807",
        "permit (principal, action, resource)",
    ]
)


@settings(deadline=None, max_examples=400)
@given(
    st.lists(FRAGMENTS, max_size=60).map(" ".join)
    | st.binary(max_size=400).map(lambda raw: raw.decode("latin-1"))
)
def test_no_text_breaks_the_check(text: str) -> None:
    faults: list[PolicyFault] = []
    policies: tuple[WrittenPolicy, ...] = ()
    try:
        policies = compile_policies(PolicySource({"any.cedar": text}, SCHEMA)).policies
    except PolicyFaultsError as error:
        faults = error.faults
    assert all(fault.fault for fault in faults)
    assert all(policy.identifier for policy in policies)
