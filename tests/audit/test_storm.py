"""Audit in a storm: replicas, callers and PostgreSQL are killed while 64 writers append.

0 acknowledged entries lost, 0 gaps, 0 effects without an intent, and every checkpoint that was ever
signed is one of the log that is left. `make test-storm` kills for a minute, the suite once each.
"""

from __future__ import annotations

import json
import random
import time
from itertools import cycle

import pytest

from remit.audit import merkle
from remit.audit.anchor import ANCHOR_FILE
from remit.audit.key_files import load_log_keys
from remit.audit.leaf import Leaf
from remit.audit.merkle import Frontier
from remit.audit.note import open_checkpoint
from remit.audit.store import LogStore
from remit.postgres import Database
from tests.audit.storm_world import World, storm_world
from tests.integration.test_storm import a_seed

KINDS = ("audit", "caller", "postgres")
STORM_S = 60.0


@pytest.mark.storm
@pytest.mark.timeout(600)
async def test_a_storm_loses_nothing() -> None:
    chance = random.Random(a_seed())  # noqa: S311 - not a secret
    async with storm_world(callers=4, writers=16) as world:
        ends = time.monotonic() + STORM_S
        for number, kind in enumerate(cycle(KINDS)):
            if time.monotonic() > ends and number >= 3 * len(KINDS):
                break
            await world.goes_on()
            await world.kill(_one_of(world, kind, chance))
        await assert_whole(world)


async def test_a_death_of_each_kind_loses_nothing() -> None:
    chance = random.Random(a_seed())  # noqa: S311 - not a secret
    async with storm_world(callers=2, writers=8) as world:
        for kind in KINDS:
            await world.goes_on()
            await world.kill(_one_of(world, kind, chance))
        await assert_whole(world)


def _one_of(world: World, kind: str, chance: random.Random) -> str:
    return chance.choice([name for name in world.parts if name.startswith(kind)])


async def assert_whole(world: World) -> None:
    """Callers die last, so that what they said is all there is; then the log is read whole."""
    await world.goes_on()
    for name, part in world.parts.items():
        if name.startswith("caller"):
            await part.stop()
    lines = world.lines()
    assert [line for line in lines if line[0] == "fault"] == []
    # What is signed is read first: what callers left in the queue is still being appended.
    notes = [(world.keys / ANCHOR_FILE).read_text()]
    async with Database.open(world.dsn) as database:
        notes += [row["signed_note"] for row in await database.fetch(CHECKPOINTS)]
        rows = await database.fetch("SELECT event_id, leaf_index FROM leaves ORDER BY leaf_index")
        places = {row["event_id"]: row["leaf_index"] for row in rows}
        assert list(places.values()) == list(range(len(rows))), "no gap"
        acknowledged = {what: int(number) for word, what, number in lines if word == "ack"}
        assert acknowledged
        assert places.items() >= acknowledged.items(), "nothing acknowledged is lost"
        store = LogStore(database, max_batch=64, max_queue=1024)
        leaves = await store.leaves(0, len(rows))
        assert await store.root(len(rows)) == _roots(leaves)[-1]
    intents = {leaf.claim for leaf in map(Leaf.decode, leaves) if leaf.kind == "INTENT"}
    effects = {f"claims/{what}" for word, what, _ in lines if word == "effect"}
    assert effects <= intents, "no effect without an intent"
    _check_signed(world, notes, leaves)
    print(json.dumps({"leaves": len(rows), "effects": len(effects), "checkpoints": len(notes)}))  # noqa: T201


CHECKPOINTS = "SELECT signed_note FROM checkpoints"


def _roots(leaves: list[bytes]) -> list[bytes]:
    """The root of the first n leaves, for each n from 0 on."""
    frontier = Frontier()
    roots = [frontier.root()]
    for leaf in leaves:
        frontier.append(merkle.leaf_hash(leaf))
        roots.append(frontier.root())
    return roots


def _check_signed(world: World, notes: list[str], leaves: list[bytes]) -> None:
    verifier, roots = load_log_keys(world.keys).signer.verifier(), _roots(leaves)
    for note in notes:
        signed = open_checkpoint(note, verifier)
        assert roots[signed.tree_size] == signed.root_hash
