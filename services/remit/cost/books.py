"""The books of a batch: balances, limits and the transfers that change them.

Every transfer debits one account and credits another by the same amount, so debits equal credits by
its form alone; what can go wrong is the balances kept beside the transfers, and these are proved
again after every batch. A hold is pending on each account of its path at once and on the operator's
revenue; a posting moves it from pending to posted; a void frees it. A bill that is known goes on
from the revenue to the account of what providers cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum
from typing import Final, NamedTuple

from remit.api.errors.v1 import error_reason_pb2
from remit.cost.accounts import (
    BalanceKey,
    operator_keys,
    org_of,
    overrun_account,
    path_keys,
    provider_cost_account,
    revenue_account,
)
from remit.cost.periods import BudgetPeriod, RunPeriod
from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError, Violation


class Kind(IntEnum):
    """What a transfer does. The numbers are stored; they never change."""

    HOLD = 1
    """Money becomes pending."""
    POST = 2
    """Pending money is spent."""
    VOID = 3
    """Pending money is freed."""
    OVERRUN = 4
    """The operator bears what a bill exceeds its hold by."""
    COST = 5
    """What the provider charges is owed to it."""


_OF_A_PATH: Final = frozenset({Kind.HOLD, Kind.POST, Kind.VOID})
_PENDING_SIGN: Final = {Kind.HOLD: 1, Kind.POST: -1, Kind.VOID: -1}
_POSTED_SIGN: Final = {Kind.HOLD: 0, Kind.POST: 1, Kind.VOID: 0}


@dataclass(frozen=True, slots=True)
class Transfer:
    """One line of the ledger, never changed once written. The amount is above 0."""

    claim: str
    attempt: int
    sequence: int
    """Counts the transfers of one reservation, from 1."""
    kind: Kind
    debit_account: str
    credit_account: str
    amount_nanos: int
    day: date
    """Day in UTC on which its hold began."""
    post_time: datetime


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit that a hold must fit, in nano-USD."""

    key: BalanceKey
    limit_nanos: int
    run_budget_of: str = ""
    """The account whose budget for each run this is, where it is one; `key` is then the run's."""

    @property
    def account(self) -> str:
        """The account whose limit it is."""
        return self.run_budget_of or self.key.account

    @property
    def period(self) -> BudgetPeriod:
        """The period of the limit."""
        return RunPeriod.RUN if self.run_budget_of else self.key.period


class Balance(NamedTuple):
    """What is held and what is spent on an account within one period, in nano-USD."""

    pending_nanos: int = 0
    posted_nanos: int = 0

    @property
    def total_nanos(self) -> int:
        """What a limit limits."""
        return self.pending_nanos + self.posted_nanos


_EMPTY: Final = Balance()


