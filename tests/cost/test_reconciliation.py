"""The rules that compare a hold with its claim: each speaks of its own fault, none else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from remit.api.cost.v1 import ledger_difference_pb2
from remit.cost.reconciliation import (
    NEXT_STEPS,
    Attempt,
    AttemptState,
    Difference,
    Kind,
    Place,
    difference,
    is_resolved_late,
    place_of,
)
from remit.cost.reservations import Price, Reservation, ReservationKey, State, Usage
from tests.cost.worlds import START

ORG = "orgs/acme"
ALICE = "orgs/acme/users/alice"
PRICE = Price(version="a" * 64, source="file", call_nanos=10)
BOUND_S = 30.0
LIMIT_S = 900.0
KEY = ReservationKey(f"claims/{UUID(int=1)}", 1)


def held(
    state: State = State.HELD,
    *,
    hold_nanos: int = 100,
    posted_nanos: int = 0,
    overrun_nanos: int = 0,
    used: Usage | None = None,
    transfers: int = 1,
) -> Reservation:
    return Reservation(
        key=KEY,
        state=state,
        service="tools",
        day=START.date(),
        create_time=START,
        account=ALICE,
        item="tools/calculator",
        price=PRICE,
        hold_nanos=hold_nanos,
        posted_nanos=posted_nanos,
        overrun_nanos=overrun_nanos,
        used=used,
        transfers=transfers,
    )


def settled(calls: int, hold_nanos: int = 100) -> Reservation:
    bill = calls * PRICE.call_nanos
    posted = min(bill, hold_nanos)
    moves = sum(1 for n in (hold_nanos, posted, hold_nanos - posted, bill - posted, bill) if n)
    return held(
        State.SETTLED,
        hold_nanos=hold_nanos,
        posted_nanos=posted,
        overrun_nanos=bill - posted,
        used=Usage(calls=calls),
        transfers=moves,
    )


def attempt(state: AttemptState = AttemptState.STARTED, **changes: object) -> Attempt:
    ended = state not in {AttemptState.CLAIMED, AttemptState.STARTED}
    never = state in {AttemptState.CLAIMED, AttemptState.REFUSED}
    made = Attempt(
        place=Place("tools", KEY),
        org=ORG,
        state=state,
        is_in_doubt=state is AttemptState.IN_DOUBT,
        hold_nanos=None if never else 100,
        cost_nanos=0,
        used=None,
        age_s=1.0,
        lapsed_s=None,
        ended_s=0.5 if ended else None,
        is_closed=state is AttemptState.CLOSED,
        closing_bound_s=BOUND_S,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def done(calls: int, hold_nanos: int = 100, **changes: object) -> Attempt:
    cost = min(calls * PRICE.call_nanos, hold_nanos)
    told: dict[str, object] = {
        "hold_nanos": hold_nanos,
        "cost_nanos": cost,
        "used": Usage(calls=calls),
    }
    return replace(attempt(AttemptState.CLOSED), **told | changes)  # type: ignore[arg-type]


def found(reservation: Reservation | None, claim: Attempt | None) -> Difference | None:
    return difference(reservation, claim, open_limit_s=LIMIT_S)


WHOLE = held(State.SETTLED, posted_nanos=100, transfers=2)
FREED = held(State.RELEASED, transfers=2)
TOMBSTONE = replace(held(State.RELEASED, hold_nanos=0, transfers=0), account="", item="")

RIGHT = {
    "held before it starts": (held(), attempt(AttemptState.CLAIMED)),
    "under way": (held(), attempt()),
    "its lease lapsed a moment ago": (held(), attempt(lapsed_s=BOUND_S)),
    "ended, settled soon": (held(), attempt(AttemptState.DONE, ended_s=BOUND_S)),
    "in doubt, posted soon": (held(), attempt(AttemptState.IN_DOUBT)),
    "refused, released soon": (held(), attempt(AttemptState.REFUSED)),
    "settled, closed soon": (settled(5), done(5, state=AttemptState.DONE, is_closed=False)),
    "settled and closed": (settled(5), done(5)),
    "a bill above its hold": (settled(11), done(11)),
    "a free call": (
        settled(0, hold_nanos=0),
        done(0, hold_nanos=0),
    ),
    "in doubt, posted whole": (WHOLE, attempt(AttemptState.IN_DOUBT, is_closed=True)),
    "stopped and in doubt": (WHOLE, done(3, is_in_doubt=True)),
    "resolved late": (WHOLE, done(5)),
    "refused and released": (FREED, attempt(AttemptState.REFUSED, is_closed=True)),
    "refused by its owner once started": (FREED, attempt(AttemptState.REFUSED, hold_nanos=100)),
    "refused before it was reserved": (TOMBSTONE, attempt(AttemptState.REFUSED)),
    "claimed, not held yet": (None, attempt(AttemptState.CLAIMED)),
    "refused, never held": (None, attempt(AttemptState.REFUSED)),
    "extended": (held(hold_nanos=150, transfers=2), attempt()),
}
WRONG = {
    "a hold without a claim": (held(), None, Kind.CLAIM_MISSING),
    "money without a claim": (settled(5), None, Kind.CLAIM_MISSING),
    "a release without a claim": (TOMBSTONE, None, Kind.CLAIM_MISSING),
    "started, never held": (None, attempt(), Kind.RESERVATION_MISSING),
    "billed, never held": (None, done(5), Kind.RESERVATION_MISSING),
    "refused after it was held": (
        None,
        attempt(AttemptState.REFUSED, hold_nanos=100),
        Kind.RESERVATION_MISSING,
    ),
    "another org's": (held(), attempt(org="orgs/other"), Kind.OWNER_DIFFERS),
    "closed, and held": (held(), done(5), Kind.HOLD_LEFT),
    "refused and closed, and held": (
        held(),
        attempt(AttemptState.REFUSED, is_closed=True),
        Kind.HOLD_LEFT,
    ),
    "ended long ago": (
        held(),
        attempt(AttemptState.DONE, ended_s=BOUND_S + 1),
        Kind.CLOSING_OVERDUE,
    ),
    "lapsed long ago": (held(), attempt(lapsed_s=BOUND_S + 1), Kind.CLOSING_OVERDUE),
    "open for ever": (held(), attempt(age_s=LIMIT_S + 1), Kind.OPEN_TOO_LONG),
    "settled, and under way": (settled(5), attempt(), Kind.SETTLED_WHILE_OPEN),
    "refused, and posted": (settled(5), attempt(AttemptState.REFUSED), Kind.REFUSED_BUT_POSTED),
    "released, and under way": (FREED, attempt(), Kind.RELEASED_NOT_REFUSED),
    "released, and billed": (FREED, done(5), Kind.RELEASED_NOT_REFUSED),
    "in doubt, and a part posted": (
        settled(5),
        attempt(AttemptState.IN_DOUBT),
        Kind.DOUBT_NOT_WHOLE,
    ),
    "a nano more": (replace(settled(5), posted_nanos=51), done(5), Kind.BILL_DIFFERS),
    "the claim a nano less": (settled(5), done(5, cost_nanos=49), Kind.BILL_DIFFERS),
    "another usage": (settled(5), done(5, used=Usage(calls=5, input_tokens=1)), Kind.BILL_DIFFERS),
    "overrun forgotten": (replace(settled(11), overrun_nanos=0), done(11), Kind.BILL_DIFFERS),
    "posted whole for more than was held": (WHOLE, done(5, cost_nanos=101), Kind.BILL_DIFFERS),
    "held less than it started with": (held(hold_nanos=99), attempt(), Kind.HOLD_DIFFERS),
    "held more, and never extended": (held(hold_nanos=101), attempt(), Kind.HOLD_DIFFERS),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_no_difference(name: str) -> None:
    assert found(*RIGHT[name]) is None


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    reservation, claim, kind = WRONG[name]
    wrong = found(reservation, claim)
    assert wrong is not None
    assert wrong.kind is kind
    assert (wrong.claim, wrong.attempt, wrong.service) == (*KEY, "tools")
    assert wrong.explanation
    no_account = reservation is None or reservation is TOMBSTONE
    assert wrong.account == ("" if no_account else ALICE)
    assert wrong.org == ("" if reservation is TOMBSTONE else ORG)


def test_nothing_is_no_difference() -> None:
    assert found(None, None) is None


def test_every_kind_of_the_contract_is_known_and_says_what_to_do() -> None:
    stated = set(ledger_difference_pb2.LedgerDifference.Kind.values()) - {0}
    assert {int(kind) for kind in Kind} == stated
    assert set(NEXT_STEPS) == set(Kind)


def test_the_core_names_each_of_its_kinds_here() -> None:
    of_checks = {Kind.TRANSFERS_DIFFER, Kind.BALANCE_DIFFERS}
    assert {kind for _, _, kind in WRONG.values()} == set(Kind) - of_checks


def test_only_a_doubt_that_was_resolved_is_resolved_late() -> None:
    late = {name for name, pair in RIGHT.items() if is_resolved_late(*pair)}
    assert late == {"resolved late"}


CALLS = st.integers(0, 20)
HOLDS = st.integers(0, 20).map(lambda calls: calls * PRICE.call_nanos)
CHANGES: tuple[Callable[[Attempt], Attempt], ...] = (
    lambda a: replace(a, cost_nanos=a.cost_nanos + 1),
    lambda a: replace(a, cost_nanos=a.cost_nanos - 1),
    lambda a: replace(a, hold_nanos=(a.hold_nanos or 0) + 1),
    lambda a: replace(a, used=Usage(calls=(a.used or Usage()).calls + 1)),
    lambda a: replace(a, org="orgs/other"),
    lambda a: replace(a, is_in_doubt=True),
    lambda a: replace(a, state=AttemptState.STARTED, ended_s=None, is_closed=False),
    lambda a: replace(a, state=AttemptState.REFUSED),
)


@given(calls=CALLS, hold_nanos=HOLDS)
def test_a_settled_bill_agrees_with_its_claim_whatever_it_is(calls: int, hold_nanos: int) -> None:
    assert found(settled(calls, hold_nanos), done(calls, hold_nanos)) is None


@given(calls=CALLS, hold_nanos=HOLDS, change=st.sampled_from(CHANGES))
def test_a_change_of_the_claim_never_goes_unseen(
    calls: int, hold_nanos: int, change: Callable[[Attempt], Attempt]
) -> None:
    right = done(calls, hold_nanos)
    assert found(settled(calls, hold_nanos), change(right)) is not None


@given(
    calls=CALLS,
    hold_nanos=HOLDS,
    field=st.sampled_from(["posted_nanos", "overrun_nanos", "hold_nanos"]),
    by=st.sampled_from([-1, 1]),
)
def test_a_change_of_the_reservation_never_goes_unseen(
    calls: int, hold_nanos: int, field: str, by: int
) -> None:
    right = settled(calls, hold_nanos)
    value = getattr(right, field) + by
    assume(value >= 0)
    changed = replace(right, **{field: value})
    assert found(changed, done(calls, hold_nanos)) is not None


@given(state=st.sampled_from(State), claim=st.sampled_from(AttemptState), age=st.floats(0, 1e6))
def test_every_pair_is_judged(state: State, claim: AttemptState, age: float) -> None:
    pair = {State.HELD: held(), State.SETTLED: settled(5), State.RELEASED: FREED}[state]
    told = attempt(claim, age_s=age, lapsed_s=age, cost_nanos=50, used=Usage(calls=5))
    wrong = found(pair, told)
    assert wrong is None or wrong.kind in Kind
    assert place_of(pair) == told.place
