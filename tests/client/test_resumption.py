"""Pauses between tries grow, are spread by chance, and are bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.client.resumption import Patience
from remit.rpc.errors import RemitError
from tests.client.still import StillClock

BROKEN = RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_spread_over_the_upper_half_of_its_bound(failures: int, chance: float) -> None:
    patience = Patience()
    pause_s = StillClock().resumption(patience, chance).pause_s(failures, BROKEN)
    bound_s = min(patience.first_pause_s * 2 ** min(failures - 1, 20), patience.longest_pause_s)
    assert bound_s / 2 <= pause_s <= bound_s


@given(st.integers(1, 100), st.floats(0.1, 600))
def test_whoever_is_asked_to_wait_waits(failures: int, asked_s: float) -> None:
    busy = RemitError(reasons.ERROR_REASON_OVERLOADED, "busy", retry_after_s=asked_s)
    assert StillClock().resumption().pause_s(failures, busy) >= asked_s
