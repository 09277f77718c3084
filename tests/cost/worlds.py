"""What the tests of the ledger share: accounts, operations and a ledger kept in dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from remit.cost.accounts import BalanceKey, balance_key
from remit.cost.admission import DefaultBudget
from remit.cost.alerts import Alert, alerts_of_batch
from remit.cost.books import Balance, Books, Transfer
from remit.cost.ledger import Ledger, LedgerState, Rules
from remit.cost.periods import BudgetPeriod, Period
from remit.cost.reservations import (
    Extend,
    HoldOperation,
    Price,
    Release,
    Reservation,
    ReservationKey,
    Reserve,
    Settle,
    Usage,
)
from remit.cost.terms import Terms
from remit.rpc.errors import RemitError

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ORG = "orgs/acme"
ALICE = "orgs/acme/users/alice"
RUN = f"{ALICE}/agents/assistant/runs/{UUID(int=1)}"
OTHER_RUN = f"{ALICE}/agents/assistant/runs/{UUID(int=2)}"
TEAM_RUN = f"orgs/acme/teams/core/users/bob/agents/assistant/runs/{UUID(int=3)}"
A_NANO_A_CALL = Price(version="a" * 64, source="file", call_nanos=1)
NO_LIMIT = 10**15


def key(number: int, attempt: int = 1) -> ReservationKey:
    """The name of the numbered reservation."""
    return ReservationKey(f"claims/{UUID(int=number)}", attempt)


def reserve(
    number: int,
    nanos: int,
    *,
    account: str = RUN,
    own_limit_nanos: int | None = None,
    service: str = "inference",
    price: Price = A_NANO_A_CALL,
) -> Reserve:
    """A reserve of that many nano-USD."""
    return Reserve(
        key=key(number),
        service=service,
        account=account,
        item="models/builtin-rules",
        price=price,
        bound=Usage(calls=nanos),
        own_limit_nanos=own_limit_nanos,
        body_digest=f"{account} {nanos} {service}".encode().ljust(32),
    )


def extend(number: int, nanos: int, service: str = "inference") -> Extend:
    """An extension to that many nano-USD."""
    return Extend(key(number), service, Usage(calls=nanos))


def settle(number: int, nanos: int | None, service: str = "inference") -> Settle:
    """A settlement of that many nano-USD; None posts the whole hold."""
    return Settle(key(number), service, None if nanos is None else Usage(calls=nanos))


def release(number: int, service: str = "inference") -> Release:
    """A release."""
    return Release(key(number), service)


@dataclass
class DictLedger:
    """The ledger over dictionaries: loads, decides, proves and keeps, as the store does."""

    default_limit_nanos: int = NO_LIMIT
    default_period: Period = Period.MONTH
    clock_tolerance_s: float = 5.0
    now: datetime = START
    balances: dict[BalanceKey, Balance] = field(default_factory=dict)
    limits: dict[str, dict[Period, int]] = field(default_factory=dict)
    reservations: dict[ReservationKey, Reservation] = field(default_factory=dict)
    latest_times: dict[str, datetime] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)
    budgets: dict[str, dict[BudgetPeriod, Terms]] = field(default_factory=dict)
    """For alerts; what refuses is in `limits`."""
    alerts: list[Alert] = field(default_factory=list)

    def apply(self, operations: Sequence[HoldOperation]) -> list[Reservation | RemitError]:
        """Decides a batch and keeps what it did."""
        books = Books(self.balances)
        state = LedgerState(
            books, self.limits, self.reservations, self.latest_times, budgets=self.budgets
        )
        ledger = Ledger(state, self.rules(), self.now)
        results = [ledger.decide(operation) for operation in operations]
        books.prove()
        default = self.rules().default_budget
        self.alerts += alerts_of_batch(books, self.budgets, default, self.now)
        self.balances.update(books.changes())
        self.transfers += books.transfers
        return results

    def do(self, operation: HoldOperation) -> Reservation:
        """Decides one operation. Raises what refused it."""
        result = self.apply([operation])[0]
        if isinstance(result, RemitError):
            raise result
        return result

    def rules(self) -> Rules:
        """The rules of the settings above."""
        return Rules(
            DefaultBudget(self.default_period, self.default_limit_nanos),
            timedelta(seconds=self.clock_tolerance_s),
        )

    def balance(self, account: str, period: Period = Period.TOTAL) -> Balance:
        """The balance of an account now."""
        return self.balances.get(balance_key(account, period, self.now.date()), Balance())
