"""What a budget says: its limit, what happens there, and at which shares of it somebody is told.

HARD budgets refuse, SOFT ones tell only. An org's own account is never without a HARD one: where
nobody set it, the default of settings stands, also beside SOFT budgets and those of each run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from remit.api.cost.v1 import reservation_pb2
from remit.cost.accounts import is_org
from remit.cost.admission import DefaultBudget
from remit.cost.periods import BudgetPeriod, RunPeriod

MAX_PERCENTS: Final = 8
MOST_PERCENT: Final = 1000
"""A SOFT budget may be exceeded; ten times of it is far enough to be told of."""


class Enforcement(IntEnum):
    """What a budget does at its limit. The numbers are the contract's, and are stored."""

    HARD = reservation_pb2.ENFORCEMENT_HARD
    SOFT = reservation_pb2.ENFORCEMENT_SOFT


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one budget; `alert_percents` ascend."""

    limit_nanos: int
    enforcement: Enforcement
    alert_percents: tuple[int, ...]
    is_default: bool = False

    def reached(self, posted_nanos: int) -> tuple[int, ...]:
        """The percents of the limit that posted money has come to."""
        return tuple(
            percent
            for percent in self.alert_percents
            if posted_nanos > 0 and posted_nanos * 100 >= self.limit_nanos * percent
        )


Budgets = Mapping[str, Mapping[BudgetPeriod, Terms]]
"""Budgets that somebody set, by account and period."""


_NONE: Final[Mapping[BudgetPeriod, Terms]] = {}


def terms_of_account(
    account: str, budgets: Budgets, default: DefaultBudget
) -> Iterator[tuple[BudgetPeriod, Terms]]:
    """The budgets of one account, an org's default before those that somebody set."""
    own = budgets.get(account, _NONE)
    is_guarded = any(_guards(period, terms) for period, terms in own.items())
    if not is_guarded and is_org(account):
        yield (
            default.period,
            Terms(default.limit_nanos, Enforcement.HARD, default.alert_percents, is_default=True),
        )
    yield from own.items()


def _guards(period: BudgetPeriod, terms: Terms) -> bool:
    """Whether it limits the account as a whole. Any number of runs may each keep to a budget."""
    return terms.enforcement is Enforcement.HARD and period is not RunPeriod.RUN


def percents_fault(percents: Sequence[int]) -> str:
    """What is wrong with percents at which somebody wants to be told; empty if nothing is."""
    if len(percents) > MAX_PERCENTS:
        return f"has {len(percents)} percents; there are {MAX_PERCENTS} at most"
    if len(set(percents)) < len(percents):
        return "names a percent twice"
    wrong = [percent for percent in percents if not 1 <= percent <= MOST_PERCENT]
    return f"holds {wrong[0]}; a percent lies between 1 and {MOST_PERCENT}" if wrong else ""
