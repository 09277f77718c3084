"""Whose accounts there are, and which balances are kept of them."""

from __future__ import annotations

from datetime import date
from uuid import UUID

import pytest

from remit.cost.accounts import BalanceKey, Owners, is_account, owners_of, path_keys, periods_kept
from remit.cost.periods import TOTAL_START, Period

RUN = f"runs/{UUID(int=1)}"
LEAF = f"orgs/acme/teams/core/users/alice/agents/assistant/{RUN}"
DAY = date(2026, 11, 23)


def test_a_path_tells_who_stands_on_it() -> None:
    assert owners_of(LEAF) == Owners(
        team="orgs/acme/teams/core",
        user="orgs/acme/users/alice",
        agent="agents/assistant",
        run=RUN,
    )
    assert owners_of("orgs/acme/users/alice") == Owners(user="orgs/acme/users/alice")


def test_a_run_is_balanced_over_its_life_and_all_above_it_by_period_too() -> None:
    assert periods_kept(LEAF) == (Period.TOTAL,)
    assert len(path_keys(LEAF, DAY)) == 4 * 3 + 1
    assert path_keys(LEAF, DAY)[-1] == BalanceKey(LEAF, Period.TOTAL, TOTAL_START)
    assert BalanceKey("orgs/acme", Period.MONTH, date(2026, 11, 1)) in path_keys(LEAF, DAY)


@pytest.mark.parametrize(
    "account",
    [
        "orgs/acme",
        "orgs/acme/teams/core",
        "orgs/acme/users/alice",
        "orgs/acme/teams/core/users/alice",
        "orgs/acme/users/alice/agents/assistant",
        f"orgs/acme/users/alice/{RUN}",
        LEAF,
    ],
)
def test_accounts_that_a_remit_may_pay_from(account: str) -> None:
    assert is_account(account)


@pytest.mark.parametrize(
    "account",
    [
        "",
        "orgs",
        "orgs/",
        "acme",
        "orgs/acme/users",
        "orgs/acme/agents/assistant",
        "orgs/acme/users/alice/teams/core",
        "orgs/acme/users/alice/agents/assistant/runs/1",
        "orgs/acme/tools/calculator",
        "orgs/acme/users/alice ",
        "operator/orgs/acme/revenue",
        f"{LEAF}/",
    ],
)
def test_what_is_no_account(account: str) -> None:
    assert not is_account(account)
