"""What policy wants: read from an annotation, carried as a claim, added up, never loosened."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.guardrails import (
    BUILT_IN,
    INFERENCE,
    TOOLS,
    Direction,
    Mode,
    Rules,
    ServiceRules,
    Wanted,
    parse_wanted,
)
from remit.guardrails.tightening import MOST_KNOWN
from remit.guardrails.wanted import MAX_TEXT_CHARS, SERVICES
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit

PLACES = [
    (service, detector, direction)
    for service in SERVICES
    for detector in BUILT_IN
    for direction in Direction
    if (service, direction) != ("agent", Direction.OUTPUT)
]
wanteds = st.dictionaries(
    st.sampled_from(PLACES), st.sampled_from([mode for mode in Mode if mode is not Mode.OFF])
).map(Wanted)
modes = st.sampled_from(list(Mode))
settings_rules = st.dictionaries(
    st.tuples(st.sampled_from(sorted(BUILT_IN)), st.sampled_from(list(Direction))), modes
).map(Rules)


def no_looser(stricter: Rules, than: Rules) -> bool:
    return all(
        stricter.mode(detector, direction).strictness >= than.mode(detector, direction).strictness
        for detector in BUILT_IN
        for direction in Direction
    )


def a_remit(guardrails: str) -> Remit:
    now = datetime.now(UTC)
    nobody = options_pb2.CALLER_PUBLIC
    subject = "orgs/acme/users/alice"
    return Remit(
        "r", subject, "", "", "", nobody, frozenset(), frozenset(), frozenset(), subject,
        None, 0, 1, frozenset(), "k", now, now, guardrails=guardrails,
    )  # fmt: skip


def test_a_part_with_a_service_is_of_it_alone_and_one_without_is_of_all() -> None:
    wanted = parse_wanted(" tools.personal_data.output=redact, secrets.input = refuse, ")
    assert wanted.modes == {
        ("tools", "personal_data", Direction.OUTPUT): Mode.REDACT,
        ("agent", "secrets", Direction.INPUT): Mode.REFUSE,
        ("inference", "secrets", Direction.INPUT): Mode.REFUSE,
        ("tools", "secrets", Direction.INPUT): Mode.REFUSE,
    }
    both = parse_wanted("secrets.output=flag").modes
    assert {service for service, _, _ in both} == {INFERENCE, TOOLS}


def test_of_two_parts_about_the_same_the_stricter_counts() -> None:
    wanted = parse_wanted("tools.secrets.input=refuse, secrets.input=flag")
    assert wanted.modes["tools", "secrets", Direction.INPUT] is Mode.REFUSE
    assert wanted.modes["agent", "secrets", Direction.INPUT] is Mode.FLAG


def test_everything_wrong_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="is said twice") as caught:
        parse_wanted(
            "secrets, secrets=flag, secret.input=flag, secrets.both=flag, secrets.input=drop,"
            " policy.secrets.input=flag, agent.secrets.output=flag, a.b.secrets.input=flag,"
            " ip_addresses.input=off, tools.secrets.input=flag, tools.secrets.input=refuse"
        )
    for words in (
        "`secrets`: must be DETECTOR.DIRECTION=MODE",
        "`secrets=flag`: the direction must be input or output",
        "no detector secret; there are suspicious_patterns, secrets, personal_data, ip_addresses",
        "`secrets.both=flag`: the direction must be input or output",
        "the mode must be one of off, flag, redact, refuse",
        "there is no service policy; there are agent, inference, tools",
        "the service agent screens no output",
        "there is no service a.b",
        "a policy only tightens: the mode must be flag, redact or refuse",
        "`tools.secrets.input=refuse`: tools.secrets.input is said twice",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", " , ", "x" * (MAX_TEXT_CHARS + 1)])
def test_what_says_nothing_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"says nothing|are the most"):
        parse_wanted(text)


@given(wanteds)
def test_a_claim_says_the_same_and_is_short(wanted: Wanted) -> None:
    assert Wanted.from_claim(wanted.claim) == wanted
    assert len(wanted.claim) <= 30 * len(BUILT_IN)
    assert not wanted.modes or parse_wanted(str(wanted)) == wanted


@given(st.text("adeprsonlt_:0123 ", max_size=40))
def test_no_claim_has_a_second_form(text: str) -> None:
    try:
        wanted = Wanted.from_claim(text)
    except ValueError:
        return
    assert wanted.claim == text


@pytest.mark.parametrize(
    "text",
    [
        "secrets:0000",
        "secrets:00004",
        "secrets:00000",
        "newer_detector:00002",
        " secrets:00002",
        "secrets:00002 secrets:00002",
        "personal_data:00002 secrets:00002",
        "secrets=00002",
    ],
)
def test_a_claim_of_another_version_is_no_remit(text: str) -> None:
    with pytest.raises(RemitError, match=r"not understood|not in their one form") as caught:
        ServiceRules(TOOLS, Rules()).of(a_remit(text))
    assert caught.value.reason == reasons.ERROR_REASON_REMIT_INVALID


@given(st.lists(wanteds, max_size=4), st.randoms())
def test_the_order_does_not_matter_and_nothing_that_is_added_loosens(
    several: list[Wanted], random: object
) -> None:
    shuffled = list(several)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    whole = Wanted.of(several)
    assert Wanted.of(shuffled) == whole
    assert Wanted.of([whole, whole]) == whole
    for part in several:
        for service in SERVICES:
            assert no_looser(whole.rules(service), part.rules(service))


@given(settings_rules, wanteds, wanteds)
def test_settings_are_only_tightened(own: Rules, wanted: Wanted, more: Wanted) -> None:
    for service in SERVICES:
        rules = ServiceRules(service, own)
        one = rules.of_claim(wanted.claim)
        both = rules.of_claim(Wanted.of([wanted, more]).claim)
        assert no_looser(one, own)
        assert no_looser(one, wanted.rules(service))
        assert no_looser(both, one)
        assert no_looser(own.tightened(one.beyond(own)), one)


def test_a_remit_that_says_nothing_leaves_the_settings_as_they_are() -> None:
    own = Rules.of("secrets.output=flag", "")
    assert ServiceRules(TOOLS, own).of(a_remit("")) is own


def test_rules_are_made_once_and_few_are_kept() -> None:
    rules = ServiceRules(TOOLS, Rules())
    first = rules.of_claim("secrets:00002")
    assert rules.of_claim("secrets:00002") is first
    for number in range(MOST_KNOWN):
        digits = "".join(str(number // 4**place % 4) for place in range(5))
        if digits.strip("0"):
            rules.of_claim(f"ip_addresses:{digits}")
    assert rules._by_claim.cache_info().currsize <= MOST_KNOWN
    assert rules.of_claim("secrets:00002") == first
