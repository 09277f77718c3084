"""What a failure means, for every reason that there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.failures import (
    Verdict,
    backoff_s,
    is_told_to_model,
    judge_model_failure,
    judge_tool_failure,
)
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

ALL = [reason for reason in reasons.ErrorReason.values() if reason]


@pytest.mark.parametrize("reason", ALL)
def test_every_reason_has_a_verdict_that_fits_its_contract(
    reason: reasons.ErrorReason.ValueType,
) -> None:
    error = RemitError(reason, "x")
    for verdict in (judge_model_failure(error), judge_tool_failure(error)):
        if error.retryable:
            assert verdict is Verdict.RETRY
        else:
            assert verdict is not Verdict.RETRY or reason == reasons.ERROR_REASON_CANCELLED
    assert judge_model_failure(error) is not Verdict.TELL_MODEL
    if judge_tool_failure(error) is Verdict.TELL_MODEL:
        assert is_told_to_model(error.to_status())
    if judge_tool_failure(error) in {Verdict.FAIL, Verdict.IN_DOUBT}:
        assert not is_told_to_model(error.to_status())


@given(
    st.integers(min_value=1, max_value=10_000),
    st.one_of(st.none(), st.floats(min_value=0, max_value=1_000)),
    st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_the_backoff_is_bounded_and_honours_advice(
    attempt: int, advised_s: float | None, chance: float
) -> None:
    waited = backoff_s(attempt, advised_s, base_s=0.5, cap_s=30, chance=lambda: chance)
    assert waited >= (advised_s or 0)
    assert 0.25 <= waited <= max(30, advised_s or 0)
