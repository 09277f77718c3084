"""The ledger against a plain model, over random histories.

The model keeps no balances: it remembers each hold as a dictionary and adds up what it needs, each
time, from all of them. It knows periods only as a day, a month and always.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from remit import names
from remit.cost.accounts import overrun_account, provider_cost_account, revenue_account
from remit.cost.books import Balance, Kind
from remit.cost.periods import Period
from remit.cost.reservations import HoldOperation, Reservation, State
from tests.cost.worlds import ORG, DictLedger, extend, key, release, reserve, settle

LEAVES = [
    f"orgs/acme/users/alice/agents/assistant/runs/{UUID(int=1)}",
    f"orgs/acme/users/alice/agents/assistant/runs/{UUID(int=2)}",
    "orgs/acme/users/alice",
    f"orgs/acme/teams/core/users/bob/agents/writer/runs/{UUID(int=3)}",
    f"orgs/other/users/eve/agents/assistant/runs/{UUID(int=4)}",
]
ACCOUNTS = sorted({account for leaf in LEAVES for account in names.ancestors(leaf)})
DEFAULT_LIMIT = 120


@dataclass
class ModelHold:
    leaf: str
    day: date
    hold: int
    own_limit: int | None
    service: str
    opened_with: tuple[str, int, str]
    state: str = "held"
    posted: int = 0
    overrun: int = 0
    settled_with: int | None = None

    @property
    def counted(self) -> int:
        return {"held": self.hold, "settled": self.posted, "released": 0}[self.state]


class Model:
    """What the ledger must do, told in the plainest way."""

    def __init__(self) -> None:
        self.holds: dict[int, ModelHold] = {}
        self.tombstones: dict[int, str] = {}
        self.limits: dict[tuple[str, Period], int] = {}

    def counted(self, account: str, period: Period, day: date) -> int:
        return sum(
            hold.counted
            for hold in self.holds.values()
            if (hold.leaf == account or hold.leaf.startswith(account + "/"))
            and same_period(period, hold.day, day)
        )

    def fits(self, leaf: str, day: date, more: int, own_limit: int | None) -> bool:
        if more == 0:
            return True
        limits = {key: value for key, value in self.limits.items() if is_above(key[0], leaf)}
        org = names.org_of(leaf)
        if not any(account == org for account, _ in limits):
            limits[org, Period.MONTH] = DEFAULT_LIMIT
        checks = [(*key, value) for key, value in limits.items()]
        if own_limit is not None:
            checks.append((leaf, Period.TOTAL, own_limit))
        return all(
            self.counted(account, period, day) + more <= limit for account, period, limit in checks
        )

    def reserve(
        self, number: int, leaf: str, nanos: int, own_limit: int | None, service: str, day: date
    ) -> bool:
        if number in self.tombstones:
            return False
        if number in self.holds:
            known = self.holds[number]
            return known.state == "held" and known.opened_with == (leaf, nanos, service)
        if not self.fits(leaf, day, nanos, own_limit):
            return False
        self.holds[number] = ModelHold(leaf, day, nanos, own_limit, service, (leaf, nanos, service))
        return True

    def extend(self, number: int, nanos: int, service: str) -> bool:
        hold = self.holds.get(number)
        if hold is None or hold.service != service or hold.state != "held" or nanos < hold.hold:
            return False
        if not self.fits(hold.leaf, hold.day, nanos - hold.hold, hold.own_limit):
            return False
        hold.hold = nanos
        return True

    def settle(self, number: int, nanos: int | None, service: str) -> bool:
        hold = self.holds.get(number)
        if hold is None or hold.service != service or hold.state == "released":
            return False
        wanted = -1 if nanos is None else nanos
        if hold.state == "settled":
            return hold.settled_with == wanted
        bill = hold.hold if nanos is None else nanos
        hold.state, hold.settled_with = "settled", wanted
        hold.posted, hold.overrun = min(bill, hold.hold), max(0, bill - hold.hold)
        return True

    def release(self, number: int, service: str) -> bool:
        hold = self.holds.get(number)
        if hold is None:
            return self.tombstones.setdefault(number, service) == service
        if hold.service != service or hold.state == "settled":
            return False
        hold.state = "released"
        return True


def is_above(account: str, leaf: str) -> bool:
    return leaf == account or leaf.startswith(account + "/")


def same_period(period: Period, one: date, other: date) -> bool:
    if period is Period.DAY:
        return one == other
    return period is Period.TOTAL or (one.year, one.month) == (other.year, other.month)


NUMBERS = st.integers(1, 12)
NANOS = st.integers(0, 60)
SERVICES = st.sampled_from(["inference", "inference", "inference", "tools"])
OWN_LIMITS = st.one_of(st.none(), st.integers(0, 80))


class LedgerMachine(RuleBasedStateMachine):
    """Sends the same operations to both, in batches, while days pass and budgets change."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = DictLedger(default_limit_nanos=DEFAULT_LIMIT)
        self.model = Model()
        self.batch: list[tuple[HoldOperation, bool]] = []

    def say(self, operation: HoldOperation, *, expected: bool) -> None:
        self.batch.append((operation, expected))

    @rule(
        number=NUMBERS,
        leaf=st.sampled_from(LEAVES),
        nanos=NANOS,
        own_limit=OWN_LIMITS,
        service=SERVICES,
    )
    def reserve(
        self, number: int, leaf: str, nanos: int, own_limit: int | None, service: str
    ) -> None:
        day = self.ledger.now.date()
        self.say(
            reserve(number, nanos, account=leaf, own_limit_nanos=own_limit, service=service),
            expected=self.model.reserve(number, leaf, nanos, own_limit, service, day),
        )

    @rule(number=NUMBERS, nanos=st.integers(0, 90), service=SERVICES)
    def extend(self, number: int, nanos: int, service: str) -> None:
        self.say(extend(number, nanos, service), expected=self.model.extend(number, nanos, service))

    @rule(number=NUMBERS, nanos=st.one_of(st.none(), st.integers(0, 150)), service=SERVICES)
    def settle(self, number: int, nanos: int | None, service: str) -> None:
        self.say(settle(number, nanos, service), expected=self.model.settle(number, nanos, service))

    @rule(number=NUMBERS, service=SERVICES)
    def release(self, number: int, service: str) -> None:
        self.say(release(number, service), expected=self.model.release(number, service))

    @rule()
    def commit(self) -> None:
        operations, self.batch = self.batch, []
        results = self.ledger.apply([operation for operation, _ in operations])
        for (operation, expected), result in zip(operations, results, strict=True):
            assert isinstance(result, Reservation) == expected, (operation, result)

    @rule(
        account=st.sampled_from(ACCOUNTS),
        period=st.sampled_from(Period),
        limit=st.integers(0, 150),
    )
    def set_budget(self, account: str, period: Period, limit: int) -> None:
        self.commit()
        if "/runs/" in account:
            period = Period.TOTAL
        self.ledger.limits.setdefault(account, {})[period] = limit
        self.model.limits[account, period] = limit

    @rule(hours=st.integers(1, 400))
    def time_passes(self, hours: int) -> None:
        self.commit()
        self.ledger.now += timedelta(hours=hours)

    @invariant()
    def balances_are_what_the_model_adds_up(self) -> None:
        if self.batch:
            return
        holds = self.model.holds.values()
        for (account, period, start), balance in self.ledger.balances.items():
            if account.startswith("operator/"):
                continue
            below = [
                hold
                for hold in holds
                if is_above(account, hold.leaf) and same_period(period, hold.day, start)
            ]
            assert balance == Balance(
                sum(hold.hold for hold in below if hold.state == "held"),
                sum(hold.posted for hold in below),
            ), (account, period, start)

    @invariant()
    def the_transfers_alone_tell_every_balance(self) -> None:
        if self.batch:
            return
        sums: dict[str, int] = {}
        for transfer in self.ledger.transfers:
            assert transfer.amount_nanos > 0
            debit, credit = transfer.debit_account, transfer.credit_account
            if transfer.kind in {Kind.POST, Kind.OVERRUN, Kind.COST}:
                amount = transfer.amount_nanos
                sums[credit] = sums.get(credit, 0) + amount
                sums[debit] = sums.get(debit, 0) + (
                    -amount if transfer.kind is Kind.COST else amount
                )
        for org in (ORG, "orgs/other"):
            operator = revenue_account(org), overrun_account(org), provider_cost_account(org)
            for account in (*operator, *LEAVES):
                posted_on_children = sum(
                    amount for name, amount in sums.items() if is_above(account, name)
                )
                assert self.ledger.balance(account).posted_nanos == posted_on_children

    def teardown(self) -> None:
        self.commit()
        for number, hold in self.model.holds.items():
            stored = self.ledger.reservations[key(number)]
            assert stored.state.name.lower() == hold.state
            assert (stored.posted_nanos, stored.overrun_nanos) == (hold.posted, hold.overrun)
        for number in self.model.tombstones:
            stored = self.ledger.reservations[key(number)]
            assert (stored.state, stored.account) == (State.RELEASED, "")


LedgerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestLedgerAgainstModel = LedgerMachine.TestCase
