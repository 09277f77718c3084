"""A failure is logged by its reason; what a provider or a tool said of it is not ours to log."""

from __future__ import annotations

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.telemetry import logs
from remit.telemetry.logs import WITHHELD, own_text


@pytest.mark.parametrize(
    "reason",
    [
        reasons.ERROR_REASON_PROVIDER_FAILED,
        reasons.ERROR_REASON_PROVIDER_UNAVAILABLE,
        reasons.ERROR_REASON_TOOL_FAILED,
        reasons.ERROR_REASON_INVALID_TOOL_ARGUMENTS,
        reasons.ERROR_REASON_EFFECT_IN_DOUBT,
    ],
)
def test_the_words_of_others_are_withheld(reason: reasons.ErrorReason.ValueType) -> None:
    assert own_text(RemitError(reason, "you wrote: secret")) == WITHHELD


def test_where_content_is_asked_for_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs._asked, "content", True)
    error = RemitError(reasons.ERROR_REASON_TOOL_FAILED, "you wrote: secret")
    assert own_text(error) == "you wrote: secret"


def test_our_own_words_are_logged() -> None:
    error = RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "the budget is spent")
    assert own_text(error) == "the budget is spent"
