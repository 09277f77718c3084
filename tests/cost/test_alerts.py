"""When an alert is due: by the posting that reaches a share, or by a limit reached already.

The property compares with no second implementation: it says what must hold of the alerts of any
history, whatever decided them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from remit.cost.accounts import BalanceKey, balance_key
from remit.cost.admission import DefaultBudget
from remit.cost.alerts import Alert, Cause, Told, alerts_of_change
from remit.cost.books import Balance
from remit.cost.periods import Period, RunPeriod
from remit.cost.terms import Enforcement, Terms, percents_fault, terms_of_account
from tests.cost.worlds import ALICE, ORG, OTHER_RUN, RUN, TEAM_RUN, DictLedger, reserve, settle

HARD, SOFT = Enforcement.HARD, Enforcement.SOFT
DEFAULT_LIMIT = 200


def terms(limit_nanos: int, *percents: int, enforcement: Enforcement = SOFT) -> Terms:
    return Terms(limit_nanos, enforcement, percents or (80, 100))


class World:
    """A ledger whose budgets change as the store changes them."""

    def __init__(self, default_limit_nanos: int = 10**12) -> None:
        self.ledger = DictLedger(default_limit_nanos=default_limit_nanos)
        self._spent = 0

    @property
    def default(self) -> DefaultBudget:
        return self.ledger.rules().default_budget

    def change(self, account: str, period: Period, wanted: Terms | None) -> None:
        """Sets a budget, or deletes it."""
        own = self.ledger.budgets.setdefault(account, {})
        own.pop(period, None)
        self.ledger.limits.setdefault(account, {}).pop(period, None)
        if wanted is not None:
            own[period] = wanted
            if wanted.enforcement is HARD:
                self.ledger.limits[account][period] = wanted.limit_nanos
        self.ledger.alerts += alerts_of_change(
            self.applying(account), self.told(), Cause(ALICE), self.ledger.now
        )

    def applying(self, account: str) -> list[tuple[BalanceKey, Terms, Balance]]:
        found = []
        for period, each in terms_of_account(account, self.ledger.budgets, self.default):
            if period is RunPeriod.RUN:
                continue
            key = balance_key(account, period, self.ledger.now.date())
            found.append((key, each, self.ledger.balances.get(key, Balance())))
        return found

    def told(self) -> dict[Told, int]:
        told: dict[Told, int] = {}
        for alert in self.ledger.alerts:
            name = Told(alert.key, alert.terms.is_default, alert.percent)
            told[name] = max(alert.terms.limit_nanos, told.get(name, -1))
        return told

    def spend(self, *amounts: int, leaf: str = RUN, later: timedelta | None = None) -> None:
        """Holds and settles each amount; all of them in one batch."""
        numbers = range(self._spent + 1, self._spent + 1 + len(amounts))
        self._spent += len(amounts)
        self.ledger.apply(
            [reserve(n, a, account=leaf) for n, a in zip(numbers, amounts, strict=True)]
        )
        self.ledger.now += later or timedelta()
        self.ledger.apply([settle(n, None) for n in numbers if self.is_held(n)])

    def is_held(self, number: int) -> bool:
        return reserve(number, 0).key in self.ledger.reservations

    def seen(self) -> list[tuple[str, int, int, int]]:
        return [
            (a.key.account, a.percent, a.terms.limit_nanos, a.posted_nanos)
            for a in self.ledger.alerts
        ]


def test_each_share_is_told_when_it_is_reached_and_not_again() -> None:
    world = World()
    world.change(ALICE, Period.MONTH, terms(100))

    world.spend(79)
    assert world.seen() == []
    world.spend(1)
    world.spend(19)
    assert world.seen() == [(ALICE, 80, 100, 80)]
    world.spend(1)
    world.spend(50)

    assert world.seen() == [(ALICE, 80, 100, 80), (ALICE, 100, 100, 100)]


def test_what_is_held_is_not_told_of() -> None:
    world = World()
    world.change(ALICE, Period.MONTH, terms(100))

    world.ledger.do(reserve(1, 100))
    assert world.seen() == []
    world.ledger.do(settle(1, 10))

    assert world.seen() == []


def test_a_batch_that_passes_several_shares_names_the_effect_that_reached_each() -> None:
    world = World()
    world.change(ORG, Period.TOTAL, terms(100, 50, 80, 300, enforcement=SOFT))

    world.spend(30, 30, 30, 30)

    assert world.seen() == [(ORG, 50, 100, 60), (ORG, 80, 100, 90)]
    first, second = world.ledger.alerts
    assert first.cause == Cause(
        ALICE, RUN.rpartition("/agents/assistant/")[2], reserve(2, 0).key[0]
    )
    assert second.cause.claim == reserve(3, 0).key[0]


def test_every_budget_above_an_effect_tells_for_itself() -> None:
    world = World()
    for account in (ORG, "orgs/acme/teams/core", "orgs/acme/teams/core/users/bob", TEAM_RUN):
        world.change(account, Period.TOTAL, terms(10))

    world.spend(10, leaf=TEAM_RUN)

    told = [(account, percent) for account, percent, _, _ in world.seen()]
    assert len(told) == len(set(told)) == 8


def test_a_new_period_is_told_of_anew() -> None:
    world = World()
    world.change(ALICE, Period.DAY, terms(10, 100))

    world.spend(10)
    world.ledger.now += timedelta(days=1)
    world.spend(10)

    first, second = world.ledger.alerts
    assert second.key.start - first.key.start == timedelta(days=1)


def test_an_alert_belongs_to_the_period_in_which_the_hold_began() -> None:
    world = World()
    world.change(ALICE, Period.DAY, terms(10, 100))
    day = world.ledger.now.date()

    world.spend(10, later=timedelta(days=2))

    (alert,) = world.ledger.alerts
    assert (alert.key.start, alert.fire_time.date()) == (day, day + timedelta(days=2))


def test_a_limit_that_was_reached_before_it_was_set_is_told_at_once() -> None:
    world = World()
    world.spend(90)

    world.change(ALICE, Period.MONTH, terms(100))
    world.change(ALICE, Period.MONTH, terms(50))

    # 80 % of more was told already; 100 % was not.
    assert world.seen() == [(ALICE, 80, 100, 90), (ALICE, 100, 50, 90)]
    assert world.ledger.alerts[0].cause == Cause(ALICE)


def test_a_raised_limit_is_told_of_when_it_is_reached_in_turn() -> None:
    world = World()
    world.change(ALICE, Period.MONTH, terms(100, 80))
    world.spend(85)
    world.change(ALICE, Period.MONTH, terms(200, 80))
    world.spend(74)
    world.change(ALICE, Period.MONTH, terms(100, 80))
    world.change(ALICE, Period.MONTH, terms(200, 80))
    assert len(world.seen()) == 1

    world.spend(1)

    assert world.seen() == [(ALICE, 80, 100, 85), (ALICE, 80, 200, 160)]


def test_a_limit_of_nothing_is_reached_by_the_first_nano() -> None:
    world = World()
    world.change(ALICE, Period.MONTH, terms(0, 100))
    assert world.seen() == []

    world.spend(1)

    assert world.seen() == [(ALICE, 100, 0, 1)]


def test_an_org_without_a_hard_budget_keeps_the_default_and_its_alerts() -> None:
    world = World(default_limit_nanos=DEFAULT_LIMIT)
    world.change(ORG, Period.MONTH, terms(20, 100))

    world.spend(150, 40)
    world.spend(40)

    # The soft budget refuses nothing, the default does.
    assert world.seen() == [(ORG, 80, DEFAULT_LIMIT, 190), (ORG, 100, 20, 150)]
    assert [alert.terms.is_default for alert in world.ledger.alerts] == [True, False]
    assert world.ledger.balance(ORG).posted_nanos == 190


OUTER = f"{ALICE}/agents/assistant/runs/{UUID(int=7)}"
INNER = f"{OUTER}/agents/writer/runs/{UUID(int=8)}"


def test_a_budget_of_each_run_tells_of_each_run_with_its_sub_runs() -> None:
    world = World()
    world.ledger.budgets[ALICE] = {RunPeriod.RUN: terms(10, 80)}

    world.spend(4, leaf=OUTER)
    world.spend(4, leaf=INNER)
    world.spend(9, leaf=RUN)
    world.spend(9, leaf=ALICE)
    world.spend(9, leaf=TEAM_RUN)

    first, second = world.ledger.alerts
    assert (first.account, first.period, first.run_account) == (ALICE, RunPeriod.RUN, OUTER)
    assert (first.posted_nanos, first.cause.run) == (8, f"runs/{UUID(int=8)}")
    assert (second.run_account, second.posted_nanos) == (RUN, 9)


def test_percents_are_few_different_and_in_bounds() -> None:
    assert percents_fault([]) == ""
    assert percents_fault([1, 1000]) == ""
    assert "between 1 and 1000" in percents_fault([0])
    assert "between 1 and 1000" in percents_fault([1001])
    assert "twice" in percents_fault([80, 80])
    assert "8 at most" in percents_fault(range(1, 10))


# --------------------------------------------------------------------------------- any history


class Spend(NamedTuple):
    leaf: str
    amounts: tuple[int, ...]
    hours_open: int


class Change(NamedTuple):
    account: str
    period: Period
    terms: Terms | None


PERCENTS = st.sampled_from([(80, 100), (50,), (1, 99, 100, 250)])
TERMS = st.builds(Terms, st.integers(0, 150), st.sampled_from(Enforcement), PERCENTS)
SPENDS = st.builds(
    Spend,
    st.sampled_from([RUN, OTHER_RUN, ALICE, TEAM_RUN]),
    st.lists(st.integers(0, 60), min_size=1, max_size=3).map(tuple),
    st.sampled_from([0, 0, 0, 9, 30]),
)
CHANGES = st.builds(
    Change,
    st.sampled_from([ORG, ALICE, "orgs/acme/teams/core"]),
    st.sampled_from([Period.TOTAL, Period.DAY, Period.MONTH]),
    st.one_of(TERMS, TERMS, st.none()),
)


@given(st.lists(st.one_of(SPENDS, CHANGES), max_size=12))
def test_alerts_of_any_history(history: list[Spend | Change]) -> None:
    world = World(default_limit_nanos=DEFAULT_LIMIT)
    for step in history:
        known = len(world.ledger.alerts)
        if isinstance(step, Spend):
            later = timedelta(hours=step.hours_open)
            world.spend(*step.amounts, leaf=step.leaf, later=later)
        else:
            world.change(step.account, step.period, step.terms)
        _are_true(world, world.ledger.alerts[known:])
        _nothing_is_missing(world)
    _nothing_is_told_twice(world)


def _are_true(world: World, alerts: list[Alert]) -> None:
    for alert in alerts:
        assert 0 < alert.posted_nanos <= world.ledger.balances[alert.key].posted_nanos
        assert alert.posted_nanos * 100 >= alert.terms.limit_nanos * alert.percent
        assert alert.cause.subject


def _nothing_is_missing(world: World) -> None:
    """Whatever a budget that applies now has reached was told, under its limit or a higher one."""
    told = world.told()
    for account in (ORG, ALICE, "orgs/acme/teams/core"):
        for key, each, balance in world.applying(account):
            for percent in each.reached(balance.posted_nanos):
                assert told[Told(key, each.is_default, percent)] >= each.limit_nanos


def _nothing_is_told_twice(world: World) -> None:
    """The same share of a period is told again only of a limit that is higher than all before."""
    told: dict[Told, int] = {}
    for alert in world.ledger.alerts:
        name = Told(alert.key, alert.terms.is_default, alert.percent)
        assert alert.terms.limit_nanos > told.get(name, -1)
        told[name] = alert.terms.limit_nanos
