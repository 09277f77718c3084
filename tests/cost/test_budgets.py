"""Budgets as clients change them, the alerts that follow, and what reaches the audit log."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.audit.admission import Limits, check_event
from remit.cost.admission import DefaultBudget
from remit.cost.budget_requests import MAX_ACCOUNT_CHARS
from remit.cost.budgets import BudgetStore
from remit.cost.messages import timestamp
from remit.cost.periods import Period
from remit.cost.settings import CostSettings
from remit.cost.store import LedgerStore
from remit.cost.terms import Enforcement, Terms
from remit.idempotency import AdminRequest
from remit.postgres import Database
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.conftest import OpenDatabase
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
from tests.cost.stores import CLOCK, a_store
from tests.cost.worlds import ORG, RUN, reserve, settle
from tests.monitoring.values import gained

IDS = SystemIds()
TOTAL, DAY, MONTH = (
    reservation_pb2.PERIOD_TOTAL,
    reservation_pb2.PERIOD_DAY,
    reservation_pb2.PERIOD_MONTH,
)
SOFT = reservation_pb2.ENFORCEMENT_SOFT


async def set_budget(
    world: CostWorld,
    account: str = "orgs/acme",
    calls: int = 10,
    *,
    period: reservation_pb2.Period.ValueType = TOTAL,
    **fields: Any,
) -> reservation_pb2.Budget:
    """Sets a budget of that many calls of the calculator."""
    named = {"request_id": str(IDS.uuid7())} | fields
    limit_nanos = calls * CALCULATOR_NANOS
    request = report_pb2.SetBudgetRequest(
        account=account, period=period, limit_nanos=limit_nanos, **named
    )
    with remit_token(world.client_token()):
        return (await world.reports().SetBudget(request)).budget


async def delete_budget(
    world: CostWorld,
    account: str = "orgs/acme",
    *,
    period: reservation_pb2.Period.ValueType = TOTAL,
    request_id: str = "delete",
    subject: str = ALICE,
) -> report_pb2.DeleteBudgetResponse:
    request = report_pb2.DeleteBudgetRequest(account=account, period=period, request_id=request_id)
    with remit_token(world.client_token(subject)):
        return await world.reports().DeleteBudget(request)


async def list_budgets(world: CostWorld, **fields: Any) -> report_pb2.ListBudgetsResponse:
    with remit_token(world.client_token()):
        return await world.reports().ListBudgets(report_pb2.ListBudgetsRequest(**fields))


async def list_alerts(
    world: CostWorld, subject: str = ALICE, **fields: Any
) -> report_pb2.ListBudgetAlertsResponse:
    with remit_token(world.client_token(subject)):
        return await world.reports().ListBudgetAlerts(report_pb2.ListBudgetAlertsRequest(**fields))


async def refused(calling: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await calling
    return caught.value


# ---------------------------------------------------------------------------------------- deleting


async def test_an_org_whose_budget_is_deleted_falls_back_to_the_default_and_is_told(
    world: CostWorld,
) -> None:
    await set_budget(world, calls=1)
    await world.spend(1)

    deleted = await delete_budget(world)

    assert (deleted.budget.limit_nanos, deleted.budget.posted_nanos) == (1_000, 1_000)
    (default,) = deleted.remaining
    assert (default.account, default.is_default) == ("orgs/acme", True)
    assert default.limit_nanos == CostSettings().default_limit_nanos
    assert (await list_budgets(world)).budgets == [default]
    await world.spend(2)


async def test_a_deleted_budget_limits_no_longer_and_the_others_still_do(world: CostWorld) -> None:
    await set_budget(world, ALICE, calls=1, period=DAY)
    await set_budget(world, ALICE, calls=3, period=MONTH)
    await world.spend(1)

    deleted = await delete_budget(world, ALICE, period=DAY)

    assert [budget.period for budget in deleted.remaining] == [MONTH]
    await world.spend(2, calls=2)
    assert (await refused(world.spend(3))).metadata["period"] == "MONTH"


async def test_what_is_held_stays_held_when_its_budget_is_deleted(world: CostWorld) -> None:
    await set_budget(world, ALICE, calls=2)
    await world.cost().ReserveBudget(world.reserve_request(1, calls=2))

    await delete_budget(world, ALICE)
    again = await set_budget(world, ALICE, calls=2)

    assert again.pending_nanos == 2 * CALCULATOR_NANOS
    assert (await refused(world.spend(2))).reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED


async def test_a_repeated_deletion_gets_the_same_answer_and_deletes_once(world: CostWorld) -> None:
    await set_budget(world, ALICE)
    first = await delete_budget(world, ALICE)
    await set_budget(world, ALICE, calls=7)

    again = await delete_budget(world, ALICE)
    other = await refused(delete_budget(world, BOB))

    assert again == first
    assert (await list_budgets(world)).budgets[-1].limit_nanos == 7 * CALCULATOR_NANOS
    assert other.reason == reasons.ERROR_REASON_KEY_REUSED


async def test_a_deletion_is_in_the_log_with_what_was_deleted(world: CostWorld) -> None:
    await set_budget(world, CORE, calls=3, enforcement=SOFT, alert_percents=[50])

    await delete_budget(world, CORE)

    event = list(world.audit.events.values())[-1]
    assert event.kind == event_pb2.EVENT_KIND_ADMIN
    assert (event.action, event.subject, event.resource) == ("budgets.delete", ALICE, CORE)
    assert json.loads(event.detail_json) == {
        "account": CORE,
        "alert_percents": [50],
        "enforcement": "SOFT",
        "limit_nanos": 3 * CALCULATOR_NANOS,
        "period": "TOTAL",
    }


async def test_a_deletion_that_audit_has_not_taken_is_not_acknowledged(world: CostWorld) -> None:
    await set_budget(world, ALICE)
    world.audit.away = True

    away = await refused(delete_budget(world, ALICE))
    world.audit.away = False
    deleted = await delete_budget(world, ALICE)

    assert away.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert deleted.budget.account == ALICE
    assert len(world.audit.events) == 2


async def test_what_nobody_set_cannot_be_deleted(world: CostWorld) -> None:
    await set_budget(world, ALICE)

    default = await refused(delete_budget(world, period=MONTH))
    unknown = await refused(delete_budget(world, "orgs/acme/users/nobody"))
    other_period = await refused(delete_budget(world, ALICE, period=DAY))

    for error in (default, unknown, other_period):
        assert error.reason == reasons.ERROR_REASON_BUDGET_NOT_FOUND
    assert "the default comes from settings" in default.message
    assert len((await list_budgets(world)).budgets) == 2
    assert len(world.audit.events) == 1


async def test_a_wrong_deletion_is_refused(world: CostWorld) -> None:
    await set_budget(world, ALICE)
    foreign = await refused(delete_budget(world, ALICE, subject=EVE))
    wrong = await refused(delete_budget(world, "users/x", period=MONTH, request_id=""))
    no_period = await refused(
        delete_budget(world, ALICE, period=reservation_pb2.PERIOD_UNSPECIFIED)
    )

    assert foreign.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    assert {violation.field for violation in wrong.violations} == {"account", "request_id"}
    assert [violation.field for violation in no_period.violations] == ["period"]
    assert len((await list_budgets(world)).budgets) == 2


# ------------------------------------------------------------------------------- terms of a budget


async def test_a_soft_budget_refuses_nothing_and_says_how_far_it_is_exceeded(
    world: CostWorld,
) -> None:
    await set_budget(world, ALICE, calls=2, enforcement=SOFT)

    await world.spend(1, calls=5)

    budget = (await list_budgets(world)).budgets[-1]
    assert (budget.account, budget.enforcement) == (ALICE, SOFT)
    assert budget.over_nanos == 3 * CALCULATOR_NANOS
    assert list(budget.reached_percents) == [80, 100]


async def test_a_soft_budget_of_an_org_does_not_lift_the_default(world: CostWorld) -> None:
    await set_budget(world, calls=5, period=MONTH, enforcement=SOFT)

    budgets = (await list_budgets(world)).budgets
    pages = [(await list_budgets(world, page_size=1)), await list_budgets(world, page_size=2)]
    last = await list_budgets(world, page_size=1, page_token=pages[0].next_page_token)

    assert [(b.is_default, b.enforcement == SOFT) for b in budgets] == [
        (True, False),
        (False, True),
    ]
    assert [*pages[0].budgets, *last.budgets] == list(pages[1].budgets) == list(budgets)
    assert last.next_page_token == ""


async def test_a_hard_budget_that_is_made_soft_brings_the_default_back(world: CostWorld) -> None:
    await set_budget(world, calls=5, period=MONTH)
    assert len((await list_budgets(world)).budgets) == 1

    await set_budget(world, calls=5, period=MONTH, enforcement=SOFT)

    assert [b.is_default for b in (await list_budgets(world)).budgets] == [True, False]


async def test_a_limit_below_what_is_spent_is_taken_and_stops_new_effects(world: CostWorld) -> None:
    await world.spend(1, calls=5)
    await world.cost().ReserveBudget(world.reserve_request(2, calls=1))

    budget = await set_budget(world, ALICE, calls=2)
    error = await refused(world.spend(3))

    assert budget.over_nanos == 4 * CALCULATOR_NANOS
    assert error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert error.metadata["left_nanos"] == "0"
    (told,) = [a for a in (await list_alerts(world)).alerts if a.percent == 100]
    assert (told.subject, told.run, told.posted_nanos) == (ALICE, "", 5 * CALCULATOR_NANOS)


async def test_an_account_may_have_a_budget_before_it_spends(world: CostWorld) -> None:
    new = "orgs/acme/users/new"
    budget = await set_budget(world, new, calls=1)
    assert (budget.posted_nanos, budget.over_nanos) == (0, 0)

    await world.spend(1, token=world.client_token(new))

    assert (await refused(world.spend(2, token=world.client_token(new)))).quota[0].subject == new


async def test_a_runs_own_account_has_a_budget_for_the_life_of_the_run(world: CostWorld) -> None:
    account = f"{ALICE}/agents/assistant/{run_of(1)}"
    await set_budget(world, account, calls=2, period=TOTAL)

    await world.spend(1, calls=2, token=world.run_token(1))
    world.clock.move(days=40)

    error = await refused(world.spend(2, token=world.run_token(1)))
    assert (error.quota[0].subject, error.retry_after_s) == (account, None)
    await world.spend(3, token=world.run_token(2))


async def test_percents_are_told_in_order_and_those_of_settings_where_none_are_named(
    world: CostWorld,
) -> None:
    assert list((await set_budget(world)).alert_percents) == [80, 100]
    mixed = await set_budget(world, alert_percents=[100, 25, 150])
    assert list(mixed.alert_percents) == [25, 100, 150]


LONG = "a" * 100
WRONG_TERMS: list[tuple[dict[str, Any], str]] = [
    ({"enforcement": 9}, "enforcement"),
    ({"alert_percents": [0]}, "alert_percents"),
    ({"alert_percents": [1001]}, "alert_percents"),
    ({"alert_percents": [-80]}, "alert_percents"),
    ({"alert_percents": [80, 80]}, "alert_percents"),
    ({"alert_percents": list(range(1, 10))}, "alert_percents"),
    ({"calls": -1}, "limit_nanos"),
    (
        {"account": f"{ALICE}" + "".join(f"/agents/{LONG}/{run_of(n)}" for n in range(4))},
        "account",
    ),
]


async def test_wrong_terms_are_refused_and_change_nothing(world: CostWorld) -> None:
    for fields, field in WRONG_TERMS:
        error = await refused(set_budget(world, **fields))
        assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST
        assert [violation.field for violation in error.violations] == [field], fields
    assert len(WRONG_TERMS[-1][0]["account"]) > MAX_ACCOUNT_CHARS
    assert not world.audit.events
    assert [budget.is_default for budget in (await list_budgets(world)).budgets] == [True]


# ------------------------------------------------------------------------------------------ alerts


async def test_an_alert_is_listed_with_the_effect_that_made_it_due(world: CostWorld) -> None:
    await set_budget(world, ALICE, calls=10, period=DAY)
    await world.spend(1, calls=7, token=world.run_token(1))
    assert not (await list_alerts(world)).alerts

    world.clock.move(hours=1)
    await world.spend(2, calls=2, token=world.run_token(2))
    await world.spend(3, calls=1, token=world.client_token())

    full, near = (await list_alerts(world)).alerts
    assert near == report_pb2.BudgetAlert(
        account=ALICE,
        period=DAY,
        start_time=timestamp(world.clock.now().replace(hour=0)),
        percent=80,
        limit_nanos=10 * CALCULATOR_NANOS,
        posted_nanos=9 * CALCULATOR_NANOS,
        enforcement=reservation_pb2.ENFORCEMENT_HARD,
        fire_time=timestamp(world.clock.now()),
        subject=ALICE,
        run=run_of(2),
        claim=claim_of(2),
    )
    assert (full.percent, full.run, full.claim) == (100, "", claim_of(3))


async def test_alerts_are_listed_over_pages_of_one_org_or_one_account(world: CostWorld) -> None:
    for number, account in enumerate(["orgs/acme", CORE, ALICE]):
        await set_budget(world, account, calls=1, enforcement=SOFT)
        await world.spend(number, token=world.run_token(number, team=CORE if number == 1 else ""))
    found: list[tuple[str, int]] = []
    page_token = ""
    for _ in range(3):
        page = await list_alerts(world, page_size=2, page_token=page_token)
        found += [(alert.account, alert.percent) for alert in page.alerts]
        page_token = page.next_page_token
        if not page_token:
            break

    whole = await list_alerts(world)
    assert found == [(alert.account, alert.percent) for alert in whole.alerts]
    assert found == [(a, p) for a in (ALICE, CORE, "orgs/acme") for p in (100, 80)]
    of_core = await list_alerts(world, account=CORE)
    assert [alert.account for alert in of_core.alerts] == [CORE, CORE]
    assert not (await list_alerts(world, subject=EVE)).alerts


async def test_wrong_lists_of_alerts_are_refused(world: CostWorld) -> None:
    foreign = await refused(list_alerts(world, account=EVE))
    malformed = await refused(list_alerts(world, account="orgs/acme/agents/x"))
    token = await refused(list_alerts(world, page_token="e30="))

    assert foreign.reason == reasons.ERROR_REASON_PERMISSION_DENIED
    assert malformed.violations[0].field == "account"
    assert token.violations[0].field == "page_token"


async def test_an_alert_reaches_the_log_the_counter_and_is_not_told_again(world: CostWorld) -> None:
    await set_budget(world, ALICE, calls=10)
    warned = gained("remit_budget_alerts_total", enforcement="HARD", level="WARNING")
    full = gained("remit_budget_alerts_total", enforcement="HARD", level="LIMIT")
    await world.spend(1, calls=8)
    other = world.alert_recorder()

    await asyncio.gather(world.alerts.sweep(), other.sweep())
    await world.alerts.sweep()

    (event,) = [e for e in world.audit.events.values() if e.kind == event_pb2.EVENT_KIND_ALERT]
    assert (event.org, event.subject, event.resource) == ("orgs/acme", ALICE, ALICE)
    assert (event.action, event.run, event.claim) == ("budgets.alert", run_of(1), claim_of(1))
    limits = Limits(max_entries=1, max_detail_bytes=16_384, max_text_chars=512, max_future_s=0)
    assert check_event(event, world.clock.now(), limits) == [], "the log would take it"
    assert json.loads(event.detail_json) == {
        "period": "TOTAL",
        "run_account": "",
        "start": "1970-01-01",
        "percent": 80,
        "limit_nanos": 10 * CALCULATOR_NANOS,
        "posted_nanos": 8 * CALCULATOR_NANOS,
        "enforcement": "HARD",
        "is_default": False,
    }
    assert (warned(), full()) == (1, 0)
    await world.spend(2, calls=2)
    await other.sweep()
    assert (warned(), full()) == (1, 1)


async def test_no_alert_is_lost_while_audit_is_away(world: CostWorld) -> None:
    await set_budget(world, ALICE, calls=1)
    await world.spend(1)
    world.audit.away = True
    with pytest.raises(RemitError, match="the log is away"):
        await world.alerts.sweep()
    known = len(world.audit.events)

    world.audit.away = False
    await world.alerts.sweep()

    assert len(world.audit.events) == known + 2


# ---------------------------------------------------------------------------- replicas and commits


def a_change(number: int) -> AdminRequest:
    return AdminRequest(
        subject=ALICE,
        method="budgets.set",
        request_id=str(number),
        org=ORG,
        body_digest=bytes(32),
        action="budgets.set",
        resource=ALICE,
        detail="{}",
        trace_id="",
    )


def some_terms(limit_nanos: int) -> Terms:
    return Terms(limit_nanos, Enforcement.SOFT, (80, 100))


async def told(database: Database) -> list[tuple[int, int, int]]:
    found = await database.fetch(
        "SELECT percent, limit_nanos, posted_nanos FROM budget_alerts WHERE account = $1"
        " ORDER BY number",
        ALICE,
    )
    return [tuple(record) for record in found]


async def settle_all(stores: list[LedgerStore], count: int, nanos: int) -> None:
    for number in range(count):
        await stores[0].open(reserve(number, nanos))
    await asyncio.gather(*(stores[n % len(stores)].close(settle(n, None)) for n in range(count)))


async def test_replicas_that_race_past_a_share_tell_of_it_once(database: OpenDatabase) -> None:
    db = await database("cost")
    stores = [a_store(db), a_store(db)]
    budgets = BudgetStore(db, DefaultBudget(Period.MONTH, 10**12), CLOCK)
    await budgets.set(a_change(1), ALICE, Period.DAY, some_terms(100))

    await settle_all(stores, 40, 5)

    assert await told(db) == [(80, 100, 80), (100, 100, 100)]


async def test_a_limit_that_is_set_while_money_moves_is_told_of_once(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    stores = [a_store(db), a_store(db)]
    budgets = BudgetStore(db, DefaultBudget(Period.MONTH, 10**12), CLOCK)
    limits = [400, 100, 50, 120, 90, 110]
    await asyncio.gather(
        settle_all(stores, 60, 5),
        *(
            budgets.set(a_change(number), ALICE, Period.DAY, some_terms(limit))
            for number, limit in enumerate(limits)
        ),
    )
    await budgets.set(a_change(99), ALICE, Period.DAY, some_terms(60))

    by_percent: dict[int, list[int]] = {80: [], 100: []}
    for percent, limit_nanos, posted_nanos in await told(db):
        assert posted_nanos * 100 >= limit_nanos * percent
        by_percent[percent].append(limit_nanos)
    for told_limits in by_percent.values():
        assert told_limits == sorted(set(told_limits))
        assert told_limits[-1] >= 60


async def test_an_alert_costs_no_round_trip(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db)
    budgets = BudgetStore(db, DefaultBudget(Period.MONTH, 10**12), CLOCK)
    await budgets.set(a_change(1), ALICE, Period.DAY, some_terms(10))
    sent: list[int] = []
    for number in range(3):
        await store.open(reserve(number, 4))
    async with db.acquire() as connection:
        for number in range(3):
            statements: list[object] = []
            async with connection.transaction():
                connection.add_query_logger(statements.append)
                await store.write(connection, [settle(number, None)])
                connection.remove_query_logger(statements.append)
            sent.append(len(statements))

    assert [percent for percent, _, _ in await told(db)] == [80, 100]
    assert len(set(sent)) == 1, "the batches that fired an alert sent as many statements as others"


async def test_an_alert_that_is_there_keeps_no_money_from_being_settled(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    store = a_store(db)
    budgets = BudgetStore(db, DefaultBudget(Period.MONTH, 10**12), CLOCK)
    await budgets.set(a_change(1), ALICE, Period.DAY, some_terms(10))
    await store.open(reserve(1, 10, account=RUN))
    await db.execute(
        "INSERT INTO budget_alerts (org, account, period, start, percent, limit_nanos,"
        " posted_nanos, enforcement, is_default, subject, fire_time)"
        " VALUES ($1, $2, 2, $3, 80, 10, 9, 2, false, $2, $4)",
        ORG,
        ALICE,
        CLOCK.now().date(),
        CLOCK.now(),
    )

    settled = await store.close(settle(1, None))

    assert settled.posted_nanos == 10
    assert await told(db) == [(80, 10, 9), (100, 10, 10)]
