"""Whose money is held and spent: one hot budget, a thousand users of one org, a thousand orgs.

The ledger is locked by org. So a thousand users of one org still wait for one lock, and differ from
a hot budget in the rows that a batch reads and writes; a thousand orgs are a thousand locks. As in
production it is runs that pay, and a run pays for more than one effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from remit import names
from remit.cost.periods import Period
from remit.postgres import Connection

HOT: Final = "hot"
USERS: Final = "users"
ORGS: Final = "orgs"
KINDS: Final = {HOT: "one", USERS: "1,000 users of one org", ORGS: "1,000 orgs"}
"""By name, which budgets are spent from."""

AGENT: Final = "agents/assistant"
ITEM: Final = "tools/calculator"
"""What is bought; its price is one of those that are shipped."""
_MANY: Final = 1_000
_RUNS_OF_ONE: Final = 256
_LIMIT_NANOS: Final = 10**15


@dataclass(frozen=True, slots=True)
class Payer:
    """A run, and the user whose it is."""

    subject: str
    run: str

    @property
    def org(self) -> str:
        """The org of the user."""
        return names.org_of(self.subject)

    @property
    def account(self) -> str:
        """The leaf of the path that pays."""
        return names.account_path(self.subject, agent=AGENT, run=self.run)[-1]


def payers(kind: str) -> list[Payer]:
    """The runs that pay: of one user, of a user each, or of an org each."""
    if kind == HOT:
        return [Payer("orgs/hot/users/one", _run(number)) for number in range(_RUNS_OF_ONE)]
    if kind == USERS:
        return [Payer(f"orgs/many/users/u{number}", _run(number)) for number in range(_MANY)]
    return [Payer(f"orgs/o{number}/users/one", _run(number)) for number in range(_MANY)]


def budgets(kind: str) -> list[str]:
    """The accounts with a budget of their own: a user each, or an org each."""
    found = [payer.subject if kind == USERS else payer.org for payer in payers(kind)]
    return [*dict.fromkeys(found)]


def limits(kind: str) -> dict[str, dict[Period, int]]:
    """The same budgets as the ledger is given them, with more money than is spent here."""
    return {account: {Period.DAY: _LIMIT_NANOS} for account in budgets(kind)}


async def set_budgets(connection: Connection, kinds: Sequence[str]) -> None:
    """Writes the budgets, and the ledgers of their orgs."""
    accounts = [account for kind in kinds for account in budgets(kind)]
    orgs = [names.org_of(account) for account in accounts]
    await connection.execute(
        "INSERT INTO ledgers (org) SELECT DISTINCT unnest($1::text[]) ON CONFLICT DO NOTHING", orgs
    )
    await connection.execute(
        "INSERT INTO budgets (account, period, org, limit_nanos, update_time)"
        " SELECT n.account, $1, n.org, $2, $3 FROM unnest($4::text[], $5::text[])"
        " AS n (account, org) ON CONFLICT DO NOTHING",
        *(int(Period.DAY), _LIMIT_NANOS, datetime.now(UTC), accounts, orgs),
    )


def _run(number: int) -> str:
    return f"runs/{UUID(int=number)}"
