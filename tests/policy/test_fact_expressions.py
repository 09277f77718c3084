"""Expressions over facts have the value that Cedar gives them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cedarpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remit.policy.fact_expressions import NOW, Expression, expression, matches
from remit.policy.grants import cedar_time

FACTS: Final = "context.tool_call.facts"
TEXTS: Final = ("", "/a", "/a/b", "/é*", "x")
UID: Final = {"type": "T", "id": "x"}
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)

strings = st.deferred(
    lambda: st.sampled_from(
        [f"{FACTS}.common_path", "context.tool_call.arguments_digest", *map(quoted, TEXTS)]
    )
)
sets = st.one_of(
    st.sampled_from([f"{FACTS}.path_prefixes", f"{FACTS}.hosts", f"{FACTS}.mail_domains"]),
    st.lists(strings, min_size=1, max_size=3).map(lambda texts: f"[{', '.join(texts)}]"),
)
written_times = st.sampled_from(
    [
        "1969-12-31",
        "2026-11-29",
        "2026-11-29T12:00:00Z",
        "2026-11-29T12:00:00.500Z",
        "2026-11-29T12:00:00-0130",
        "2026-11-29T00:00:00.001+2359",
        "9999-12-31T23:59:59.999Z",
    ]
)
written_durations = st.sampled_from(
    ["1ms", "-1ms", "1d2h3m4s5ms", "90m", "12h", "-36h", "0s", "9223372036854775807ms"]
)
times: st.SearchStrategy[str] = st.deferred(
    lambda: st.one_of(
        st.just("context.now"),
        written_times.map(lambda text: f'datetime("{text}")'),
        times.map(lambda time: f"{time}.toDate()"),
        st.builds("{}.offset({})".format, times, durations),
    )
)
durations: st.SearchStrategy[str] = st.deferred(
    lambda: st.one_of(
        written_durations.map(lambda text: f'duration("{text}")'),
        times.map(lambda time: f"{time}.toTime()"),
        st.builds("{}.durationSince({})".format, times, times),
    )
)
longs = st.one_of(
    st.integers(-30, 30).map(str),
    st.builds(
        "{}.to{}()".format,
        durations,
        st.sampled_from(["Days", "Hours", "Minutes", "Seconds", "Milliseconds"]),
    ),
)
equal = st.sampled_from(["==", "!="])
ordered = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
patterns = st.text(st.sampled_from("/ab*é"), max_size=5)
tests = st.one_of(
    st.builds("{} {} {}".format, strings, equal, strings),
    st.builds("{} {} {}".format, sets, equal, sets),
    st.builds('{} like "{}"'.format, strings, patterns),
    st.builds("{}.contains({})".format, sets, strings),
    st.builds("{}.containsAll({})".format, sets, sets),
    st.builds("{}.containsAny({})".format, sets, sets),
    sets.map("{}.isEmpty()".format),
    *(st.builds("{} {} {}".format, kind, ordered, kind) for kind in (times, durations, longs)),
)
some_texts = st.lists(st.sampled_from(TEXTS), max_size=3)
contexts = st.fixed_dictionaries(
    {
        "arguments_digest": st.sampled_from(TEXTS),
        "common_path": st.sampled_from(TEXTS),
        "path_prefixes": some_texts,
        "hosts": some_texts,
        "mail_domains": some_texts,
    }
)
moments = st.one_of(
    st.sampled_from(
        [BEGINNING - timedelta(milliseconds=1), datetime(2026, 11, 29, 12, tzinfo=UTC)]
    ),
    st.datetimes(
        datetime(1000, 1, 1),  # noqa: DTZ001 - the strategy wants bounds without a zone
        datetime(9999, 12, 31),  # noqa: DTZ001
        timezones=st.just(UTC),
    ),
)


def quoted(text: str) -> str:
    return f'"{text}"'


def read(test: str) -> Expression | None:
    policy = f"permit (principal, action, resource) when {{ {test} }};"
    (written,) = cedarpy.PolicySet.from_str(policy).to_pst().static_policies.values()
    return expression(written.clauses[0].expr)


def by_cedar(test: str, told: dict[str, Any], now: datetime) -> bool | None:
    """What Cedar says; None if it gets no value."""
    facts = {name: value for name, value in told.items() if name != "arguments_digest"}
    call = {"arguments_digest": told["arguments_digest"], "facts": facts}
    context = {"now": cedar_time(now), "tool_call": call}
    request = {"principal": UID, "action": UID, "resource": UID, "context": context}
    policy = f"permit (principal, action, resource) when {{ {test} }};"
    answer = cedarpy.is_authorized(request, policy, [])
    return None if answer.diagnostics.errors else answer.allowed


def by_us(test: str, told: dict[str, Any], now: datetime) -> bool | None:
    found = read(test)
    assert found is not None, test
    assert found.kind == "bool"
    seen = {
        name: frozenset(value) if isinstance(value, list) else value for name, value in told.items()
    }
    seen[NOW] = (now - BEGINNING) // timedelta(milliseconds=1)
    assert found.facts <= seen.keys()
    try:
        return bool(found.value({name: seen[name] for name in found.facts}))
    except OverflowError:
        return None


@settings(deadline=None, max_examples=400)
@given(tests, contexts, moments)
def test_an_expression_has_the_value_that_cedar_gives_it(
    test: str, told: dict[str, Any], now: datetime
) -> None:
    assert by_us(test, told, now) == by_cedar(test, told, now), test


NO_ARGUMENTS: Final = {
    "arguments_digest": "",
    "common_path": "",
    "path_prefixes": [],
    "hosts": [],
    "mail_domains": [],
}


@pytest.mark.parametrize(
    "test",
    [
        'context.now.toTime() >= duration("8h") && true',
        'context.now.offset(duration("9223372036854775807ms")).toTime() < duration("1s")',
        'duration("-1ms").toDays() == 0',
        'duration("-36h").toDays() == -1',
        'datetime("1969-12-31T23:59:59Z").toDate() == datetime("1969-12-31")',
        'datetime("1969-12-31T23:59:59Z").toTime() == duration("23h59m59s")',
        'datetime("2026-11-29T00:00:00-0100") == datetime("2026-11-29T01:00:00Z")',
        'duration("1d2h3m4s5ms").toMilliseconds() == 93784005',
        'duration("9223372036854775807ms").toMilliseconds() > 0',
    ],
)
def test_times_are_counted_as_in_cedar(test: str) -> None:
    now = datetime(2026, 11, 29, 12, tzinfo=UTC)
    plain = test.removesuffix(" && true")
    assert by_us(plain, NO_ARGUMENTS, now) == by_cedar(test, NO_ARGUMENTS, now)


@settings(deadline=None, max_examples=200)
@given(st.from_regex(r"-?[0-9dhms]{0,8}", fullmatch=True), st.booleans())
@example("1m1ms", False)  # noqa: FBT003 - which of the two
@example("2026-02-29", True)  # noqa: FBT003
@example("2026-11-29T24:00:00Z", True)  # noqa: FBT003
@example("2026-11-29T12:00:00.5Z", True)  # noqa: FBT003
@example("2026-11-29T12:00:00+2400", True)  # noqa: FBT003
@example("9223372036854775808ms", False)  # noqa: FBT003
@example("106751991168d", False)  # noqa: FBT003
def test_what_is_not_certain_is_no_function(text: str, is_time: bool) -> None:  # noqa: FBT001
    written = f'datetime("{text}")' if is_time else f'duration("{text}")'
    test = f"{written} == {written}"
    now = datetime(2026, 11, 29, 12, tzinfo=UTC)
    if read(test) is not None:
        assert by_cedar(test, NO_ARGUMENTS, now) is True


@pytest.mark.parametrize(
    "test",
    [
        "context.agent == context.agent",
        "context.tool_call == context.tool_call",
        f"{FACTS} == {FACTS}",
        f"principal.roles.contains({FACTS}.common_path)",
        f"[{FACTS}.hosts].contains({FACTS}.hosts)",
        f'(if {FACTS}.path_escapes then {FACTS}.common_path else "") like "/a*"',
        "context.now.toTime().toHours() * 2 > 16",
        f"{FACTS}.common_path == context.now",
    ],
)
def test_what_is_not_of_facts_alone_is_no_function(test: str) -> None:
    assert read(test) is None


texts_and_stars = st.text(st.sampled_from("ab*é\n"), max_size=8)


@given(texts_and_stars, texts_and_stars)
def test_a_pattern_matches_as_in_cedar(pattern: str, text: str) -> None:
    pieces = tuple(pattern.split("*"))
    regular = ".*".join(re.escape(piece) for piece in pieces)
    assert matches(pieces, text) == bool(re.fullmatch(regular, text, re.DOTALL))
    written = pattern.replace("\n", "\\n")
    policy = f'permit (principal, action, resource) when {{ context.text like "{written}" }};'
    request = {"principal": UID, "action": UID, "resource": UID, "context": {"text": text}}
    assert matches(pieces, text) == cedarpy.is_authorized(request, policy, []).allowed
