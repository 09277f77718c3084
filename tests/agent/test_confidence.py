"""How sure an answer is: by whose word, and when the agent says nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.confidence import (
    ConfidenceRule,
    ConfidenceSource,
    WhenUnknown,
    abstains,
    canned,
    of_answer,
    said,
)
from remit.agent.confidence import (
    given as given_by,
)
from remit.api.agent.v1 import confidence_pb2

MEASURED = ConfidenceRule()
SELF_REPORTED = ConfidenceRule(source=ConfidenceSource.SELF_REPORTED)


@given(st.floats(min_value=0, max_value=1), st.floats(min_value=0, max_value=1), st.text())
def test_an_agent_answers_exactly_where_it_is_sure_enough(
    least: float, value: float, text: str
) -> None:
    rule = ConfidenceRule(min=least)
    answer = given_by(rule, text, of_answer(rule, text, value))
    is_answer = answer.confidence.kind == confidence_pb2.ANSWER_KIND_ANSWER
    assert is_answer == (value >= least)
    assert answer.confidence.value == value
    assert answer.confidence.source == confidence_pb2.CONFIDENCE_SOURCE_MEASURED
    if is_answer:
        assert answer.text == text


def test_the_words_of_an_abstention_say_why() -> None:
    answer = given_by(MEASURED, "Paris", of_answer(MEASURED, "Paris", 0.42))
    assert answer.text == (
        "I do not answer this: my confidence in the answer that I have is 0.42, and I answer only"
        " from 0.80 on."
    )
    assert "Paris" not in answer.text


def test_an_agent_may_abstain_in_words_of_its_own() -> None:
    rule = ConfidenceRule(abstention="Please ask a person.")
    assert given_by(rule, "Paris", of_answer(rule, "Paris", 0.1)).text == "Please ask a person."


def test_what_nobody_measured_is_not_known_to_be_sure() -> None:
    unknown = of_answer(MEASURED, "Paris", None)
    assert abstains(MEASURED, unknown)
    assert "nothing says how sure" in given_by(MEASURED, "Paris", unknown).text
    assert not abstains(ConfidenceRule(when_unknown=WhenUnknown.ANSWER), unknown)
    assert not abstains(ConfidenceRule(min=0), unknown)


def test_without_a_rule_the_answer_stands_and_nobody_says_how_sure_it_is() -> None:
    answer = given_by(None, "Paris", confidence_pb2.Confidence())
    assert answer.text == "Paris"
    assert not answer.confidence.HasField("value")
    assert answer.confidence.source == confidence_pb2.CONFIDENCE_SOURCE_NONE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_says_nothing(value: float) -> None:
    assert not of_answer(MEASURED, "", value).HasField("value")


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("Paris.\nConfidence: 0.9", 0.9, "Paris."),
        ("Paris.\n\n**Confidence:** 85 %\n", 0.85, "Paris."),
        ("Paris.\nconfidence = 1", 1.0, "Paris."),
        ("Paris.\nConfidence: 0", 0.0, "Paris."),
        ("Confidence: 0.9", 0.9, ""),
        ("Paris.", None, "Paris."),
        ("Paris.\nConfidence: high", None, "Paris.\nConfidence: high"),
        ("Paris.\nConfidence: 7", None, "Paris."),
        ("Confidence: 0.9\nParis.", None, "Confidence: 0.9\nParis."),
        ("My confidence: 0.9 is high", None, "My confidence: 0.9 is high"),
    ],
)
def test_what_a_model_says_of_itself_is_read_from_its_last_line(
    text: str, value: float | None, rest: str
) -> None:
    found = of_answer(SELF_REPORTED, text, 0.1)
    assert (found.value if found.HasField("value") else None) == value
    assert said(SELF_REPORTED, text) == rest
    if value is not None:
        assert found.source == confidence_pb2.CONFIDENCE_SOURCE_SELF_REPORTED


@given(st.text())
def test_only_one_source_counts(text: str) -> None:
    assert said(MEASURED, text) == text
    assert of_answer(MEASURED, text, 0.5).value == 0.5
    reported = of_answer(SELF_REPORTED, text, 0.5)
    assert reported.source != confidence_pb2.CONFIDENCE_SOURCE_MEASURED


def test_nobody_is_sure_of_a_canned_answer() -> None:
    answer = canned("Call us.")
    assert answer.confidence.HasField("value")
    assert answer.confidence.value == 0.0
    assert answer.confidence.kind == confidence_pb2.ANSWER_KIND_CANNED
