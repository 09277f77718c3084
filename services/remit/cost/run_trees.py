"""The bill of a run and of the runs below it, from what stands on their accounts.

A sub-run's account lies below its parent's, so the tree is in the names of the accounts. What a run
spent itself is summed from its reservations; what its tree spent is the balance of its account,
which the ledger kept apart, transfer by transfer. The two must agree to the nano, and a tree in
which they do not is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from remit.api.cost.v1 import cost_report_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.cost.accounts import ancestors, owners_of
from remit.cost.books import Balance
from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError

RunSpend = cost_report_service_pb2.RunSpend
SpendRow = cost_report_service_pb2.SpendRow


@dataclass(frozen=True, slots=True)
class RunAccount:
    """What stands on the account of a run: its own effects, and the balance of all at or below."""

    account: str
    own: SpendRow
    balance: Balance


@dataclass(slots=True)
class _Node:
    found: RunAccount
    below: list[_Node] = field(default_factory=list)


def tree_spend(root: str, accounts: Iterable[RunAccount]) -> list[RunSpend]:
    """The runs at and below the account `root`, each before its sub-runs, and siblings by name.

    `accounts` holds the root and, for each other one, its parent. Raises DATA_CORRUPT if a balance
    is not what the effects at and below its account make.
    """
    nodes = {found.account: _Node(found) for found in accounts}
    for account, node in nodes.items():
        if account != root:
            nodes[_account_above(account)].below.append(node)
    return _bills(nodes[root], parent="")


def empty_spend(run: str) -> list[RunSpend]:
    """The bill of a run that spent nothing, or that the caller's org does not have."""
    nothing = SpendRow(key=run, usage=usage_pb2.Usage())
    return [RunSpend(run=run, own=nothing, whole=nothing)]


def _bills(node: _Node, parent: str) -> list[RunSpend]:
    """The bill of a run, and then those below it."""
    owners = owners_of(node.found.account)
    below = sorted(node.below, key=lambda each: owners_of(each.found.account).run)
    bills = [_bills(each, owners.run) for each in below]
    own = SpendRow()
    own.CopyFrom(node.found.own)
    own.key = owners.run
    whole = _sum(owners.run, [own, *(each[0].whole for each in bills)])
    _prove(node.found, whole)
    bill = RunSpend(run=owners.run, parent=parent, agent=owners.agent, own=own, whole=whole)
    return [bill, *chain.from_iterable(bills)]


def _sum(key: str, rows: Sequence[SpendRow]) -> SpendRow:
    return SpendRow(
        key=key,
        posted_nanos=sum(row.posted_nanos for row in rows),
        pending_nanos=sum(row.pending_nanos for row in rows),
        overrun_nanos=sum(row.overrun_nanos for row in rows),
        effects=sum(row.effects for row in rows),
        unpriced_effects=sum(row.unpriced_effects for row in rows),
        usage=usage_pb2.Usage(
            input_tokens=_count(row.usage.input_tokens for row in rows),
            cached_input_tokens=_count(row.usage.cached_input_tokens for row in rows),
            output_tokens=_count(row.usage.output_tokens for row in rows),
            calls=_count(row.usage.calls for row in rows),
            estimated=any(row.usage.estimated for row in rows),
        ),
    )


def _count(counts: Iterable[int]) -> int:
    return min(sum(counts), INT64_MAX)


def _prove(found: RunAccount, whole: SpendRow) -> None:
    if (whole.pending_nanos, whole.posted_nanos) != found.balance:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
            f"{found.account} has {found.balance.posted_nanos} nano-USD posted and"
            f" {found.balance.pending_nanos} pending, but the effects at and below it make"
            f" {whole.posted_nanos} and {whole.pending_nanos}",
        )


def _account_above(account: str) -> str:
    """That of the run whose step this one is: a sub-run adds its agent and its run."""
    return ancestors(account)[-3]
