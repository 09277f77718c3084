"""Alerts: when the posted money of a period reaches a share of a budget's limit.

Posted money never goes back within a period, so under one limit a share is reached once: by the
posting that takes the balance from below it to it. Where money moves this alone decides, from the
balances that the batch has in its hands. A changed limit may be reached already: it is told of
unless the same share of a limit at least as high was. Both rules agree: what was told under a limit
is not told again until a higher one is reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from remit.cost.accounts import BalanceKey, balance_key, org_of, owners_of
from remit.cost.admission import DefaultBudget
from remit.cost.books import Balance, Books, Kind, Transfer
from remit.cost.periods import BudgetPeriod, RunPeriod
from remit.cost.run_budgets import run_terms
from remit.cost.terms import Budgets, Terms, terms_of_account


@dataclass(frozen=True, slots=True)
class Cause:
    """Who made an alert due, and by which effect; by none where a limit was set."""

    subject: str
    run: str = ""
    claim: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """One share of one limit, reached in one period."""

    account: str
    """Whose budget it is."""
    period: BudgetPeriod
    key: BalanceKey
    """What reached it: the account's balance or, of a budget of each run, a run's."""
    terms: Terms
    percent: int
    posted_nanos: int
    cause: Cause
    fire_time: datetime

    @property
    def org(self) -> str:
        """The org whose budget it is."""
        return org_of(self.account)

    @property
    def run_account(self) -> str:
        """The account of the run that reached a budget of each run; empty for other budgets."""
        return self.key.account if self.period is RunPeriod.RUN else ""


class Told(NamedTuple):
    """Names a share of a budget in one period, whatever the limit was."""

    key: BalanceKey
    is_default: bool
    percent: int


def alerts_of_batch(
    books: Books, budgets: Budgets, default: DefaultBudget, now: datetime
) -> list[Alert]:
    """The alerts that a batch's postings make due."""
    posted = [transfer for transfer in books.transfers if transfer.kind is Kind.POST]
    alerts: list[Alert] = []
    for key, (before, after) in books.changes_of_posted().items() if posted else ():
        for account, period, terms in _watching(key, budgets, default):
            for percent in terms.reached(after)[len(terms.reached(before)) :]:
                reached, cause = _first_to_reach(terms, percent, before, key, posted)
                alerts.append(Alert(account, period, key, terms, percent, reached, cause, now))
    return alerts


def alerts_of_change(
    applying: Iterable[tuple[BalanceKey, Terms, Balance]],
    told: Mapping[Told, int],
    cause: Cause,
    now: datetime,
) -> Iterator[Alert]:
    """The alerts that are due once these budgets apply. `told` has the highest limit of each.

    Budgets of each run are not among them: their alerts begin with the next posting.
    """
    for key, terms, balance in applying:
        for percent in terms.reached(balance.posted_nanos):
            if terms.limit_nanos > told.get(Told(key, terms.is_default, percent), -1):
                yield Alert(
                    key.account,
                    key.period,
                    key,
                    terms,
                    percent,
                    balance.posted_nanos,
                    cause,
                    now,
                )


def _watching(
    key: BalanceKey, budgets: Budgets, default: DefaultBudget
) -> Iterator[tuple[str, BudgetPeriod, Terms]]:
    """The budgets for which a balance counts."""
    for period, terms in terms_of_account(key.account, budgets, default):
        if period is key.period:
            yield key.account, period, terms
    if budgets:
        for account, terms in run_terms(key, budgets):
            yield account, RunPeriod.RUN, terms


def _first_to_reach(
    terms: Terms, percent: int, posted_nanos: int, key: BalanceKey, posted: Iterable[Transfer]
) -> tuple[int, Cause]:
    """What was posted once the share was reached, and by whose effect, in the order of postings."""
    cause = Cause("")
    for transfer in posted:
        if _stands_on(transfer, key):
            posted_nanos += transfer.amount_nanos
            owners = owners_of(transfer.debit_account)
            cause = Cause(owners.user, owners.run, transfer.claim)
            if percent in terms.reached(posted_nanos):
                break
    return posted_nanos, cause


def _stands_on(transfer: Transfer, key: BalanceKey) -> bool:
    is_below = f"{transfer.debit_account}/".startswith(f"{key.account}/")
    return is_below and balance_key(key.account, key.period, transfer.day) == key
