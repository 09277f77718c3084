"""Why a generation ends before the model does, and what its turn then says."""

from __future__ import annotations

import functools
from enum import StrEnum
from typing import Final

from prometheus_client import Counter

from remit.api.inference.v1.message_pb2 import (
    FINISH_REASON_BUDGET,
    FINISH_REASON_DEADLINE,
    FINISH_REASON_PERMISSION,
    FinishReason,
)
from remit.rpc.errors import RemitError

CUTS: Final = Counter(
    "remit_generations_cut_total",
    "Generations that were ended before the model did, by model and cause: BUDGET, DEADLINE,"
    " PERMISSION, FENCED, or UNANSWERED where policy or cost gave no answer in time.",
    ["model", "cause"],
)


class Cause(StrEnum):
    """What a generation lacked."""

    BUDGET = "BUDGET"
    DEADLINE = "DEADLINE"
    PERMISSION = "PERMISSION"
    FENCED = "FENCED"
    """Its run is another worker's by now, who may ask for the turn again."""
    UNANSWERED = "UNANSWERED"
    """Policy or cost were away for longer than the lease lasted."""


FINISH_REASONS: Final[dict[Cause, FinishReason.ValueType]] = {
    Cause.BUDGET: FINISH_REASON_BUDGET,
    Cause.DEADLINE: FINISH_REASON_DEADLINE,
    Cause.PERMISSION: FINISH_REASON_PERMISSION,
}
"""Of turns that are answers, if partial ones. The others are failures that may pass."""


class Cut(Exception):  # noqa: N818 - what must happen, not a fault
    """A generation must end now."""

    def __init__(self, cause: Cause, error: RemitError) -> None:
        super().__init__(error.message)
        self.cause = cause
        self.error = error


def count_cut(model: str, cut: Cut) -> None:
    """Counts a generation that was cut."""
    _cuts(model, cut.cause).inc()


@functools.cache
def _cuts(model: str, cause: Cause) -> Counter:
    return CUTS.labels(model, cause)
