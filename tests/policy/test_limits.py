"""The log of admissions against a model that counts every window by brute force."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.policy.limits import MICROS, Limit, LogFullError, Meter, SlidingLog

ALICE, BOB, ORG = "orgs/acme/users/alice", "orgs/acme/users/bob", "orgs/acme"


def user(most: int, window_s: int, name: str = ALICE) -> Meter:
    return Meter("user", name, Limit(most, window_s))


class Model:
    """Remembers everything for ever, and looks at every window."""

    def __init__(self) -> None:
        self.times: defaultdict[str, list[int]] = defaultdict(list)

    def refusing(self, now: int, meters: Iterable[Meter]) -> list[Meter]:
        return [meter for meter in meters if not self.fits(now, meter)]

    def fits(self, now: int, meter: Meter) -> bool:
        """Whether one more now leaves every window of so many seconds within the limit."""
        times = [*self.times[meter.principal], now]
        return most_in_any_window(times, meter.limit.window_us) <= meter.limit.most

    def add(self, now: int, meters: Iterable[Meter]) -> None:
        for meter in meters:
            self.times[meter.principal].append(now)


def most_in_any_window(times: list[int], window_us: int) -> int:
    """A window that holds the most can be moved until it begins at one of them."""
    return max(sum(start <= time < start + window_us for time in times) for start in times)


steps = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from([0, 1, MICROS - 1, MICROS, MICROS + 1]), st.integers(0, 3 * MICROS)
        ),
        st.sampled_from([ALICE, BOB]),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 4))
def test_it_admits_exactly_what_no_window_forbids(
    steps: list[tuple[int, str]], most: int, window_s: int, org_most: int, org_window_s: int
) -> None:
    log, model, now = SlidingLog(1000), Model(), 0
    org = Meter("org", ORG, Limit(org_most, org_window_s))
    for pause, who in steps:
        now += pause
        meters = [user(most, window_s, who), org]
        refusals = log.admit(now, meters)
        assert [refusal.meter for refusal in refusals] == model.refusing(now, meters)
        if not refusals:
            model.add(now, meters)
        for refusal in refusals:
            assert not model.fits(now + refusal.wait_us - 1, refusal.meter)
            assert model.fits(now + refusal.wait_us, refusal.meter)


@given(steps, st.integers(1, 3))
def test_it_remembers_what_still_counts_and_nothing_else(
    steps: list[tuple[int, str]], window_s: int
) -> None:
    log, admitted, now = SlidingLog(1000), [], 0
    for pause, who in steps:
        now += pause
        if not log.admit(now, [user(3, window_s, who)]):
            admitted.append(now)
        assert len(log) == sum(now < time + window_s * MICROS for time in admitted)


def test_there_is_no_burst_at_the_edge_of_a_window() -> None:
    log = SlidingLog(1000)
    at = [59 * MICROS + n for n in range(10)] + [61 * MICROS + n for n in range(10)]
    admitted = [now for now in at if not log.admit(now, [user(10, 60)])]
    assert admitted == at[:10]


def test_a_place_is_free_again_a_window_after_it_was_taken_and_no_sooner() -> None:
    log = SlidingLog(1000)
    assert log.admit(5, [user(1, 60)]) == ()
    (refusal,) = log.admit(5 + 60 * MICROS - 1, [user(1, 60)])
    assert refusal.wait_us == 1
    assert log.admit(5 + 60 * MICROS, [user(1, 60)]) == ()


def test_what_one_limit_refuses_counts_against_none() -> None:
    log = SlidingLog(1000)
    org = Meter("org", ORG, Limit(1, 60))
    assert log.admit(0, [user(1, 60), org]) == ()
    assert [r.meter for r in log.admit(1, [user(1, 60, BOB), org])] == [org]
    assert log.admit(2, [user(1, 60, BOB)]) == (), "Bob's place was not taken"


def test_time_does_not_go_backwards() -> None:
    log = SlidingLog(1000)
    assert log.admit(100 * MICROS, [user(1, 60)]) == ()
    (refusal,) = log.admit(0, [user(1, 60)])
    assert refusal.wait_us == 60 * MICROS


def test_a_full_log_admits_nobody_and_forgets_nothing_that_counts() -> None:
    log = SlidingLog(2)
    assert log.admit(0, [user(1, 60)]) == ()
    assert log.admit(10, [user(1, 60, BOB)]) == ()
    with pytest.raises(LogFullError) as full:
        log.admit(20, [user(1, 60, "orgs/acme/users/carol")])
    assert full.value.wait_us == 60 * MICROS - 20
    assert log.admit(20, [user(1, 60)]) != ()
    assert log.admit(60 * MICROS, [user(1, 60, "orgs/acme/users/carol")]) == ()
    assert len(log) == 2


def test_a_lower_limit_holds_at_once() -> None:
    log = SlidingLog(1000)
    assert [log.admit(n, [user(5, 60)]) for n in range(5)] == [()] * 5
    (refusal,) = log.admit(10, [user(2, 30)])
    assert refusal.wait_us == 3 + 30 * MICROS - 10
    assert log.admit(3 + 30 * MICROS, [user(2, 30)]) == ()
