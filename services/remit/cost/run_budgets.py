"""Budgets of each run: what any one run below an account may spend in its life.

A run counts with its sub-runs, so it is the outermost run at or below the account: a sub-run is no
way around the budget. What is limited is the run's TOTAL balance, which every batch has in its
hands. A direct call is no run and is limited by the other budgets.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from remit.cost.accounts import BalanceKey, ancestors, balance_key, run_accounts
from remit.cost.books import Limit
from remit.cost.periods import Period, RunPeriod
from remit.cost.terms import Budgets, Enforcement, Terms


def run_limits(leaf: str, day: date, budgets: Budgets) -> Iterator[Limit]:
    """The limits that HARD budgets of each run set to an effect on this leaf."""
    for account, terms in _of_path(leaf, budgets):
        run = _outermost(account, leaf)
        if run and terms.enforcement is Enforcement.HARD:
            key = balance_key(run, Period.TOTAL, day)
            yield Limit(key, terms.limit_nanos, run_budget_of=account)


def run_terms(key: BalanceKey, budgets: Budgets) -> Iterator[tuple[str, Terms]]:
    """The budgets of each run for which this balance counts, by their accounts."""
    if key.period is Period.TOTAL and run_accounts(key.account)[-1:] == (key.account,):
        for account, terms in _of_path(key.account, budgets):
            if _outermost(account, key.account) == key.account:
                yield account, terms


def _of_path(leaf: str, budgets: Budgets) -> Iterator[tuple[str, Terms]]:
    for account in ancestors(leaf):
        terms = budgets[account].get(RunPeriod.RUN) if account in budgets else None
        if terms is not None:
            yield account, terms


def _outermost(account: str, leaf: str) -> str:
    """The outermost run of a leaf's path that is the account or below it; empty without one."""
    below = (run for run in run_accounts(leaf) if f"{run}/".startswith(f"{account}/"))
    return next(below, "")
