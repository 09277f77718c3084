"""CheckCompleteness over real logs and claims: what agrees, each store changed by hand, the cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.audit import completeness_check, completeness_walk
from remit.audit.completeness import Key
from remit.audit.completeness_check import effects_token, journals_token, place_of
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.audit.completeness_world import CheckWorld, claim_of, total
from tests.audit.events import EVE, RUN, Log
from tests.audit.old_months import OldLog, make_old, month_ago
from tests.conftest import PostgresCluster

OTHER = "orgs/other"


@pytest.fixture
async def world(log: Log, postgres: PostgresCluster) -> Any:
    tools, inference = await postgres.fresh("tools"), await postgres.fresh("inference")
    async with (
        Database.open(postgres.dsn(tools, "remit_tools")) as tool_claims,
        Database.open(postgres.dsn(inference, "remit_inference")) as model_claims,
    ):
        yield CheckWorld(log, model_claims, tool_claims)


async def test_what_happened_whole_is_complete(world: CheckWorld) -> None:
    for number in range(1, 6):
        await world.effect(number, service="inference" if number % 2 else "tools")
    steps = await world.check()
    assert [step.sequence for step in steps] == [*range(1, len(steps) + 1)]
    assert steps[-1].percent == 100
    assert all(step.percent < 100 for step in steps[:-1])
    assert not [found for step in steps for found in step.differences]
    counts = {name: total(steps, name) for name in ("attempts", "events", "reservations", "calls")}
    assert counts == {"attempts": 5, "events": 10, "reservations": 5, "calls": 5}
    assert steps[0].tree_size == 10
    assert abs(steps[0].cut_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=5)


async def test_every_store_ends_a_span_and_nothing_is_compared_twice(
    world: CheckWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completeness_walk, "SPAN_SIZE", 2)
    monkeypatch.setattr(completeness_walk, "EVENTS", 2)
    for number in range(1, 8):
        await world.effect(number, service="inference" if number > 4 else "tools")
    steps = await world.check()
    assert len(steps) > 7
    assert (total(steps, "attempts"), total(steps, "calls")) == (7, 7)
    assert await world.kinds() == []
    for step in steps[:-1]:
        again = await world.check(step.resume_token)
        done = [each for each in steps if each.sequence <= step.sequence]
        assert total(done, "attempts") + total(again, "attempts") == 7
        assert total(done, "calls") + total(again, "calls") == 7


Hand = Callable[[CheckWorld, "Owner"], Awaitable[None]]


class Owner:
    """The owner of the log's tables, who can do what no service can."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn.replace("remit_audit@", "remit_audit_owner@")

    async def execute(self, statement: str, *args: object) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.execute(statement, *args)
        finally:
            await connection.close()


async def _intent_deleted(world: CheckWorld, owner: Owner) -> None:
    await owner.execute("DELETE FROM events WHERE claim = $1 AND kind = 'INTENT'", claim_of(2))


async def _outcome_deleted(world: CheckWorld, owner: Owner) -> None:
    await owner.execute("DELETE FROM events WHERE claim = $1 AND kind = 'OUTCOME'", claim_of(2))


async def _claim_deleted(world: CheckWorld, owner: Owner) -> None:
    number = "00000000-0000-0000-0000-000000000002"
    dsn = world.claims["tools"].dsn.replace("remit_tools@", "remit_tools_owner@")
    connection = await asyncpg.connect(dsn)
    await connection.execute("DELETE FROM effect_attempts WHERE claim = $1", number)
    await connection.execute("DELETE FROM effect_claims WHERE claim = $1", number)
    await connection.close()


async def _moved(world: CheckWorld, owner: Owner) -> None:
    await world.changed("intent_leaf = 0", 2)


async def _ended_otherwise(world: CheckWorld, owner: Owner) -> None:
    await world.changed("outcome = 'FAILED'", 2)


async def _reopened(world: CheckWorld, owner: Owner) -> None:
    await world.changed("state = 'STARTED', outcome = NULL, closed_time = NULL", 2)


async def _of_another_run(world: CheckWorld, owner: Owner) -> None:
    await world.changed("run = ''", 2)


