"""The mean of token probabilities: between the least and the greatest, and never a guess."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.inference.token_probabilities import TokenProbabilities

logprobs = st.lists(st.floats(min_value=-50, max_value=0), min_size=1, max_size=50)


def mean_of(*parts: list[Any], part: str = "content") -> float | None:
    gathered = TokenProbabilities()
    for tokens in parts:
        gathered.add({"logprobs": {part: [{"logprob": token} for token in tokens]}})
    return gathered.mean()


@given(logprobs)
def test_it_lies_between_the_least_and_the_greatest(tokens: list[float]) -> None:
    mean = mean_of(tokens)
    assert mean is not None
    assert math.exp(min(tokens)) <= mean * (1 + 1e-9)
    assert mean <= math.exp(max(tokens)) * (1 + 1e-9)
    assert 0 <= mean <= 1


@given(logprobs, st.integers(min_value=0, max_value=50))
def test_how_a_stream_is_cut_into_chunks_changes_nothing(tokens: list[float], cut: int) -> None:
    assert mean_of(tokens) == mean_of(tokens[:cut], tokens[cut:])


def test_a_refusal_counts_like_an_answer() -> None:
    assert mean_of([math.log(0.5)], part="refusal") == pytest.approx(0.5)


def test_a_token_that_could_hardly_be_less_likely_makes_the_mean_nothing() -> None:
    assert mean_of([-9999.0, 0]) == 0.0
    assert mean_of([-math.inf]) == 0.0


@pytest.mark.parametrize("malformed", [None, "0", True, 0.5, math.nan, math.inf, {}])
def test_where_a_token_is_malformed_nothing_is_known(malformed: object) -> None:
    assert mean_of([-0.1, malformed, -0.1]) is None


@pytest.mark.parametrize(
    "choice",
    [{}, {"logprobs": None}, {"logprobs": {}}, {"logprobs": {"content": None}}, {"logprobs": []}],
)
def test_without_tokens_nothing_is_known(choice: dict[str, Any]) -> None:
    gathered = TokenProbabilities()
    gathered.add(choice)
    assert gathered.mean() is None


def test_tokens_beside_something_malformed_are_no_whole() -> None:
    gathered = TokenProbabilities()
    gathered.add({"logprobs": {"content": [{"logprob": -0.1}]}})
    gathered.add({"logprobs": "none"})
    assert gathered.mean() is None
