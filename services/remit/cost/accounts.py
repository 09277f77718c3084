"""Accounts of the ledger: whose money, and which balances are kept of it.

An account is named by its whole path, so its ancestors are its prefixes. Each org has books of its
own: every hold and posting debits the leaf of a path under `orgs/{org}` and credits the operator's
revenue from that org; what a bill exceeds its hold by is debited to the operator's overrun account
instead. What providers charge goes from the revenue to the account of their cost, so that what
stays there is what no provider's bill is known for. No transfer crosses two orgs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Final, NamedTuple

from remit import names
from remit.cost.periods import Period, start_of

_ALL_PERIODS: Final = tuple(Period)
_RUN_PERIODS: Final = (Period.TOTAL,)
_ORG_STEP: Final = "orgs/"
_RUN_STEP: Final = "/runs/"
_PATHS_REMEMBERED: Final = 4096
_OWNER_KINDS: Final = {"teams": "team", "users": "user", "agents": "agent", "runs": "run"}


class BalanceKey(NamedTuple):
    """Names one balance: an account's, in one period."""

    account: str
    period: Period
    start: date


class OperatorKeys(NamedTuple):
    """Balances of the operator's accounts for one org and day, each account's in every period."""

    revenue: tuple[BalanceKey, ...]
    overrun: tuple[BalanceKey, ...]
    provider_cost: tuple[BalanceKey, ...]


@dataclass(frozen=True, slots=True)
class Owners:
    """Who stands on a path, by full resource name; empty where nobody does."""

    team: str = ""
    user: str = ""
    agent: str = ""
    run: str = ""


@lru_cache(maxsize=_PATHS_REMEMBERED)
def ancestors(leaf: str) -> tuple[str, ...]:
    """All accounts of a leaf's path, the org first and the leaf itself last."""
    return names.ancestors(leaf)


@lru_cache(maxsize=_PATHS_REMEMBERED)
def run_accounts(leaf: str) -> tuple[str, ...]:
    """The accounts of runs on a leaf's path, the outermost first."""
    return names.run_accounts(leaf)


@lru_cache(maxsize=_PATHS_REMEMBERED)
def org_of(account: str) -> str:
    """The org whose books an account stands in."""
    return names.org_of(account)


def revenue_account(org: str) -> str:
    """The operator's revenue from an org."""
    return f"operator/{org}/revenue"


def overrun_account(org: str) -> str:
    """What the operator bears for an org: bills beyond their holds."""
    return f"operator/{org}/overrun"


def provider_cost_account(org: str) -> str:
    """What providers charge the operator for the effects of an org."""
    return f"operator/{org}/provider-cost"


def periods_kept(account: str) -> tuple[Period, ...]:
    """Periods in which an account is balanced. A run's one period is the run itself."""
    return _RUN_PERIODS if _RUN_STEP in account else _ALL_PERIODS


def balance_key(account: str, period: Period, day: date) -> BalanceKey:
    """The balance of an account in the period that `day` lies in."""
    return BalanceKey(account, period, start_of(period, day))


@lru_cache(maxsize=_PATHS_REMEMBERED)
def path_keys(leaf: str, day: date) -> tuple[BalanceKey, ...]:
    """Balances that a hold on `leaf`, begun on `day`, stands on: every ancestor and the leaf."""
    return tuple(key for account in ancestors(leaf) for key in _keys_of_account(account, day))


@lru_cache(maxsize=_PATHS_REMEMBERED)
def operator_keys(org: str, day: date) -> OperatorKeys:
    """Balances of the operator's accounts for an org."""
    return OperatorKeys(
        _keys_of_account(revenue_account(org), day),
        _keys_of_account(overrun_account(org), day),
        _keys_of_account(provider_cost_account(org), day),
    )


@lru_cache(maxsize=_PATHS_REMEMBERED)
def owners_of(leaf: str) -> Owners:
    """Who stands on a leaf's path. Of nested runs the innermost counts."""
    parts = leaf.split("/")
    org = "/".join(parts[:2])
    found = {}
    for kind, identifier in zip(parts[2::2], parts[3::2], strict=True):
        prefix = f"{org}/" if kind in {"teams", "users"} else ""
        found[_OWNER_KINDS[kind]] = f"{prefix}{kind}/{identifier}"
    return Owners(**found)


def is_org(account: str) -> bool:
    """Whether an account is an org's own. Asked of every balance, so it does not parse the name."""
    return account.startswith(_ORG_STEP) and "/" not in account[len(_ORG_STEP) :]


def is_account(name: str) -> bool:
    """Whether `name` is the path of an account that a remit can pay from, or an ancestor of one."""
    if names.is_name("org", name) or names.is_name("team", name):
        return True
    try:
        owners = owners_of(name)
        return names.is_account_of(
            name, owners.user, team=owners.team, agent=owners.agent, run=owners.run
        )
    except (KeyError, ValueError):
        return False


def _keys_of_account(account: str, day: date) -> tuple[BalanceKey, ...]:
    return tuple(balance_key(account, period, day) for period in periods_kept(account))
