"""CostReportService: spend by each dimension, budgets, and their place in the audit log."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import cost_service_pb2, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.cost.messages import timestamp
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.cost.services import (
    ALICE,
    BOB,
    CALCULATOR_NANOS,
    CORE,
    EVE,
    CostWorld,
    claim_of,
    run_of,
)

ListSpendRequest = report_pb2.ListSpendRequest


async def list_spend(
    world: CostWorld, group_by: ListSpendRequest.Dimension.ValueType, **fields: Any
) -> report_pb2.ListSpendResponse:
    with remit_token(world.client_token()):
        return await world.reports().ListSpend(ListSpendRequest(group_by=group_by, **fields))


async def set_budget(
    world: CostWorld,
    account: str = "orgs/acme",
    limit_nanos: int = 10 * CALCULATOR_NANOS,
    *,
    period: reservation_pb2.Period.ValueType = reservation_pb2.PERIOD_TOTAL,
    request_id: str = "one",
    subject: str = ALICE,
) -> reservation_pb2.Budget:
    request = report_pb2.SetBudgetRequest(
        account=account, period=period, limit_nanos=limit_nanos, request_id=request_id
    )
    with remit_token(world.client_token(subject)):
        return (await world.reports().SetBudget(request)).budget


async def list_budgets(world: CostWorld, **fields: Any) -> report_pb2.ListBudgetsResponse:
    with remit_token(world.client_token()):
        return await world.reports().ListBudgets(report_pb2.ListBudgetsRequest(**fields))


async def some_spending(world: CostWorld) -> None:
    """Alice 5, Bob in the core team 3 and 1 the next day, Eve of another org 9; 2 of Alice held."""
    await world.spend(1, calls=4, token=world.run_token(1))
    await world.spend(2, calls=1, token=world.client_token())
    await world.spend(3, calls=3, token=world.run_token(2, subject=BOB, team=CORE))
    await world.spend(4, calls=9, token=world.run_token(3, subject=EVE))
    await world.cost().ReserveBudget(world.reserve_request(5, calls=2, token=world.run_token(1)))
    await world.cost().ReserveBudget(world.reserve_request(6, calls=7, token=world.run_token(1)))
    await world.cost().ReleaseReservation(
        cost_service_pb2.ReleaseReservationRequest(claim=claim_of(6), attempt=1)
    )
    world.clock.move(days=1)
    await world.spend(7, calls=1, token=world.run_token(2, subject=BOB, team=CORE))


def rows(response: report_pb2.ListSpendResponse) -> list[tuple[str, int]]:
    return [(row.key, row.posted_nanos // CALCULATOR_NANOS) for row in response.rows]


# ------------------------------------------------------------------------------------------ spend


BY_DIMENSION: list[tuple[ListSpendRequest.Dimension.ValueType, list[tuple[str, int]]]] = [
    (ListSpendRequest.DIMENSION_UNSPECIFIED, [(ALICE, 5), (BOB, 4)]),
    (ListSpendRequest.DIMENSION_USER, [(ALICE, 5), (BOB, 4)]),
    (ListSpendRequest.DIMENSION_TEAM, [("(none)", 5), (CORE, 4)]),
    (ListSpendRequest.DIMENSION_AGENT, [("agents/assistant", 8), ("(none)", 1)]),
    (ListSpendRequest.DIMENSION_ITEM, [("tools/calculator", 9)]),
    (ListSpendRequest.DIMENSION_RUN, [(run_of(1), 4), (run_of(2), 4), ("(none)", 1)]),
    (ListSpendRequest.DIMENSION_DAY, [("2026-11-24", 1), ("2026-11-23", 8)]),
    (ListSpendRequest.DIMENSION_TOOL, [("tools/calculator", 9)]),
    (ListSpendRequest.DIMENSION_MONTH, [("2026-11", 9)]),
]


async def test_spend_is_summed_by_each_dimension_within_the_callers_org(world: CostWorld) -> None:
    await some_spending(world)

    for group_by, expected in BY_DIMENSION:
        response = await list_spend(world, group_by)

        assert rows(response) == expected
        assert response.total.posted_nanos == 9 * CALCULATOR_NANOS
        assert response.total.pending_nanos == 2 * CALCULATOR_NANOS
        assert (response.total.effects, response.total.usage.calls) == (4, 9)
        assert not response.next_page_token


async def test_effects_whose_price_nobody_knew_are_counted_apart(world: CostWorld) -> None:
    mine = world.reserve_request(2, item="tools/mine", calls=3)
    await world.spend(1, calls=2)
    await world.cost().ReserveBudget(mine)
    held = await list_spend(world, ListSpendRequest.DIMENSION_ITEM)
    await world.cost().SettleReservation(
        cost_service_pb2.SettleReservationRequest(
            claim=claim_of(2), attempt=1, used=usage_pb2.Usage(calls=3)
        )
    )
    settled = await list_spend(world, ListSpendRequest.DIMENSION_ITEM)
    with remit_token(world.client_token()):
        request = report_pb2.GetRunSpendRequest(run=run_of(1))
        (bill,) = (await world.reports().GetRunSpend(request)).runs

    for found in (held, settled):
        assert [(row.key, row.unpriced_effects) for row in found.rows] == [
            ("tools/calculator", 0),
            ("tools/mine", 1),
        ]
        assert found.total.unpriced_effects == 1
    assert [row.effects for row in settled.rows] == [1, 1]
    assert (bill.own.unpriced_effects, bill.whole.unpriced_effects) == (1, 1)


async def test_overruns_and_estimates_are_told(world: CostWorld) -> None:
    await world.cost().ReserveBudget(world.reserve_request(1))
    used = usage_pb2.Usage(calls=3, estimated=True)
    await world.cost().SettleReservation(
        cost_service_pb2.SettleReservationRequest(claim=claim_of(1), attempt=1, used=used)
    )

    row = (await list_spend(world, ListSpendRequest.DIMENSION_ITEM)).rows[0]

    assert (row.posted_nanos, row.overrun_nanos) == (CALCULATOR_NANOS, 2 * CALCULATOR_NANOS)
    assert row.usage == used


async def test_a_hold_posted_whole_counts_as_estimated(world: CostWorld) -> None:
    await world.cost().ReserveBudget(world.reserve_request(1))
    await world.cost().SettleReservation(
        cost_service_pb2.SettleReservationRequest(claim=claim_of(1), attempt=1, whole_hold=True)
    )

    total = (await list_spend(world, ListSpendRequest.DIMENSION_ITEM)).total

    assert (total.effects, total.usage.calls, total.usage.estimated) == (1, 0, True)


async def test_a_span_of_time_includes_its_start_and_excludes_its_end(world: CostWorld) -> None:
    await some_spending(world)
    second_day = world.clock.now()

    before = await list_spend(
        world, ListSpendRequest.DIMENSION_USER, end_time=timestamp(second_day)
    )
    after = await list_spend(
        world, ListSpendRequest.DIMENSION_USER, start_time=timestamp(second_day)
    )

    assert rows(before) == [(ALICE, 5), (BOB, 3)]
    assert rows(after) == [(BOB, 1)]


async def test_nothing_spent_is_zero(world: CostWorld) -> None:
    response = await list_spend(world, ListSpendRequest.DIMENSION_USER)

    assert list(response.rows) == []
    assert response.total == report_pb2.SpendRow(key="(total)", usage=usage_pb2.Usage())


async def test_pages_together_are_the_whole_and_each_has_the_total(world: CostWorld) -> None:
    for number in range(7):
        token = world.run_token(number, subject=f"orgs/acme/users/u{number}")
        await world.spend(number, calls=1 + number // 3, token=token)

    found: list[tuple[str, int]] = []
    page_token = ""
    for _ in range(4):
        page = await list_spend(
            world, ListSpendRequest.DIMENSION_USER, page_size=2, page_token=page_token
        )
        assert page.total.posted_nanos == 12 * CALCULATOR_NANOS
        found += rows(page)
        page_token = page.next_page_token
    whole = await list_spend(world, ListSpendRequest.DIMENSION_USER)

    assert page_token == ""
    assert found == rows(whole)
    assert [spent for _, spent in found] == [3, 2, 2, 2, 1, 1, 1]


WRONG_REPORTS: list[tuple[dict[str, Any], str]] = [
    ({"page_size": -1}, "page_size"),
    ({"page_token": "x"}, "page_token"),
    ({"page_token": "e30="}, "page_token"),
    ({"page_token": "x" * 4000}, "page_token"),
    ({"start_time": {"seconds": -1}}, "start_time"),
    ({"end_time": {"seconds": 2**60}}, "end_time"),
    ({"start_time": {"seconds": 9}, "end_time": {"seconds": 9}}, "end_time"),
    ({"group_by": 99}, "group_by"),
]


async def test_wrong_parameters_of_a_report_are_named(world: CostWorld) -> None:
    for fields, field in WRONG_REPORTS:
        with pytest.raises(RemitError) as caught:
            await list_spend(world, **{"group_by": 0} | fields)

        assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST, fields
        assert caught.value.violations[0].field == field


async def test_a_token_of_another_list_is_refused(world: CostWorld) -> None:
    await some_spending(world)
    page = await list_spend(world, ListSpendRequest.DIMENSION_USER, page_size=1)

    with pytest.raises(RemitError, match="other parameters"):
        await list_spend(world, ListSpendRequest.DIMENSION_TEAM, page_token=page.next_page_token)


# ---------------------------------------------------------------------------------------- budgets


async def test_without_a_budget_the_default_is_listed_as_such(world: CostWorld) -> None:
    await world.spend(1, calls=2)

    response = await list_budgets(world)

    assert [budget.account for budget in response.budgets] == ["orgs/acme"]
    budget = response.budgets[0]
    assert (budget.is_default, budget.limit_nanos) == (True, 100_000_000_000)
    assert budget.period == reservation_pb2.PERIOD_MONTH
    assert (budget.posted_nanos, budget.currency) == (2 * CALCULATOR_NANOS, "USD")
    assert budget.renew_time.ToJsonString() == "2026-12-01T00:00:00Z"


async def test_a_budget_that_is_set_limits_from_then_on(world: CostWorld) -> None:
    await world.spend(1, calls=4)

    budget = await set_budget(world, limit_nanos=5 * CALCULATOR_NANOS)

    assert budget == reservation_pb2.Budget(
        account="orgs/acme",
        period=reservation_pb2.PERIOD_TOTAL,
        limit_nanos=5 * CALCULATOR_NANOS,
        currency="USD",
        posted_nanos=4 * CALCULATOR_NANOS,
        enforcement=reservation_pb2.ENFORCEMENT_HARD,
        alert_percents=[80, 100],
        reached_percents=[80],
    )
    with pytest.raises(RemitError, match="has 1000 nano-USD left of 5000"):
        await world.spend(2, calls=2)
    await world.spend(3, calls=1)


async def test_a_budget_of_zero_stops_all_that_costs(world: CostWorld) -> None:
    await set_budget(world, account=ALICE, limit_nanos=0)

    with pytest.raises(RemitError) as caught:
        await world.spend(1)

    assert caught.value.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert caught.value.quota[0].subject == ALICE


async def test_a_daily_budget_says_when_it_renews(world: CostWorld) -> None:
    await set_budget(world, limit_nanos=CALCULATOR_NANOS, period=reservation_pb2.PERIOD_DAY)
    await world.spend(1)

    with pytest.raises(RemitError) as caught:
        await world.spend(2)
    world.clock.move(hours=12)
    await world.spend(3)

    assert caught.value.retry_after_s == timedelta(hours=12).total_seconds()
    assert caught.value.metadata["renew_time"] == "2026-11-24T00:00:00+00:00"


async def test_budgets_are_listed_by_account_over_pages(world: CostWorld) -> None:
    accounts = [ALICE, BOB, CORE, f"{CORE}/users/bob"]
    for number, account in enumerate(accounts):
        await set_budget(world, account=account, request_id=str(number))
    await set_budget(world, account=EVE, request_id="eve", subject=EVE)

    found: list[str] = []
    page_token = ""
    for _ in range(3):
        page = await list_budgets(world, page_size=2, page_token=page_token)
        found += [budget.account for budget in page.budgets]
        page_token = page.next_page_token

    assert page_token == ""
    assert found == ["orgs/acme", CORE, f"{CORE}/users/bob", ALICE, BOB]


async def test_the_default_leaves_the_list_once_the_org_has_a_budget(world: CostWorld) -> None:
    await set_budget(world)

    budgets = (await list_budgets(world)).budgets

    assert [budget.is_default for budget in budgets] == [False]


WRONG_BUDGETS: list[tuple[dict[str, Any], str]] = [
    ({"limit_nanos": -1}, "limit_nanos"),
    ({"account": "orgs/acme/"}, "account"),
    ({"account": "orgs/acme/users/alice/teams/core"}, "account"),
    ({"account": "orgs/acme/users/alice/users/bob"}, "account"),
    ({"account": "operator/orgs/acme/revenue"}, "account"),
    ({"account": "orgs/acme/agents/assistant"}, "account"),
    ({"account": ""}, "account"),
    ({"period": reservation_pb2.PERIOD_UNSPECIFIED}, "period"),
    ({"period": 9}, "period"),
    ({"account": f"{ALICE}/{run_of(1)}", "period": reservation_pb2.PERIOD_DAY}, "period"),
    ({"request_id": ""}, "request_id"),
    ({"request_id": "x" * 65}, "request_id"),
    ({"request_id": "a\nb"}, "request_id"),
]


async def test_wrong_budgets_are_refused(world: CostWorld) -> None:
    for fields, field in WRONG_BUDGETS:
        with pytest.raises(RemitError) as caught:
            await set_budget(world, **fields)

        assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST, fields
        assert [violation.field for violation in caught.value.violations] == [field]
    assert not world.audit.events


async def test_no_budget_is_set_in_another_org(world: CostWorld) -> None:
    for account in ("orgs/other", EVE, "orgs/acme2"):
        with pytest.raises(RemitError) as caught:
            await set_budget(world, account=account)

        assert caught.value.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    assert not world.audit.events


# ------------------------------------------------------------------- once, and in the audit log


async def test_a_change_is_in_the_log_when_it_is_acknowledged(world: CostWorld) -> None:
    await set_budget(world, account=CORE, limit_nanos=7)

    (event,) = world.audit.events.values()
    assert event.kind == event_pb2.EVENT_KIND_ADMIN
    assert (event.org, event.subject, event.resource) == ("orgs/acme", ALICE, CORE)
    assert (event.action, event.outcome) == ("budgets.set", event_pb2.OUTCOME_SUCCEEDED)
    assert json.loads(event.detail_json) == {
        "account": CORE,
        "alert_percents": [80, 100],
        "enforcement": "HARD",
        "limit_nanos": 7,
        "period": "TOTAL",
    }


async def test_the_same_request_gets_the_same_answer_and_one_event(world: CostWorld) -> None:
    first = await set_budget(world, limit_nanos=9000)
    await world.spend(1, calls=2)
    await set_budget(world, limit_nanos=8000, request_id="two")

    again = await set_budget(world, limit_nanos=9000)

    assert again == first
    assert len(world.audit.events) == 2
    assert (await list_budgets(world)).budgets[0].limit_nanos == 8000


async def test_copies_of_a_request_at_once_change_once(world: CostWorld) -> None:
    answers = await asyncio.gather(*(set_budget(world) for _ in range(8)))

    assert all(answer == answers[0] for answer in answers)
    assert len(world.audit.events) == 1


async def test_another_body_under_the_same_id_is_refused(world: CostWorld) -> None:
    await set_budget(world, limit_nanos=1)

    with pytest.raises(RemitError) as caught:
        await set_budget(world, limit_nanos=2)
    await set_budget(world, limit_nanos=2, subject=BOB)

    assert caught.value.reason == reasons.ERROR_REASON_KEY_REUSED


async def test_while_audit_is_away_no_change_is_acknowledged_and_none_is_lost(
    world: CostWorld,
) -> None:
    world.audit.away = True
    with pytest.raises(RemitError) as caught:
        await set_budget(world)
    await world.recorder.sweep()
    assert not world.audit.events

    world.audit.away = False
    await world.recorder.sweep()
    answer = await set_budget(world)

    assert caught.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert answer.limit_nanos == 10 * CALCULATOR_NANOS
    assert len(world.audit.events) == 1
    assert (
        await world.database.fetchval(
            "SELECT count(*) FROM admin_requests WHERE record_time IS NULL"
        )
        == 0
    )


async def test_reports_need_a_remit(world: CostWorld) -> None:
    with pytest.raises(RemitError) as caught:
        await world.reports().ListBudgets(report_pb2.ListBudgetsRequest())

    assert caught.value.reason == reasons.ERROR_REASON_REMIT_INVALID
