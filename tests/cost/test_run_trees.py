"""The tree of a run: its order, its sums, and that it is refused where it does not add up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.cost.books import Balance
from remit.cost.run_trees import RunAccount, empty_spend, tree_spend
from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError

USER = "orgs/acme/teams/core/users/alice"
MONEY = st.integers(0, 10**12)
COUNT = st.integers(0, 10**9)


def run_of(number: int) -> str:
    return f"runs/{UUID(int=number)}"


def row(
    posted: int = 0, pending: int = 0, overrun: int = 0, effects: int = 0, tokens: int = 0
) -> report_pb2.SpendRow:
    usage = usage_pb2.Usage(
        input_tokens=tokens, cached_input_tokens=tokens // 2, output_tokens=tokens, calls=effects
    )
    return report_pb2.SpendRow(
        posted_nanos=posted,
        pending_nanos=pending,
        overrun_nanos=overrun,
        effects=effects,
        unpriced_effects=effects // 2,
        usage=usage,
    )


def tree(parents: Sequence[int], rows: Sequence[report_pb2.SpendRow]) -> list[RunAccount]:
    """Run 0, and each run n below the run `parents[n - 1]`; balances from the rows."""
    accounts = [f"{USER}/agents/a0/{run_of(0)}"]
    for number, parent in enumerate(parents, start=1):
        accounts.append(f"{accounts[parent]}/agents/a{number % 3}/{run_of(number)}")
    return [
        RunAccount(account, own, balance_of(account, accounts, rows))
        for account, own in zip(accounts, rows, strict=True)
    ]


def balance_of(
    account: str, accounts: Sequence[str], rows: Sequence[report_pb2.SpendRow]
) -> Balance:
    inside = [
        own for other, own in zip(accounts, rows, strict=True) if f"{other}/".startswith(account)
    ]
    return Balance(
        sum(own.pending_nanos for own in inside), sum(own.posted_nanos for own in inside)
    )


ROWS = st.builds(row, posted=MONEY, pending=MONEY, overrun=MONEY, effects=COUNT, tokens=COUNT)


@st.composite
def trees(draw: st.DrawFn) -> list[RunAccount]:
    size = draw(st.integers(1, 12))
    parents = [draw(st.integers(0, number)) for number in range(size - 1)]
    return tree(parents, [draw(ROWS) for _ in range(size)])


@given(trees(), st.randoms(use_true_random=False))
def test_each_run_is_itself_and_its_sub_runs_to_the_nano(
    found: list[RunAccount], chance: random.Random
) -> None:
    root = found[0].account
    shuffled = sorted(found, key=lambda _: chance.random())

    spends = tree_spend(root, shuffled)

    assert spends[0].run == run_of(0)
    assert sorted(spend.run for spend in spends) == sorted(run_of(n) for n in range(len(found)))
    for spend in spends:
        children = [other.whole for other in spends if other.parent == spend.run]
        for name in (
            "posted_nanos",
            "pending_nanos",
            "overrun_nanos",
            "effects",
            "unpriced_effects",
        ):
            own = getattr(spend.own, name)
            assert getattr(spend.whole, name) == own + sum(getattr(c, name) for c in children)
        for name in ("input_tokens", "cached_input_tokens", "output_tokens", "calls"):
            own = getattr(spend.own.usage, name)
            whole = own + sum(getattr(child.usage, name) for child in children)
            assert getattr(spend.whole.usage, name) == whole
        assert spend.own.key == spend.whole.key == spend.run


@given(trees())
def test_a_run_stands_right_before_its_tree_and_siblings_by_name(found: list[RunAccount]) -> None:
    spends = tree_spend(found[0].account, found)

    path: list[str] = []
    last_child: dict[str, str] = {}
    for spend in spends:
        while path and path[-1] != spend.parent:
            path.pop()
        assert bool(path) == (spend is not spends[0]), "its parent does not stand above it"
        assert last_child.get(spend.parent, "") < spend.run
        last_child[spend.parent] = spend.run
        path.append(spend.run)


@given(trees(), st.integers(0, 11), st.sampled_from([Balance(1, 0), Balance(0, 1), Balance(1, 1)]))
def test_a_balance_that_is_off_by_a_nano_is_found(
    found: list[RunAccount], number: int, off: Balance
) -> None:
    wrong = found[number % len(found)]
    balance = Balance(
        wrong.balance.pending_nanos + off.pending_nanos,
        wrong.balance.posted_nanos + off.posted_nanos,
    )
    found[number % len(found)] = replace(wrong, balance=balance)

    with pytest.raises(RemitError, match="nano-USD posted") as caught:
        tree_spend(found[0].account, found)

    assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT
    assert wrong.account in caught.value.message


def test_agents_and_estimates_are_told() -> None:
    guess = report_pb2.SpendRow(usage=usage_pb2.Usage(estimated=True))
    spends = tree_spend(f"{USER}/agents/a0/{run_of(0)}", tree([0, 1], [row(), row(), guess]))

    assert [spend.agent for spend in spends] == ["agents/a0", "agents/a1", "agents/a2"]
    assert [spend.own.usage.estimated for spend in spends] == [False, False, True]
    assert all(spend.whole.usage.estimated for spend in spends)


def test_counts_stop_at_the_most() -> None:
    found = tree([0], [row(tokens=INT64_MAX), row(tokens=INT64_MAX)])

    whole = tree_spend(found[0].account, found)[0].whole

    assert whole.usage.input_tokens == INT64_MAX


def test_a_run_without_spending_has_zeros() -> None:
    (spend,) = empty_spend(run_of(7))

    assert (spend.run, spend.parent, spend.agent) == (run_of(7), "", "")
    assert spend.own == spend.whole == report_pb2.SpendRow(key=run_of(7), usage=usage_pb2.Usage())
