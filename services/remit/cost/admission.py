"""Limits of a path, and the refusal when one of them cannot cover a hold.

A path's limits are the HARD budgets of its accounts, the default of an org whose own account has
none, and those that a run carries in its remit: its own and, of a sub-run, those of the runs above.
All must have room at once. The refusal names each that has not: the account, its limit, what is
left of it and when it renews.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.cost.accounts import ancestors, balance_key, run_accounts
from remit.cost.books import Books, Limit
from remit.cost.periods import Period, renewal_of
from remit.rpc.errors import QuotaViolation, RemitError

Limits = Mapping[str, Mapping[Period, int]]
"""HARD budgets that somebody set: nano-USD by account and period."""


@dataclass(frozen=True, slots=True)
class DefaultBudget:
    """What an org may spend whose own account has no HARD budget of any period."""

    period: Period
    limit_nanos: int
    alert_percents: tuple[int, ...] = (80, 100)
    """At which shares of it an alert is fired; of budgets that say nothing else, too."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A limit without room for a hold."""

    limit: Limit
    left_nanos: int
    pending_nanos: int


def limits_of_account(account: str, limits: Limits, default: DefaultBudget) -> Mapping[Period, int]:
    """The budgets of one account; an org that has none has the default."""
    own = limits.get(account)
    if own:
        return own
    return {default.period: default.limit_nanos} if names.is_name("org", account) else {}


def limits_of_path(
    leaf: str,
    day: date,
    limits: Limits,
    default: DefaultBudget,
    own_limit_nanos: int | None,
    outer_limits_nanos: Sequence[int | None] = (),
) -> Iterator[Limit]:
    """Every limit of a path, the org's first.

    `own_limit_nanos` is the one its run carries, `outer_limits_nanos` are those of the runs above
    a sub-run, the outermost first.
    """
    for account in ancestors(leaf):
        for period, limit_nanos in limits_of_account(account, limits, default).items():
            yield Limit(balance_key(account, period, day), limit_nanos)
    outer = run_accounts(leaf)[: len(outer_limits_nanos)]
    for account, carried in (*zip(outer, outer_limits_nanos, strict=True), (leaf, own_limit_nanos)):
        if carried is not None:
            yield Limit(balance_key(account, Period.TOTAL, day), carried)


def admit(books: Books, limits: Sequence[Limit], amount_nanos: int, now: datetime) -> None:
    """Raises BUDGET_EXHAUSTED unless the amount fits every limit."""
    shortfalls = [short for limit in limits for short in _shortfall(books, limit, amount_nanos)]
    if shortfalls:
        raise _refusal(shortfalls, amount_nanos, now)


def _shortfall(books: Books, limit: Limit, amount_nanos: int) -> Iterator[Shortfall]:
    balance = books.balance(limit.key)
    left_nanos = limit.limit_nanos - balance.total_nanos
    if amount_nanos > left_nanos:
        yield Shortfall(limit, max(left_nanos, 0), balance.pending_nanos)


def _refusal(shortfalls: Sequence[Shortfall], amount_nanos: int, now: datetime) -> RemitError:
    tightest = min(shortfalls, key=lambda short: short.left_nanos)
    limit = tightest.limit
    renewal = renewal_of(limit.key.period, limit.key.start)
    return RemitError(
        error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        f"{limit.account} has {tightest.left_nanos} nano-USD left of {limit.limit_nanos}"
        f" ({_renewal_text(limit)}); the effect may cost {amount_nanos}",
        quota=[QuotaViolation(short.limit.account, _describe(short)) for short in shortfalls],
        retry_after_s=_retry_after_s(shortfalls, amount_nanos, now),
        metadata={
            "account": limit.account,
            "period": limit.period.name,
            "limit_nanos": str(limit.limit_nanos),
            "left_nanos": str(tightest.left_nanos),
            "needed_nanos": str(amount_nanos),
        }
        | ({"renew_time": renewal.isoformat()} if renewal else {}),
    )


def _describe(short: Shortfall) -> str:
    return (
        f"the {short.limit.period.name} limit is {short.limit.limit_nanos} nano-USD,"
        f" {short.left_nanos} left, {short.pending_nanos} held; {_renewal_text(short.limit)}"
    )


def _renewal_text(limit: Limit) -> str:
    if limit.run_budget_of:
        return f"each run has its own, this is that of {limit.key.account}"
    renewal = renewal_of(limit.key.period, limit.key.start)
    return f"renews at {renewal:%Y-%m-%dT%H:%M:%SZ}" if renewal else "never renews"


def _retry_after_s(
    shortfalls: Sequence[Shortfall], amount_nanos: int, now: datetime
) -> float | None:
    """Seconds until every refusing limit has renewed; None if waiting would not help."""
    renewals = [renewal_of(short.limit.key.period, short.limit.key.start) for short in shortfalls]
    if any(amount_nanos > short.limit.limit_nanos for short in shortfalls):
        return None
    known = [renewal for renewal in renewals if renewal is not None]
    if len(known) < len(renewals):
        return None
    return max(0.0, (max(known) - now).total_seconds())
