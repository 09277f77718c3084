"""The ledger in a storm: no budget exceeded, debits = credits, no hold left, tokens billed = made.

64 clients in several processes call models and tools, leave and hang up, while replicas of cost and
inference and PostgreSQL are killed. `make test-storm` runs 20,000 operations, the suite a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Sequence

import asyncpg
import pytest

from remit.cost.checks import ledger_faults
from tests.integration.ledger_payers import MOST_TOKENS, Told
from tests.integration.ledger_reckoning import (
    TokenCount,
    bills,
    check_bill,
    count_tokens,
    posted,
)
from tests.integration.ledger_storm import (
    INPUT_NANOS,
    MORTAL,
    OUTPUT_NANOS,
    Killer,
    LedgerWorld,
    Watcher,
    ledger_world,
    pay,
)
from tests.integration.reckoning import nothing_is_open, postgres_socket, value
from tests.integration.test_storm import a_seed
from tests.waiting import eventually

OPERATIONS = 20_000
CLIENTS = 64
SMALL = {"small-0": 4_000_000, "small-1": 12_000_000, "small-2": 30_000_000}
"""Budgets of users who spend them in the storm."""
TINY = {"small-0": 400_000, "small-1": 700_000}
EXTENDED = "SELECT count(DISTINCT claim) FROM transfers WHERE kind = 1 AND sequence > 1"
ONE_HOLD = MOST_TOKENS * OUTPUT_NANOS + 200 * INPUT_NANOS
"""What a model call may hold at most."""


@pytest.mark.storm
@pytest.mark.timeout(2400)
async def test_the_ledger_keeps_every_promise_in_a_storm() -> None:
    killed, tokens = await _weathered(
        SMALL, processes=4, clients=CLIENTS, operations=OPERATIONS, pause_s=6
    )
    assert set(killed) == set(MORTAL)
    assert tokens.cancelled, "nobody left while the engine was at work"
    assert tokens.doubtful_calls, "no effect was cut off by a death"


@pytest.mark.timeout(240)
async def test_a_few_deaths_and_the_ledger_keeps_every_promise() -> None:
    killed, _ = await _weathered(TINY, processes=2, clients=16, operations=400, pause_s=1)
    assert killed


async def _weathered(
    limits_nanos: dict[str, int], *, processes: int, clients: int, operations: int, pause_s: float
) -> tuple[Counter[str], TokenCount]:
    chance = random.Random(a_seed())  # noqa: S311 - not a secret
    async with ledger_world(limits_nanos, users=3) as world:
        watcher, killer = Watcher(world.mesh), Killer(world, chance, pause_s)
        began = time.monotonic()
        around = [asyncio.create_task(watcher.watch()), asyncio.create_task(killer.rage())]
        told = await pay(world, processes=processes, clients=clients, operations=operations)
        seconds = time.monotonic() - began
        await _ended(around)
        await eventually(lambda: nothing_is_open(world.mesh), 120)
        assert watcher.faults == []
        assert watcher.held, "no look found money held"
        _check_what_was_told(world, told, operations)
        tokens = await _reckoned(world, told)
        extended = await value(world.mesh, "remit_cost", EXTENDED)
        ends = sum((Counter(ends) for one in told for ends in one.ends.values()), Counter[str]())
    tries = sum(one.tries for one in told)
    print(  # noqa: T201 - shown by `pytest -s`, and when it fails
        f"{operations} operations in {seconds:.0f} s ({tries} calls): {dict(ends)};"
        f" killed {dict(killer.killed)}; {watcher.looks} looks, {watcher.held} at held money;"
        f" {tokens}; {extended} holds extended"
    )
    return killer.killed, tokens


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Ends what goes on for ever; raises what ended it before."""
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _check_what_was_told(world: LedgerWorld, told: Sequence[Told], operations: int) -> None:
    """Every operation has an end that the contracts know, and only small budgets refuse."""
    assert sum(sum(ends.values()) for one in told for ends in one.ends.values()) == operations
    for user, ends in ((user, ends) for one in told for user, ends in one.ends.items()):
        known = {"model", "tool", "left", "refused", "in doubt", "too late"}
        assert set(ends) <= known, (user, ends)
        assert "refused" not in ends or user in world.limits_nanos, (user, ends)
    accounts = {account: quota for one in told for account, quota in one.refusals.items()}
    assert set(accounts) == {f"{world.mesh.org}/users/{user}" for user in world.limits_nanos}
    for user, limit in world.limits_nanos.items():
        account = f"{world.mesh.org}/users/{user}"
        assert accounts[account].startswith(f"{account}: the ")
        assert f"limit is {limit} nano-USD" in accounts[account]
        assert re.search(
            r"renews at 2\d{3}-\d\d-01T00:00:00Z; come again in [1-9]", accounts[account]
        )


async def _reckoned(world: LedgerWorld, told: Sequence[Told]) -> TokenCount:
    mesh = world.mesh
    # Not as a service connects: here whole tables are read, and it may take as long as it takes.
    ledger = await asyncpg.connect(
        host=postgres_socket(mesh), user="postgres", database="remit_cost"
    )
    try:
        await ledger.execute("ANALYZE")
        assert await ledger_faults(ledger, 10) == []
    finally:
        await ledger.close()
    assert await Watcher(mesh).faults_now() == []
    paid = await bills(mesh, "inference")
    for bill in paid:
        check_bill(bill)
    tokens = count_tokens(paid, world.made())
    _check_answers(told, world)
    called = await bills(mesh, "tools")
    everything = sum(bill.bill_nanos for bill in (*paid, *called))
    assert await posted(mesh, mesh.org) == (0, everything)
    for user, limit in world.limits_nanos.items():
        held, spent = await posted(mesh, f"{mesh.org}/users/{user}")
        assert (held, spent <= limit) == (0, True)
        assert spent > limit - ONE_HOLD, f"{user} was refused with {limit - spent} left"
    assert tokens.exact_calls > tokens.doubtful_calls
    return tokens


def _check_answers(told: Sequence[Told], world: LedgerWorld) -> None:
    """What a client was told that it used was made for it; by a repeated attempt more."""
    made = world.made()
    for key, tokens in ((key, tokens) for one in told for key, tokens in one.tokens.items()):
        assert tokens <= made[key][1], key
