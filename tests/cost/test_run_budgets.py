"""Budgets of each run: no run, with all that is below it, spends more than any of them says."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit import names
from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost.periods import Period, RunPeriod
from remit.cost.reservations import Reservation
from remit.cost.terms import Enforcement, Terms
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.cost.services import ALICE, CALCULATOR_NANOS, CostWorld, run_of
from tests.cost.test_budgets import delete_budget, list_alerts, list_budgets, refused, set_budget
from tests.cost.worlds import ORG, DictLedger, reserve, settle

RUN = reservation_pb2.PERIOD_RUN
USER = "orgs/acme/users/alice"
AGENT = f"{USER}/agents/assistant"
OUTER = f"{AGENT}/runs/{UUID(int=1)}"
INNER = f"{OUTER}/agents/writer/runs/{UUID(int=2)}"
INNERMOST = f"{INNER}/agents/writer/runs/{UUID(int=3)}"
OTHER = f"{AGENT}/runs/{UUID(int=4)}"
LEAVES = [USER, OUTER, INNER, INNERMOST, OTHER]
ACCOUNTS = [ORG, USER, AGENT, OUTER, INNER]


def terms(limit_nanos: int, enforcement: Enforcement = Enforcement.HARD) -> Terms:
    return Terms(limit_nanos, enforcement, (80, 100))


def limited_runs(account: str) -> list[str]:
    """The runs that a budget of each run on an account limits, told by their depth below it."""
    below = [leaf for leaf in LEAVES if "/runs/" in leaf and is_in(leaf, account)]
    return [run for run in below if not any(run != other and is_in(run, other) for other in below)]


def is_in(leaf: str, account: str) -> bool:
    return account in names.ancestors(leaf)


@given(
    st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(0, 60), max_size=3),
    st.lists(st.tuples(st.sampled_from(LEAVES), st.integers(0, 40), st.booleans()), max_size=12),
)
def test_a_hold_is_admitted_iff_its_runs_have_room(
    limits: dict[str, int], holds: list[tuple[str, int, bool]]
) -> None:
    ledger = DictLedger()
    ledger.budgets = {account: {RunPeriod.RUN: terms(limit)} for account, limit in limits.items()}
    counted: list[tuple[str, int]] = []
    for number, (leaf, nanos, is_settled) in enumerate(holds):
        fits = all(
            sum(amount for other, amount in counted if is_in(other, run)) + nanos <= limit
            for account, limit in limits.items()
            for run in limited_runs(account)
            if is_in(leaf, run)
        )
        (result,) = ledger.apply([reserve(number, nanos, account=leaf)])
        assert isinstance(result, Reservation) == (fits or nanos == 0)
        if isinstance(result, Reservation):
            counted.append((leaf, nanos))
            if is_settled:
                ledger.do(settle(number, None))
    for account, limit in limits.items():
        for run in limited_runs(account):
            assert ledger.balance(run).total_nanos <= limit


def test_a_refusal_names_the_budget_and_the_run() -> None:
    ledger = DictLedger()
    ledger.budgets = {USER: {RunPeriod.RUN: terms(10)}}
    ledger.do(reserve(1, 7, account=OUTER))

    with pytest.raises(RemitError) as caught:
        ledger.do(reserve(2, 4, account=INNER))

    error = caught.value
    assert error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert (error.metadata["account"], error.metadata["period"]) == (USER, "RUN")
    assert error.metadata["left_nanos"] == "3"
    assert error.quota[0].subject == USER
    assert "the RUN limit is 10 nano-USD, 3 left, 7 held" in error.quota[0].description
    assert error.quota[0].description.endswith(f"this is that of {OUTER}")
    assert error.retry_after_s is None


def test_a_soft_one_refuses_nothing_and_a_hard_one_does_not_lift_the_default() -> None:
    ledger = DictLedger(default_limit_nanos=20, default_period=Period.TOTAL)
    ledger.budgets = {
        ORG: {RunPeriod.RUN: terms(100)},
        USER: {RunPeriod.RUN: terms(1, Enforcement.SOFT)},
    }
    ledger.do(reserve(1, 20, account=OUTER))

    with pytest.raises(RemitError, match="orgs/acme has 0 nano-USD left of 20"):
        ledger.do(reserve(2, 1, account=OTHER))


async def test_each_run_has_the_budget_anew(world: CostWorld) -> None:
    budget = await set_budget(world, ALICE, calls=2, period=RUN)
    await world.spend(1, calls=2, token=world.run_token(1))

    error = await refused(world.spend(2, token=world.run_token(1)))
    sub_run = await refused(world.spend(3, token=world.run_token(2, below=[(1, None)])))
    await world.spend(4, calls=2, token=world.run_token(3))
    await world.spend(5, calls=9, token=world.client_token())

    assert not budget.HasField("renew_time")
    for refusal in (error, sub_run):
        assert refusal.metadata["period"] == "RUN"
    listed = (await list_budgets(world)).budgets[-1]
    assert (listed.period, listed.posted_nanos, listed.over_nanos) == (RUN, 0, 0)


async def test_it_stands_for_no_limit_of_the_org_whose_default_stays(world: CostWorld) -> None:
    await set_budget(world, calls=2, period=RUN)

    listed = (await list_budgets(world)).budgets

    assert [budget.is_default for budget in listed] == [True, False]


async def test_its_alerts_name_the_run_and_it_can_be_deleted(world: CostWorld) -> None:
    await set_budget(world, ALICE, calls=2, period=RUN, alert_percents=[100])
    await world.spend(1, calls=2, token=world.run_token(1))
    await world.spend(2, calls=2, token=world.run_token(2))

    second, first = (await list_alerts(world, account=ALICE)).alerts
    deleted = await delete_budget(world, ALICE, period=RUN)
    await world.spend(3, calls=5, token=world.run_token(1))
    await world.alerts.sweep()

    assert (first.run_account, first.run) == (f"{AGENT}/{run_of(1)}", run_of(1))
    assert (second.run_account, second.posted_nanos) == (
        f"{AGENT}/{run_of(2)}",
        2 * CALCULATOR_NANOS,
    )
    assert first.period == RUN
    assert not first.HasField("start_time")
    assert deleted.budget.period == RUN
    events = [event for event in world.audit.events.values() if event.action == "budgets.alert"]
    assert len(events) == 2


async def test_a_run_may_have_one_of_its_own(world: CostWorld) -> None:
    account = f"{AGENT}/{run_of(1)}"
    request = report_pb2.SetBudgetRequest(
        account=account, period=RUN, limit_nanos=CALCULATOR_NANOS, request_id="own"
    )
    with remit_token(world.client_token()):
        await world.reports().SetBudget(request)

    await world.spend(1, token=world.run_token(1))
    assert (await refused(world.spend(2, token=world.run_token(1)))).quota[0].subject == account
    await world.spend(3, calls=3, token=world.run_token(2))
