"""Erasing a subject: told before it is done, done even if who told it dies, and done for good."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from remit.api.audit.v1 import event_pb2
from remit.audit.erasing import Erased, Eraser, ErasureRequest
from remit.audit.filters import EventFilter, Walk
from remit.audit.leaf import Leaf
from remit.audit.sealing import Pseudonyms, shown
from remit.postgres import Database, unavailable
from remit.rpc.errors import RemitError
from tests.audit.events import (
    ALICE,
    BOB,
    DETAIL,
    KEYS,
    ORG,
    Log,
    make_eraser,
    make_event,
    make_log,
)
from tests.conftest import PostgresCluster

PSEUDONYM = Pseudonyms(KEYS.pseudonym).of(ALICE)


def request(log: Log, request_id: str = "r-1", subject: str = ALICE) -> ErasureRequest:
    return ErasureRequest(BOB, subject, request_id, "", log.clock.now())


@pytest.fixture
def eraser(log: Log, destroyer: Database) -> Eraser:
    return make_eraser(log, destroyer)


async def details(log: Log) -> dict[str, str]:
    """What a reader is shown, by event id."""
    events = await log.log.list_events(EventFilter(ORG), Walk(1 << 40, most=10_000), limit=200)
    return {one.event.event_id: one.event.detail_json for one in events}


async def keys(log: Log) -> list[bytes]:
    rows = await log.keys_database.fetch("SELECT subject_pseudonym FROM subject_keys")
    return [row[0] for row in rows]


class Dying:
    """A connection to the keys of a replica that dies before it deletes any."""

    async def execute(self, *_: object) -> None:
        raise unavailable("it died")


async def test_the_entry_names_the_key_and_no_person(log: Log, eraser: Eraser) -> None:
    await log.append(make_event("e-1"), make_event("e-2", subject=BOB))
    [stored] = await log.keys_database.fetch(
        "SELECT key_id FROM subject_keys WHERE subject_pseudonym = $1", PSEUDONYM
    )
    erased = await eraser.erase(request(log))
    leaf = Leaf.decode((await log.store.leaves(2, 3))[0])
    assert erased.leaf_index == 2
    assert leaf.resource == f"{ORG}/users/{shown(PSEUDONYM)}/keys/{stored['key_id'].hex()}"
    assert (leaf.kind, leaf.action, leaf.outcome) == ("ADMIN", "audit.erase", "SUCCEEDED")
    assert await keys(log) == [Pseudonyms(KEYS.pseudonym).of(BOB)]
    assert (await details(log))["e-1"] == ""
    assert (await details(log))["e-2"] == DETAIL


async def test_every_replica_forgets_within_the_time_that_is_stated(
    log: Log, eraser: Eraser
) -> None:
    other = make_log(log.database, log.keys_database, log.clock)
    await log.append(make_event("e-1"))
    log.clock.advance(30)
    assert (await details(other))["e-1"] == DETAIL, "it remembers the key from now on"
    erased = await eraser.erase(request(log))
    assert (await details(log))["e-1"] == "", "at once where it was done"
    log.clock.advance(59.9)
    assert log.clock.now() < erased.forget_time
    assert (await details(other))["e-1"] == DETAIL
    log.clock.advance(0.1)
    assert log.clock.now() == erased.forget_time
    assert (await details(other))["e-1"] == ""


async def test_a_request_erases_once(log: Log, eraser: Eraser) -> None:
    await log.append(make_event("e-1"))
    first = await eraser.erase(request(log))
    await log.append(make_event("e-2"))
    log.clock.advance(5)
    again = await eraser.erase(request(log))
    assert again == replace(first, forget_time=again.forget_time)
    assert (await details(log))["e-2"] == DETAIL, "what came after it has a key of its own"
    with pytest.raises(RemitError, match="used before for another request"):
        await eraser.erase(request(log, subject=BOB))
    second = await eraser.erase(request(log, "r-2"))
    assert second.resource != first.resource
    assert (await details(log))["e-2"] == ""


async def test_a_request_that_comes_twice_at_once_is_one(log: Log, destroyer: Database) -> None:
    await log.append(make_event("e-1"))
    replicas = [make_log(log.database, log.keys_database, log.clock) for _ in range(4)]

    async def erase(replica: Log, seconds: int) -> Erased:
        asked = request(log)
        return await make_eraser(replica, destroyer).erase(
            replace(asked, time=asked.time.replace(second=seconds))
        )

    found = await asyncio.gather(*(erase(each, n) for n, each in enumerate(replicas)))
    assert len({each.leaf_index for each in found}) == 1
    assert await log.store.size() == 2


async def test_a_request_that_another_replica_finished_meanwhile_is_answered(
    log: Log, destroyer: Database
) -> None:
    await log.append(make_event("e-1"))
    asked = request(log)
    behind = make_eraser(make_log(log.database, log.keys_database, log.clock), destroyer)
    done = await make_eraser(log, destroyer).erase(asked)
    # It looked for the request before the other one was done, and for the key after.
    found = await behind._recorded(asked, PSEUDONYM)
    assert found.leaf_index == done.leaf_index
    unknown = replace(asked, request_id="another")
    with pytest.raises(RemitError, match="has no key"):
        await behind.erase(unknown)


async def test_what_the_entry_says_becomes_true_though_its_writer_died(
    log: Log, destroyer: Database
) -> None:
    await log.append(make_event("e-1"))
    with pytest.raises(RemitError, match="it died"):
        await make_eraser(log, Dying()).erase(request(log))  # type: ignore[arg-type]
    assert await log.store.size() == 2
    assert PSEUDONYM in await keys(log)
    other = make_log(log.database, log.keys_database, log.clock)
    survivor = make_eraser(other, destroyer)
    await survivor.finish()
    assert PSEUDONYM not in await keys(log)
    assert (await details(other))["e-1"] == ""
    assert (await survivor.erase(request(log))).leaf_index == 1, "and the request can be repeated"


async def test_a_key_that_a_backup_brings_back_goes_at_the_next_start(
    log: Log, eraser: Eraser, destroyer: Database, postgres: PostgresCluster
) -> None:
    await log.append(make_event("e-1"))
    [kept] = await log.keys_database.fetch("SELECT * FROM subject_keys")
    await eraser.erase(request(log))
    await eraser.finish()
    name = await log.keys_database.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(postgres.dsn(name, "remit_audit_keys_owner"))
    await owner.execute("DELETE FROM subject_keys")
    await owner.execute("INSERT INTO subject_keys VALUES ($1, $2, $3, $4, $5)", *kept)
    await owner.close()
    await make_eraser(log, destroyer).finish()
    assert await keys(log) == []


async def test_the_entries_are_looked_through_page_by_page(
    log: Log, destroyer: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit.audit.erasing._PAGE", 2)
    users = [f"{ORG}/users/u{n}" for n in range(5)]
    await log.append(*(make_event(f"e-{n}", subject=user) for n, user in enumerate(users)))
    dying = make_eraser(log, Dying())  # type: ignore[arg-type]
    for n, user in enumerate(users):
        with pytest.raises(RemitError, match="it died"):
            await dying.erase(request(log, f"r-{n}", user))
    await make_eraser(log, destroyer).finish()
    assert await keys(log) == [Pseudonyms(KEYS.pseudonym).of(BOB)], "who asked for it"


async def test_no_other_service_can_say_that_a_key_is_gone(log: Log, eraser: Eraser) -> None:
    await log.append(make_event("e-1"))
    [row] = await log.keys_database.fetch("SELECT key_id FROM subject_keys")
    forged = make_event(
        "e-2",
        kind=event_pb2.EVENT_KIND_ADMIN,
        action="audit.erase",
        resource=f"{ORG}/users/{shown(PSEUDONYM)}/keys/{row['key_id'].hex()}",
        outcome=event_pb2.OUTCOME_SUCCEEDED,
    )
    await log.append(forged)
    await eraser.finish()
    assert PSEUDONYM in await keys(log)


async def test_nothing_is_said_where_nothing_can_be_done(log: Log, eraser: Eraser) -> None:
    with pytest.raises(RemitError, match="alice has no key"):
        await eraser.erase(request(log))
    await log.append(make_event("e-1"))
    with pytest.raises(RemitError, match="REMIT_AUDIT_KEYS_ERASER_DSN is not set") as caught:
        await make_eraser(log, None).erase(request(log))
    assert caught.value.reason_name == "CONFIGURATION_INVALID"
    assert await log.store.size() == 1


async def test_an_event_that_is_sent_again_after_the_erasure_keeps_its_place(
    log: Log, eraser: Eraser
) -> None:
    await log.append(make_event("e-1"))
    await eraser.erase(request(log))
    assert await log.append(make_event("e-1")) == [0]
    [other] = await log.append(make_event("e-1", attempt=2))
    assert isinstance(other, RemitError)
    assert other.reason_name == "KEY_REUSED"


async def test_who_erases_themselves_leaves_the_entry(log: Log, eraser: Eraser) -> None:
    await log.append(make_event("e-1", subject=BOB))
    erased = await eraser.erase(request(log, subject=BOB))
    assert erased.leaf_index == 1
    assert await keys(log) == []
    assert await details(log) == dict.fromkeys(await details(log), "")
