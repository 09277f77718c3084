"""A worker's journal when the database is unsure: written once, or known to be another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from remit.agent.entries import Entry
from remit.agent.journal import fold
from remit.agent.logbook import Books, Logbook
from remit.agent.sealing import KeyRef
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.postgres import unavailable
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica, World
from tests.waiting import eventually


@pytest.fixture
async def made(replica: StartReplica, world: World) -> Replica:
    world.inference.effects.hold = asyncio.Event()
    return await replica(running=False)


async def opened(made: Replica, world: World) -> tuple[Books, Logbook, str]:
    run = await made.client().create()
    await eventually(lambda: world.inference.effects.held == 1)
    books = made.parts.runs.canceller.books
    progress = fold(await books.reader.journal(run.name, page=2))
    return books, Logbook(books, run.name, 1, progress, KeyRef(run.subject)), run.name


def say(logbook: Logbook, stage: str) -> Any:
    draft = logbook.draft()
    draft.add(run_pb2.StageStarted(stage=stage))
    return logbook.commit(draft)


def failing(append: Callable[[Entry], Any], *, first: bool) -> Callable[[Entry], Any]:
    """An append whose first answer is lost, before or after its commit."""
    lost = False

    async def call(entry: Entry) -> None:
        nonlocal lost
        if lost:
            await append(entry)
            return
        lost = True
        if not first:
            await append(entry)
        raise unavailable("the answer was lost")

    return call


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_an_entry_of_unknown_fate_is_written_once(
    lost: str, made: Replica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, logbook, run = await opened(made, world)
    monkeypatch.setattr(books.store, "append", failing(books.store.append, first=lost == "request"))
    await say(logbook, "once")
    await say(logbook, "twice")
    events = await books.reader.journal(run, page=3)
    assert [e.stage_started.stage for e in events[-2:]] == ["once", "twice"]
    assert logbook.progress == fold(events)


async def test_an_entry_of_unknown_fate_whose_place_is_taken_is_fenced(
    made: Replica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, logbook, run = await opened(made, world)
    other = Logbook(books, run, 1, logbook.progress, KeyRef(logbook.progress.accepted.subject))
    await say(other, "other")
    monkeypatch.setattr(books.store, "append", failing(books.store.append, first=True))
    with pytest.raises(RemitError) as caught:
        await say(logbook, "mine")
    assert caught.value.reason == reasons.ERROR_REASON_FENCED


async def test_a_commit_outlives_the_cancellation_of_its_caller(
    made: Replica, world: World
) -> None:
    _, logbook, _ = await opened(made, world)
    committing = asyncio.create_task(say(logbook, "kept"))
    await asyncio.sleep(0)
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    await logbook.settle()
    assert logbook.progress.stage == "kept"


async def test_the_service_cannot_change_what_it_wrote(made: Replica, world: World) -> None:
    await opened(made, world)
    for statement in (
        "UPDATE run_events SET percent = 1",
        "DELETE FROM run_events",
        "DELETE FROM runs",
        "UPDATE content SET bytes = ''",
        "UPDATE runs SET org = 'other'",
        "UPDATE agent_definitions SET agent = 'x'",
    ):
        with pytest.raises(Exception, match="permission denied"):
            await world.database.execute(statement)
