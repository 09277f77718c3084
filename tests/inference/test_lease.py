"""The lease of a generation: it is never passed, asked for ahead, and no more than it must be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit.inference.lease import Lease

STEPS = st.integers(1, 300)
UNSENT = st.integers(0, 50)
MOST = st.integers(1, 5_000)
CHUNKS = st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.floats(0, 2)), max_size=60)
"""Tokens that come, whether the ledger has answered by then, and the seconds they took."""


@given(MOST, STEPS, UNSENT, CHUNKS, st.integers(0, 5_000), st.floats(0, 20))
def test_what_goes_on_is_held_with_what_is_under_way(
    most: int,
    step: int,
    unsent: int,
    chunks: list[tuple[int, bool, float]],
    money: int,
    ahead_s: float,
) -> None:
    """`money`: tokens that the budget covers in all."""
    lease = Lease(most, step, unsent, ahead_s)
    if lease.first() > money:
        return  # it does not begin
    lease.grant(lease.first())
    came, now = 0, 0.0
    for more, answered, seconds in chunks:
        came, now = came + more, now + seconds
        lease.grow(came, now)
        if answered and lease.wants_more:
            asked = lease.next()
            assert lease.held < asked <= most
            if asked <= money:
                lease.grant(asked)
                assert not lease.is_spent, "what is granted is enough to go on"
            else:
                less = lease.settle_for(money)
                if less is not None:
                    assert lease.held < less <= money
                    lease.grant(less)
        assert lease.held <= money
        assert lease.is_spent == (came + unsent > lease.held and lease.held < most)
        assert lease.wants_more or not lease.is_spent, "it is asked for before it is spent"
        if lease.is_spent:
            return


@given(MOST, STEPS, UNSENT)
def test_with_money_enough_a_steady_stream_comes_to_its_end(
    most: int, step: int, unsent: int
) -> None:
    lease = Lease(most, step, unsent)
    lease.grant(lease.first())
    asked = 0
    for came in range(most + 1):
        lease.grow(came, float(came))
        assert not lease.is_spent
        if lease.wants_more:
            asked += 1
            lease.grant(lease.next())
            assert lease.held - came <= step + unsent, "no more is held than a lease"
    assert asked <= 2 * most / step + 1, "each request brings half a lease at least"


def test_a_fast_stream_gets_a_longer_lease() -> None:
    lease = Lease(10_000, step=10, unsent=5, ahead_s=4.0)
    lease.grant(lease.first())
    assert lease.held == 15
    lease.grow(0, 100.0)
    lease.grow(300, 103.0)  # 100 tokens a second
    assert lease.next() == 300 + 5 + 400
    lease.grant(lease.next())
    lease.grow(499, 105.0)
    assert not lease.wants_more
    lease.grow(505, 105.05)
    assert lease.wants_more, "half of four seconds is left"


def test_a_request_without_an_answer_is_never_taken_back() -> None:
    lease = Lease(10_000, step=100, unsent=0, ahead_s=10.0)
    lease.grant(lease.first())
    lease.grow(0, 0.0)
    lease.grow(60, 1.0)
    asked = lease.next()
    lease.grow(61, 60.0)
    assert lease.next() >= asked, "cost may hold it, and takes no smaller bound"


def test_an_engine_that_is_held_whole_is_never_asked_for() -> None:
    lease = Lease(100, step=100, unsent=0)
    lease.grant(lease.first())
    lease.grow(400, 1.0)  # four times as much as it was allowed
    assert (lease.is_whole, lease.is_spent, lease.wants_more) == (True, False, False)
