"""What bills must be after a storm: closed as their effects ended, and for what was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.integration.conftest import RunningMesh
from tests.integration.ledger_payers import MOST_TOKENS
from tests.integration.ledger_storm import INPUT_NANOS, OUTPUT_NANOS
from tests.integration.reckoning import rows


@dataclass(frozen=True)
class Bill:
    """A reservation of a model call, and the attempt that it is of."""

    key: str
    outcome: str
    state: int
    hold_nanos: int
    bill_nanos: int
    bound_tokens: int
    input_tokens: int | None
    output_tokens: int | None
    """None: the effect was in doubt, and its whole hold was posted."""


_ATTEMPTS: Final = """
    SELECT 'claims/' || a.claim, a.attempt, c.key, a.outcome
    FROM effect_attempts a JOIN effect_claims c USING (claim)
"""
_RESERVATIONS: Final = """
    SELECT claim, attempt, state, hold_nanos, posted_nanos + overrun_nanos, bound_output_tokens,
        used_input_tokens, used_output_tokens
    FROM reservations WHERE account IS NOT NULL
"""


async def bills(mesh: RunningMesh, gate: str) -> list[Bill]:
    """The bills of all attempts of a gate; each hold must be of one."""
    attempts = {
        (claim, attempt): (key, outcome)
        for claim, attempt, key, outcome in await rows(mesh, f"remit_{gate}", _ATTEMPTS)
    }
    items = {"inference": "models/counted", "tools": "tools/calculator"}
    query = f"{_RESERVATIONS} AND item = $1"
    found = await rows(mesh, "remit_cost", query, items[gate])
    return [Bill(*attempts[claim, attempt], *rest) for claim, attempt, *rest in found]


@dataclass
class TokenCount:
    """Tokens that were made beside those that were billed."""

    made: int = 0
    billed: int = 0
    cancelled: int = 0
    """Attempts that were stopped in the midst of their work."""
    exact_calls: int = 0
    doubtful_calls: int = 0
    made_in_doubt: int = 0
    billed_in_doubt: int = 0


def count_tokens(paid: Sequence[Bill], made: Mapping[str, tuple[int, int]]) -> TokenCount:
    """Asserts that what was billed is what was made.

    Exactly, unless an attempt of the call is in doubt: then what is known is at most what was made,
    and what was held for the doubt covers the rest.
    """
    by_key: dict[str, list[Bill]] = {key: [] for key in made}
    for bill in paid:
        by_key.setdefault(bill.key, []).append(bill)
    total = TokenCount(cancelled=sum(bill.outcome == "CANCELLED" for bill in paid))
    for key, of_call in by_key.items():
        read, written = made.get(key, (0, 0))
        known = [bill for bill in of_call if bill.output_tokens is not None]
        doubted = [b for b in of_call if b.output_tokens is None and b.outcome != "REFUSED"]
        billed = sum(bill.output_tokens or 0 for bill in known)
        if doubted:
            most = billed + sum(bill.bound_tokens for bill in doubted)
            assert billed <= written <= most, (key, of_call, written)
            total.doubtful_calls += 1
            total.made_in_doubt += written
            total.billed_in_doubt += most
        else:
            assert billed == written, (key, of_call, written)
            assert sum(bill.input_tokens or 0 for bill in known) == read, (key, of_call, read)
            total.exact_calls += 1
            total.made += written
            total.billed += billed
    return total


def check_bill(bill: Bill) -> None:
    """A bill is closed, as its outcome says, and costs what its tokens cost."""
    if bill.outcome == "REFUSED":
        assert (bill.state, bill.bill_nanos) == (3, 0), bill
        return
    assert bill.state == 2, bill
    assert bill.bill_nanos <= bill.hold_nanos, bill
    if bill.input_tokens is None or bill.output_tokens is None:
        assert bill.bill_nanos == bill.hold_nanos, bill
    else:
        cost = INPUT_NANOS * bill.input_tokens + OUTPUT_NANOS * bill.output_tokens
        assert bill.bill_nanos == cost, bill
    assert bill.bound_tokens <= MOST_TOKENS, bill


async def posted(mesh: RunningMesh, account: str) -> tuple[int, int]:
    """What is held and what is spent on an account, over all time."""
    query = "SELECT pending_nanos, posted_nanos FROM balances WHERE account = $1 AND period = 1"
    found: list[Any] = await rows(mesh, "remit_cost", query, account)
    return found[0] if found else (0, 0)