async def _paid_for_nothing(world: CheckWorld, owner: Owner) -> None:
    world.pay(9)


async def _journalled_for_nothing(world: CheckWorld, owner: Owner) -> None:
    world.record(9, 0)


@pytest.mark.parametrize(
    ("by_hand", "expected"),
    [
        (_intent_deleted, [("INTENT_MISSING", 2), ("JOURNAL_WITHOUT_INTENT", 2)]),
        (_outcome_deleted, [("OUTCOME_MISSING", 2)]),
        (_claim_deleted, [("ATTEMPT_MISSING", 2), ("JOURNAL_WITHOUT_CLAIM", 2)]),
        (_moved, [("INTENT_ELSEWHERE", 2)]),
        (_ended_otherwise, [("OUTCOME_DIFFERS", 2)]),
        (_reopened, [("OUTCOME_WHILE_OPEN", 2)]),
        (_of_another_run, [("OWNER_DIFFERS", 2)]),
        (_paid_for_nothing, [("PAID_WITHOUT_INTENT", 9)]),
        (_journalled_for_nothing, [("JOURNAL_WITHOUT_INTENT", 9)]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_was_changed_by_hand_is_named(
    world: CheckWorld, by_hand: Hand, expected: list[tuple[str, int]]
) -> None:
    for number in (1, 2, 3):
        await world.effect(number)
    assert await world.kinds() == []
    await by_hand(world, Owner(world.log.database.dsn))
    assert await world.kinds() == [(kind, claim_of(number)) for kind, number in expected]


async def test_lag_is_judged_by_ages(world: CheckWorld) -> None:
    leaf = await world.intent(1)
    await world.attempt(1, leaf)
    assert await world.kinds() == []
    await world.changed("update_time = clock_timestamp() - interval '1 day'", 1)
    assert await world.kinds() == [("OUTCOME_OVERDUE", claim_of(1))]
    await world.changed("state = 'STARTED', outcome = NULL", 1)
    assert await world.kinds() == []
    await world.changed("create_time = clock_timestamp() - interval '1 day'", 1)
    assert await world.kinds() == [("OPEN_TOO_LONG", claim_of(1))]
    await world.changed("lease_expires = clock_timestamp() - interval '1 day'", 1)
    assert await world.kinds() == [("OUTCOME_OVERDUE", claim_of(1))]


async def test_what_is_written_between_two_reads_is_no_difference(
    world: CheckWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = await world.intent(1)
    await world.attempt(1, leaf)
    looks = 0
    page = world.events.page

    async def closed_meanwhile(*span: Any) -> Any:
        nonlocal looks
        found = await page(*span)
        looks += 1
        if looks == 1:  # the log is read, the claims are not
            await world.outcome(1)
            await world.changed("state = 'CLOSED', closed_time = clock_timestamp()", 1)
        return found

    monkeypatch.setattr(world.events, "page", closed_meanwhile)
    assert await world.kinds() == []
    assert looks == 2, "what looked wrong was looked at again"


async def test_what_began_after_the_cut_is_left_to_the_next_check(
    world: CheckWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = await world.walk.cut()
    await world.effect(1)
    await world.changed("outcome = 'FAILED'", 1)

    async def earlier() -> Any:
        return cut

    with monkeypatch.context() as patch:
        patch.setattr(world.walk, "cut", earlier)
        steps = await world.check()
        assert (total(steps, "attempts"), total(steps, "calls")) == (0, 0)
        assert total(steps, "after_cut") == 1
        assert not [found for step in steps for found in step.differences]
    assert await world.kinds() == [("OUTCOME_DIFFERS", claim_of(1))]


async def test_another_orgs_differences_are_counted_and_logged_here(world: CheckWorld) -> None:
    await world.effect(1)
    await world.effect(2, org=OTHER)
    for number in (1, 2):
        await world.changed("outcome = 'FAILED'", number)
    steps = await world.check()
    assert [found.claim for step in steps for found in step.differences] == [claim_of(1)]
    assert total(steps, "differences_elsewhere") == 1
    theirs = await world.check(org=EVE.partition("/users")[0])
    assert [found.claim for step in theirs for found in step.differences] == [claim_of(2)]


async def test_a_store_that_is_away_ends_the_check(world: CheckWorld) -> None:
    await world.effect(1)
    world.ledger.is_away = True
    with pytest.raises(RemitError) as caught:
        await world.check()
    assert caught.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_a_doubt_that_a_late_result_resolved_is_complete(world: CheckWorld) -> None:
    leaf = await world.intent(1)
    await world.attempt(1, leaf)
    await world.outcome(1, event_pb2.OUTCOME_IN_DOUBT)
    await world.outcome(1)
    await world.changed("state = 'CLOSED', closed_time = clock_timestamp()", 1)
    assert await world.kinds() == []


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "effects",
        "effects:claims/x:1",
        f"effects:{RUN}:1",
        f"effects:{claim_of(1)}:0",
        f"effects:{claim_of(1)}:99999999999999999999999",
        f"journals:{claim_of(1)}:1",
        f"journals:{RUN}:-1",
        f"journals:{RUN}:٣",
    ],
)
def test_a_token_of_something_else_is_refused(token: str) -> None:
    with pytest.raises(RemitError) as caught:
        place_of(token)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST


def test_tokens_lead_back_to_their_places() -> None:
    key = Key(claim_of(3), 2)
    assert place_of(effects_token(key)) == (key, None)
    assert place_of(journals_token((RUN, 9))) == (None, (RUN, 9))
    assert place_of("journals") == (None, None)
    assert place_of("") == (Key("", 0), None)
    assert completeness_check.MOST_LOGGED > 0


# ------------------------------------------------------------------------- dropped months


async def dropped(world: CheckWorld, postgres: PostgresCluster, place: Path, stop: int) -> None:
    """The first leaves are of an old month, which is archived and dropped."""
    dsn = world.log.database.dsn.replace("remit_audit@", "remit_audit_archiver@")
    async with Database.open(dsn, pool_size=1) as dropper:
        old = OldLog.of(world.log, dropper, place)
        await make_old(world.log.database, month_ago(3), 0, stop)
        await old.publish()
        assert len(await old.run(month_ago(2))) == 1


async def test_a_check_sees_into_dropped_months(
    world: CheckWorld,
    postgres: PostgresCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Effects before, across and behind the end of a month; and what is wrong among them."""
    monkeypatch.setattr(completeness_walk, "SPAN_SIZE", 2)
    for number in range(1, 8):
        await world.effect(number, service="inference" if number % 2 else "tools")
    await dropped(world, postgres, tmp_path, 7)  # the intent of the fourth, not its outcome
    assert await world.kinds() == []
    steps = await world.check()
    counts = {name: total(steps, name) for name in ("attempts", "events", "calls")}
    assert counts == {"attempts": 7, "events": 14, "calls": 7}
    del world.ledger.records[claim_of(1)]
    await world.changed("outcome = 'FAILED'", 2)
    models = world.claims["inference"].dsn.replace("remit_inference@", "remit_inference_owner@")
    owner = await asyncpg.connect(models)
    await owner.execute("DELETE FROM effect_attempts")
    await owner.close()
    found = [kind for kind, _ in await world.kinds()]
    assert "OUTCOME_DIFFERS" in found, "of a dropped month, by its own org"
    steps = await world.check()
    assert total(steps, "differences_elsewhere") >= 2, "whose effects these were is not known"


async def test_what_lacks_in_a_dropped_month_is_found(
    world: CheckWorld, postgres: PostgresCluster, tmp_path: Path
) -> None:
    await world.attempt(1, 0)  # started, and nobody wrote an intent
    await world.effect(2)
    await world.changed("intent_leaf = 0", 1)
    await dropped(world, postgres, tmp_path, 2)
    assert await world.kinds() == [("INTENT_MISSING", claim_of(1))]
    world.record(2, 1)  # leaf 1 is the outcome
    assert ("JOURNAL_WITHOUT_INTENT", claim_of(2)) in await world.kinds()
