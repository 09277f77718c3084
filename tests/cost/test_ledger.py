"""The ledger's rules, one by one."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost.accounts import (
    BalanceKey,
    overrun_account,
    provider_cost_account,
    revenue_account,
)
from remit.cost.books import Balance, Books, Kind
from remit.cost.ledger import Ledger, LedgerState
from remit.cost.periods import Period
from remit.cost.reservations import Extend, Price, Reserve, SetLimit, State, Usage, limit_violations
from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError
from tests.cost.worlds import (
    ALICE,
    NO_LIMIT,
    ORG,
    OTHER_RUN,
    RUN,
    START,
    TEAM_RUN,
    DictLedger,
    extend,
    key,
    release,
    reserve,
    settle,
)


def refused(ledger: DictLedger, operation: object) -> RemitError:
    before = dict(ledger.balances), len(ledger.transfers), dict(ledger.reservations)
    result = ledger.apply([operation])[0]  # type: ignore[list-item]
    assert isinstance(result, RemitError), f"{operation} was admitted"
    assert before == (dict(ledger.balances), len(ledger.transfers), dict(ledger.reservations))
    return result


# ------------------------------------------------------------------------------------- holding


def test_a_hold_stands_on_every_account_of_its_path_at_once() -> None:
    ledger = DictLedger()

    held = ledger.do(reserve(1, 40, account=TEAM_RUN))

    assert held.state is State.HELD
    assert held.hold_nanos == 40
    core = "orgs/acme/teams/core"
    bob = f"{core}/users/bob"
    for account in (ORG, core, bob, f"{bob}/agents/assistant", TEAM_RUN, revenue_account(ORG)):
        assert ledger.balance(account) == Balance(40, 0), account
    for period in (Period.DAY, Period.MONTH):
        assert ledger.balance(bob, period) == Balance(40, 0)


@pytest.mark.parametrize("tight", [ORG, ALICE, f"{ALICE}/agents/assistant", RUN])
def test_one_account_without_room_refuses_the_whole_hold(tight: str) -> None:
    ledger = DictLedger(limits={tight: {Period.TOTAL: 50}})
    ledger.do(reserve(1, 30))

    error = refused(ledger, reserve(2, 21))
    exactly = ledger.do(reserve(3, 20))

    assert error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert error.metadata["account"] == tight
    assert exactly.hold_nanos == 20
    assert ledger.balance(tight) == Balance(50, 0)


def test_pending_and_posted_count_together() -> None:
    ledger = DictLedger(limits={ORG: {Period.TOTAL: 100}})
    ledger.do(reserve(1, 60))
    ledger.do(settle(1, 50))
    ledger.do(reserve(2, 40))

    refused(ledger, reserve(3, 11))
    ledger.do(release(2))

    assert ledger.do(reserve(4, 50)).state is State.HELD


def test_each_request_of_a_batch_is_decided_on_its_own_in_order() -> None:
    ledger = DictLedger(limits={ORG: {Period.TOTAL: 100}})

    results = ledger.apply([reserve(1, 90), reserve(2, 20), reserve(3, 10), reserve(4, 1)])

    assert [isinstance(result, RemitError) for result in results] == [False, True, False, True]


def test_money_freed_earlier_in_a_batch_may_be_held_later_in_it() -> None:
    ledger = DictLedger(limits={ORG: {Period.TOTAL: 100}})
    ledger.do(reserve(1, 100))

    results = ledger.apply([reserve(2, 1), release(1), reserve(3, 100)])

    assert [isinstance(result, RemitError) for result in results] == [True, False, False]


def test_a_limit_of_zero_refuses_all_that_costs_and_nothing_else() -> None:
    ledger = DictLedger(limits={ALICE: {Period.TOTAL: 0}})

    error = refused(ledger, reserve(1, 1))

    assert "has 0 nano-USD left of 0" in error.message
    assert ledger.do(reserve(2, 0)).hold_nanos == 0


def test_nobody_is_unlimited_by_accident() -> None:
    ledger = DictLedger(default_limit_nanos=10)

    error = refused(ledger, reserve(1, 11))

    assert error.metadata["account"] == ORG
    assert error.metadata["period"] == "MONTH"


def test_a_budget_of_the_org_replaces_the_default_and_one_below_it_does_not() -> None:
    below = DictLedger(default_limit_nanos=10, limits={ALICE: {Period.TOTAL: 1000}})
    own = DictLedger(default_limit_nanos=10, limits={ORG: {Period.DAY: 1000}})

    refused(below, reserve(1, 11))
    assert own.do(reserve(1, 1000)).state is State.HELD


def test_a_run_carries_its_own_limit() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 60, own_limit_nanos=100))

    error = refused(ledger, reserve(2, 41, own_limit_nanos=100))
    ledger.do(reserve(3, 41, account=OTHER_RUN, own_limit_nanos=100))

    assert error.metadata["account"] == RUN
    assert error.retry_after_s is None


def test_two_limits_of_one_run_may_stand_in_one_batch() -> None:
    ledger = DictLedger()

    results = ledger.apply(
        [reserve(1, 60, own_limit_nanos=60), reserve(2, 60, own_limit_nanos=200)]
    )

    assert all(not isinstance(result, RemitError) for result in results)


# ------------------------------------------------------------------------------------ refusals


def test_a_refusal_names_account_limit_rest_and_renewal() -> None:
    ledger = DictLedger(limits={ALICE: {Period.DAY: 100, Period.TOTAL: 1000}})
    ledger.do(reserve(1, 70))

    error = refused(ledger, reserve(2, 31))

    assert error.message == (
        f"{ALICE} has 30 nano-USD left of 100 (renews at 2026-11-24T00:00:00Z);"
        " the effect may cost 31"
    )
    assert [quota.subject for quota in error.quota] == [ALICE]
    assert "the DAY limit is 100 nano-USD, 30 left, 70 held" in error.quota[0].description
    assert error.retry_after_s == timedelta(hours=12).total_seconds()


def test_every_limit_that_refuses_is_named() -> None:
    ledger = DictLedger(limits={ORG: {Period.MONTH: 20}, ALICE: {Period.TOTAL: 10}})

    error = refused(ledger, reserve(1, 21))

    assert [quota.subject for quota in error.quota] == [ORG, ALICE]
    assert error.metadata["account"] == ALICE, "the tightest is named first"
    assert error.retry_after_s is None, "TOTAL never renews"


def test_waiting_is_not_advised_where_it_cannot_help() -> None:
    ledger = DictLedger(limits={ORG: {Period.DAY: 20}})

    assert refused(ledger, reserve(1, 21)).retry_after_s is None
    ledger.do(reserve(2, 15))
    assert refused(ledger, reserve(3, 20)).retry_after_s is not None


# ----------------------------------------------------------------------------------- extending


def test_an_extension_holds_the_difference_or_leaves_the_hold_as_it_was() -> None:
    ledger = DictLedger(limits={ORG: {Period.TOTAL: 100}})
    ledger.do(reserve(1, 30))

    error = refused(ledger, extend(1, 101))
    larger = ledger.do(extend(1, 100))
    again = ledger.do(extend(1, 100))

    assert error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert (larger.hold_nanos, again.hold_nanos) == (100, 100)
    assert [transfer.amount_nanos for transfer in ledger.transfers] == [30, 70]
    assert ledger.balance(ORG) == Balance(100, 0)


def test_an_extension_keeps_to_the_limit_that_the_run_carried() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 30, own_limit_nanos=50))

    assert refused(ledger, extend(1, 51)).metadata["account"] == RUN
    assert ledger.do(extend(1, 50)).hold_nanos == 50


def test_an_extension_never_shrinks_a_hold() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 30))

    error = refused(ledger, extend(1, 29))

    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert error.violations[0].field == "bound"


def test_an_extension_after_midnight_stays_in_the_day_it_began() -> None:
    ledger = DictLedger(limits={ALICE: {Period.DAY: 100}})
    ledger.do(reserve(1, 90))
    ledger.now += timedelta(days=1)

    refused(ledger, extend(1, 101))
    ledger.do(extend(1, 95))
    ledger.do(settle(1, 95))

    assert ledger.balance(ALICE, Period.DAY) == Balance(0, 0)
    assert ledger.balances[BalanceKey(ALICE, Period.DAY, START.date())] == Balance(0, 95)
    assert ledger.do(reserve(2, 100)).day == date(2026, 11, 24)


# ------------------------------------------------------------------------------------- closing


def test_a_settlement_posts_what_was_used_and_frees_the_rest() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))

    settled = ledger.do(settle(1, 60))

    assert (settled.state, settled.posted_nanos, settled.overrun_nanos) == (State.SETTLED, 60, 0)
    assert ledger.balance(RUN) == ledger.balance(ORG) == Balance(0, 60)
    kinds = [Kind.HOLD, Kind.POST, Kind.VOID, Kind.COST]
    assert [transfer.kind for transfer in ledger.transfers] == kinds
    assert ledger.balance(provider_cost_account(ORG)) == Balance(0, 60)
    assert ledger.balance(revenue_account(ORG)) == Balance(0, 0)


def test_a_bill_above_the_hold_goes_to_the_operator() -> None:
    ledger = DictLedger(limits={ORG: {Period.TOTAL: 100}})
    ledger.do(reserve(1, 100))

    settled = ledger.do(settle(1, 400))

    assert (settled.posted_nanos, settled.overrun_nanos) == (100, 300)
    assert ledger.balance(ORG) == Balance(0, 100)
    assert ledger.balance(overrun_account(ORG)) == Balance(0, 300)
    assert ledger.balance(provider_cost_account(ORG)) == Balance(0, 400)
    assert ledger.balance(revenue_account(ORG)) == Balance(0, 0)


def test_a_free_hold_with_a_bill_is_all_overrun() -> None:
    ledger = DictLedger(limits={ORG: {Period.TOTAL: 0}})
    ledger.do(reserve(1, 0))

    settled = ledger.do(settle(1, 7))

    assert (settled.posted_nanos, settled.overrun_nanos) == (0, 7)
    assert ledger.balance(overrun_account(ORG)) == Balance(0, 7)


def test_an_effect_in_doubt_is_charged_its_whole_hold() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))

    settled = ledger.do(settle(1, None))

    assert (settled.posted_nanos, settled.used) == (100, None)
    assert ledger.balance(ORG) == Balance(0, 100)


def test_a_release_frees_everything() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))

    assert ledger.do(release(1)).state is State.RELEASED
    assert ledger.balance(ORG) == Balance(0, 0)


def test_closing_twice_answers_the_same_and_moves_nothing() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))
    ledger.do(reserve(2, 100))
    settled, released = ledger.do(settle(1, 60)), ledger.do(release(2))
    ledger.now += timedelta(hours=1)

    assert ledger.do(settle(1, 60)) == settled
    assert ledger.do(release(2)) == released
    assert len(ledger.transfers) == 6


def test_a_second_settlement_with_another_usage_is_refused() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))
    ledger.do(settle(1, 60))

    for other in (settle(1, 61), settle(1, None)):
        assert refused(ledger, other).reason == reasons.ERROR_REASON_KEY_REUSED


def test_what_is_closed_stays_closed() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))
    ledger.do(reserve(2, 100))
    ledger.do(settle(1, 60))
    ledger.do(release(2))

    for late in (release(1), settle(2, 1), extend(1, 200), extend(2, 200), reserve(1, 100)):
        assert refused(ledger, late).reason == reasons.ERROR_REASON_RESERVATION_CLOSED, late


def test_a_release_that_comes_first_leaves_a_tombstone() -> None:
    ledger = DictLedger()

    tombstone = ledger.do(release(1))
    late = refused(ledger, reserve(1, 100))

    assert (tombstone.state, tombstone.account) == (State.RELEASED, "")
    assert late.reason == reasons.ERROR_REASON_RESERVATION_CLOSED
    assert ledger.do(release(1)) == tombstone
    assert refused(ledger, settle(1, 1)).reason == reasons.ERROR_REASON_RESERVATION_CLOSED
    assert not ledger.transfers


def test_another_attempt_of_the_claim_is_another_reservation() -> None:
    ledger = DictLedger()
    ledger.do(release(1))
    second = reserve(1, 10)

    held = ledger.do(
        Reserve(
            key=key(1, attempt=2),
            service=second.service,
            account=second.account,
            item=second.item,
            price=second.price,
            bound=second.bound,
            own_limit_nanos=None,
            body_digest=second.body_digest,
        )
    )

    assert held.name.endswith("-2")


# ------------------------------------------------------------------------------- same key again


def test_the_same_reserve_gets_the_same_answer_and_holds_once() -> None:
    ledger = DictLedger()
    first = ledger.do(reserve(1, 100))

    assert ledger.do(reserve(1, 100)) == first
    assert ledger.balance(ORG) == Balance(100, 0)


def test_another_request_under_the_same_key_is_refused() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))

    for other in (reserve(1, 99), reserve(1, 100, account=OTHER_RUN)):
        assert refused(ledger, other).reason == reasons.ERROR_REASON_KEY_REUSED


@pytest.mark.parametrize(
    "operation", [extend(1, 200, "tools"), settle(1, 1, "tools"), release(1, "tools")]
)
def test_only_the_service_that_reserved_may_go_on(operation: object) -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 100))

    assert refused(ledger, operation).reason == reasons.ERROR_REASON_PERMISSION_DENIED


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("operation", [extend(1, 1), settle(1, 1), settle(1, None)])
def test_an_unknown_reservation_is_named(operation: object) -> None:
    error = refused(DictLedger(), operation)

    assert error.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND
    assert "reservations/00000000-0000-0000-0000-000000000001-1" in error.message


@pytest.mark.parametrize("operation", [reserve(2, -1), extend(1, -1), settle(1, -1)])
def test_negative_amounts_are_refused(operation: object) -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 0))

    assert refused(ledger, operation).reason == reasons.ERROR_REASON_INVALID_REQUEST


def test_an_amount_beyond_int64_is_refused() -> None:
    dear = Price(call_nanos=INT64_MAX)

    error = refused(DictLedger(), reserve(1, 2, price=dear))

    assert error.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert "more than the 9223372036854775807" in error.message


def test_bills_never_overflow_the_operators_books() -> None:
    ledger = DictLedger(limits={ORG: {Period.TOTAL: INT64_MAX}})
    ledger.do(reserve(1, 1))
    ledger.do(reserve(2, 1))
    ledger.do(settle(1, INT64_MAX - 1))

    error = refused(ledger, settle(2, 2))

    assert "would overflow the ledger of orgs/acme" in error.message
    assert ledger.do(settle(2, None)).posted_nanos == 1


def test_a_clock_that_jumps_back_reopens_no_period() -> None:
    ledger = DictLedger(limits={ALICE: {Period.DAY: 100}})
    ledger.do(reserve(1, 100))
    ledger.now += timedelta(days=1)
    ledger.do(reserve(2, 60))
    ledger.now -= timedelta(days=1)

    error = refused(ledger, reserve(3, 1))
    settled = ledger.do(settle(2, 60))

    assert error.reason == reasons.ERROR_REASON_INVALID_STATE
    assert "86400 s behind" in error.message
    assert settled.close_time == settled.create_time, "what is held can always be closed"


def test_replicas_whose_clocks_differ_a_little_share_one_order() -> None:
    ledger = DictLedger()
    ledger.now = START.replace(hour=0, minute=0, second=1)
    ledger.do(reserve(1, 1))
    ledger.now -= timedelta(seconds=3)

    assert ledger.do(reserve(2, 1)).create_time == START.replace(hour=0, minute=0, second=1)


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (SetLimit(ORG, Period.DAY, -1), "limit_nanos"),
        (SetLimit(ORG, Period.DAY, INT64_MAX + 1), "limit_nanos"),
        (SetLimit(RUN, Period.DAY, 1), "period"),
    ],
)
def test_a_wrong_limit_is_refused(operation: SetLimit, field: str) -> None:
    assert [violation.field for violation in limit_violations(operation)] == [field]


def test_a_limit_below_what_is_spent_stops_new_holds_only() -> None:
    ledger = DictLedger()
    ledger.do(reserve(1, 60))
    ledger.limits[ORG] = {Period.TOTAL: 10}

    error = refused(ledger, reserve(2, 1))
    ledger.do(settle(1, 60))

    assert "has 0 nano-USD left of 10" in error.message
    assert ledger.balance(ORG) == Balance(0, 60)


# --------------------------------------------------------------------------- proofs of the books


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({BalanceKey(ORG, Period.TOTAL, date(1970, 1, 1)): Balance(0, 5)}, "debits and credits"),
        ({BalanceKey(RUN, Period.TOTAL, date(1970, 1, 1)): Balance(-9, 0)}, "negative balance"),
    ],
)
def test_books_that_do_not_add_up_stop_the_batch(
    spoilt: dict[BalanceKey, Balance], message: str
) -> None:
    ledger = DictLedger(balances=spoilt)

    with pytest.raises(RemitError, match=message) as caught:
        ledger.apply([reserve(1, 1)])

    assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT


def test_an_ancestor_that_missed_a_posting_stops_the_batch() -> None:
    ledger = DictLedger()
    books = Books(ledger.balances)
    state = LedgerState(books, {}, {}, {})
    Ledger(state, ledger.rules(), START).decide(reserve(1, 5))
    books._after[BalanceKey(ALICE, Period.TOTAL, date(1970, 1, 1))] = Balance(4, 0)

    with pytest.raises(RemitError, match="not the sum of its leaves"):
        books.prove()


def test_an_admission_over_a_limit_stops_the_batch() -> None:
    ledger = DictLedger(limits={ALICE: {Period.TOTAL: 10}})
    books = Books(ledger.balances)
    state = LedgerState(books, ledger.limits, {}, {})
    Ledger(state, ledger.rules(), START).decide(reserve(1, 5))
    books._after[BalanceKey(ALICE, Period.TOTAL, date(1970, 1, 1))] = Balance(11, 0)

    with pytest.raises(RemitError, match="admitted over a limit"):
        books.prove()


def test_extension_of_a_priced_bound_needs_every_count() -> None:
    ledger = DictLedger()
    price = Price(input_nanos_per_million=1_000_000, output_nanos_per_million=1_000_000)
    wanted = reserve(1, 0, price=price)
    ledger.do(
        Reserve(
            key=wanted.key,
            service=wanted.service,
            account=wanted.account,
            item=wanted.item,
            price=price,
            bound=Usage(input_tokens=10, output_tokens=10),
            own_limit_nanos=None,
            body_digest=b"",
        )
    )

    error = refused(ledger, Extend(key(1), "inference", Usage(input_tokens=9, output_tokens=99)))

    assert error.violations[0].field == "bound"
    assert NO_LIMIT > ledger.balance(ORG).pending_nanos == 20