class Books:
    """Balances that a batch starts from, and what the batch does to them.

    `balances` holds every balance that exists of the accounts touched; one that is missing is zero.
    """

    def __init__(self, balances: Mapping[BalanceKey, Balance]) -> None:
        self._before = balances
        self._after: dict[BalanceKey, Balance] = {}
        self._admitted: dict[BalanceKey, int] = {}
        self.transfers: list[Transfer] = []

    def balance(self, key: BalanceKey) -> Balance:
        """A balance as it is now."""
        return self._after.get(key) or self._before.get(key, _EMPTY)

    def changes(self) -> Mapping[BalanceKey, Balance]:
        """The balances that the batch changed, as they are now."""
        return self._after

    def changes_of_posted(self) -> Mapping[BalanceKey, tuple[int, int]]:
        """What was posted before the batch and what is now, where more is."""
        return {
            key: (before.posted_nanos, after.posted_nanos)
            for key, after in self._after.items()
            for before in [self._before.get(key, _EMPTY)]
            if after.posted_nanos > before.posted_nanos
        }

    def note_admission(self, path: Iterable[BalanceKey], limits: Iterable[Limit]) -> None:
        """Remembers the limits of the latest admission on a path, to be proved after the batch.

        An earlier one was proved when it was made: later ones may stand under other limits.
        """
        for key in path:
            self._admitted.pop(key, None)
        for limit in limits:
            known = self._admitted.get(limit.key, limit.limit_nanos)
            self._admitted[limit.key] = min(limit.limit_nanos, known)

    def require_room(self, org: str, day: date, amount_nanos: int) -> None:
        """Raises INVALID_REQUEST if the books of an org could not hold the amount as well."""
        overrun = operator_keys(org, day).overrun
        fullest = max(
            self.balance(spent).total_nanos + self.balance(borne).total_nanos
            for spent, borne in zip(path_keys(org, day), overrun, strict=True)
        )
        if fullest + amount_nanos > INT64_MAX:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_INVALID_REQUEST,
                f"{amount_nanos} nano-USD more would overflow the ledger of {org}",
                violations=[Violation("usage", "overflows the ledger's int64")],
            )

    def post(self, transfers: Sequence[Transfer]) -> None:
        """Writes the transfers of one reservation and changes every balance they stand on."""
        if not transfers:
            return
        self.transfers.extend(transfers)
        org, day = _org_of(transfers[0]), transfers[0].day
        operator = operator_keys(org, day)
        on_path = [transfer for transfer in transfers if transfer.kind in _OF_A_PATH]
        pending_nanos, posted_nanos = _effect_of(on_path)
        if on_path:
            leaf_keys = path_keys(on_path[0].debit_account, day)
            self._change(leaf_keys, pending_nanos, posted_nanos)
        overrun_nanos = _sum_of(Kind.OVERRUN, transfers)
        if overrun_nanos:
            self._change(operator.overrun, 0, overrun_nanos)
        cost_nanos = _sum_of(Kind.COST, transfers)
        if cost_nanos:
            self._change(operator.provider_cost, 0, cost_nanos)
        kept_nanos = posted_nanos + overrun_nanos - cost_nanos
        self._change(operator.revenue, pending_nanos, kept_nanos)

    def _change(self, keys: Iterable[BalanceKey], pending_nanos: int, posted_nanos: int) -> None:
        # Not by `balance`: there are a dozen keys to each transfer, and a call costs as much as it.
        after, before = self._after, self._before
        for key in keys:
            held, spent = after.get(key) or before.get(key, _EMPTY)
            after[key] = Balance(held + pending_nanos, spent + posted_nanos)

    # ------------------------------------------------------------------------------ invariants

    def prove(self) -> None:
        """Checks what must hold after every batch. Raises DATA_CORRUPT that names what does not."""
        for key, balance in self._after.items():
            if balance.pending_nanos < 0 or balance.posted_nanos < 0:
                raise _corrupt(f"{key.account} has a negative balance in {_period_text(key)}")
        self._prove_limits()
        self._prove_debits_equal_credits()
        self._prove_ancestors()

    def _prove_limits(self) -> None:
        for key, limit_nanos in self._admitted.items():
            if self.balance(key).total_nanos > limit_nanos:
                raise _corrupt(f"{key.account} was admitted over a limit in {_period_text(key)}")

    def _prove_debits_equal_credits(self) -> None:
        for org, day in {(_org_of(transfer), transfer.day) for transfer in self.transfers}:
            operator = operator_keys(org, day)
            for spent, revenue, overrun, cost in zip(path_keys(org, day), *operator, strict=True):
                debits = self._posted(spent) + self._posted(overrun)
                credits_ = self._posted(revenue) + self._posted(cost)
                held, owed = self.balance(spent).pending_nanos, self.balance(revenue).pending_nanos
                if debits != credits_ or held != owed:
                    raise _corrupt(f"debits and credits of {org} differ in {_period_text(spent)}")

    def _posted(self, key: BalanceKey) -> int:
        return self.balance(key).posted_nanos

    def _prove_ancestors(self) -> None:
        """Each account must have changed by the sum of the transfers on the leaves below it."""
        pending: defaultdict[BalanceKey, int] = defaultdict(int)
        posted: defaultdict[BalanceKey, int] = defaultdict(int)
        for (leaf, day), (held, spent) in self._sums_of_leaves().items():
            for key in path_keys(leaf, day):
                pending[key] += held
                posted[key] += spent
        for key in pending:
            before = self._before.get(key, _EMPTY)
            now = self.balance(key)
            if (now.pending_nanos, now.posted_nanos) != (
                before.pending_nanos + pending[key],
                before.posted_nanos + posted[key],
            ):
                raise _corrupt(f"{key.account} is not the sum of its leaves in {_period_text(key)}")

    def _sums_of_leaves(self) -> dict[tuple[str, date], tuple[int, int]]:
        sums: dict[tuple[str, date], tuple[int, int]] = {}
        for transfer in self.transfers:
            if transfer.kind not in _OF_A_PATH:
                continue
            leaf = transfer.debit_account, transfer.day
            held, spent = sums.get(leaf, (0, 0))
            more_held, more_spent = _effect_of([transfer])
            sums[leaf] = held + more_held, spent + more_spent
        return sums


def keys_to_load(leaf: str, day: date) -> tuple[BalanceKey, ...]:
    """Every balance that an operation on a reservation of this leaf and day may read or change."""
    revenue, overrun, provider_cost = operator_keys(org_of(leaf), day)
    return path_keys(leaf, day) + revenue + overrun + provider_cost


def _effect_of(transfers: Iterable[Transfer]) -> tuple[int, int]:
    """By how much transfers change the pending and the posted money of a path."""
    pending_nanos = posted_nanos = 0
    for transfer in transfers:
        pending_nanos += _PENDING_SIGN[transfer.kind] * transfer.amount_nanos
        posted_nanos += _POSTED_SIGN[transfer.kind] * transfer.amount_nanos
    return pending_nanos, posted_nanos


def _sum_of(kind: Kind, transfers: Iterable[Transfer]) -> int:
    return sum(transfer.amount_nanos for transfer in transfers if transfer.kind is kind)


def transfer_accounts(kind: Kind, leaf: str) -> tuple[str, str]:
    """Debit and credit account of a transfer for a path's leaf."""
    org = org_of(leaf)
    if kind is Kind.COST:
        return revenue_account(org), provider_cost_account(org)
    return (overrun_account(org) if kind is Kind.OVERRUN else leaf), revenue_account(org)


def _org_of(transfer: Transfer) -> str:
    return transfer.credit_account.removeprefix("operator/").rpartition("/")[0]


def _period_text(key: BalanceKey) -> str:
    return f"the period {key.period.name} from {key.start}"


def _corrupt(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, message)
