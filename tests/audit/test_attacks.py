"""Attacks on a real log, by somebody without the signing key and by somebody who has everything.

The honest log lives in PostgreSQL, signed at three sizes, exported, written as tiles and watched by
a witness. An outsider forges the files and cannot sign. An insider owns the database and the key:
what is forged is consistent in itself, so only what somebody kept from before can tell. Each attack
must be found in each form, and the message must say where.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit import merkle
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.cosignature import Cosigner
from remit.audit.evidence import Auditor, Report, VerificationError
from remit.audit.export import write_export
from remit.audit.leaf import Leaf
from remit.audit.log import AuditLog
from remit.audit.note import Signer
from remit.audit.packing import pack
from remit.audit.sealing import Pseudonyms
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.audit.tile_files import TileFiles
from remit.audit.tile_verifier import verify_tiles
from remit.audit.tile_writer import TileWriter
from remit.audit.verifier import (
    checkpoint_line,
    footer_line,
    header_line,
    leaf_line,
    verify_lines,
)
from remit.audit.witness import Sighting, WitnessRefusalError, first_sighting, next_sighting
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.audit.events import KEYS, Log, make_event, sealed
from tests.audit.tile_trees import signed, tree, write_tiles
from tests.conftest import PostgresCluster

SIZE, SIGNED_AT = 300, (100, 200, 300)
VICTIM = 150
"""The leaf that is attacked: between the first and the second checkpoint."""
WITNESS = Cosigner.generate("witness.example/w1")
FORGED = [sealed(make_event(f"forged-{n}")).leaf_bytes for n in range(SIZE + 60)]

SWAP = """
    UPDATE events a SET leaf = b.leaf FROM events b
    WHERE (a.leaf_index, b.leaf_index) IN ((150, 151), (151, 150))
"""

Forge = Callable[[list[bytes]], list[bytes]]
ATTACKS: dict[str, Forge] = {
    "change": lambda leaves: [*leaves[:VICTIM], FORGED[0], *leaves[VICTIM + 1 :]],
    "delete": lambda leaves: [*leaves[:VICTIM], *leaves[VICTIM + 1 :]],
    "insert": lambda leaves: [*leaves[:VICTIM], FORGED[0], *leaves[VICTIM:]],
    "reorder": lambda leaves: [
        *leaves[:VICTIM],
        leaves[VICTIM + 1],
        leaves[VICTIM],
        *leaves[VICTIM + 2 :],
    ],
    "truncate": lambda leaves: leaves[:250],
    "replace": lambda _: FORGED[:SIZE],
    "fork": lambda leaves: [*leaves[:VICTIM], *FORGED[: SIZE - VICTIM + 60]],
}


@dataclass
class Honest:
    """The log before the attack, and what others kept of it."""

    log: Log
    postgres: PostgresCluster
    folder: Path
    leaves: list[bytes]
    kept: list[str]
    """A checkpoint of each size."""
    witnessed: str

    async def owner(self, *statements: str) -> None:
        name = await self.log.database.fetchval("SELECT current_database()")
        connection = await asyncpg.connect(self.postgres.dsn(name, "remit_audit_owner"))
        for statement in statements:
            await connection.execute(statement)
        await connection.close()


@pytest.fixture
async def honest(log: Log, postgres: PostgresCluster, tmp_path: Path) -> Honest:
    kept = []
    for size in SIGNED_AT:
        await log.append(*(make_event(f"e-{n}") for n in range(size - 100, size)))
        kept.append((await log.checkpoints.covering_all()).signed_note)
    witnessed = (await first_sighting(WITNESS, KEYS.signer.verifier(), Shown(log), 7)).note
    leaves = await log.store.leaves(0, SIZE)
    return Honest(log, postgres, tmp_path, leaves, kept, witnessed)


@dataclass
class Shown:
    """The log as its service shows it: the newest checkpoint, and proofs from the database."""

    log: Log

    async def checkpoint(self) -> tuple[str, Sequence[str]]:
        return (await self.log.checkpoints.covering_all()).signed_note, ()

    async def consistency_proof(self, first_size: int, second_size: int) -> Sequence[bytes]:
        return await self.log.store.range_hashes(merkle.consistency_ranges(first_size, second_size))


async def exported(log: Log, path: Path) -> Path:
    """An export, as the service streams it and the command line writes it."""
    checkpoint = await log.checkpoints.covering_all()

    async def stream() -> AsyncIterator[audit_query_service_pb2.ExportLogResponse]:
        stated = event_pb2.Checkpoint(
            tree_size=checkpoint.tree_size, signed_note=checkpoint.signed_note
        )
        yield audit_query_service_pb2.ExportLogResponse(checkpoint=stated)
        for start in range(0, checkpoint.tree_size, 64):
            leaves = await log.store.leaves(start, min(start + 64, checkpoint.tree_size))
            yield audit_query_service_pb2.ExportLogResponse(sequence=start, leaves=leaves)

    await write_export(path, stream())
    return path


async def tiled(log: Log, folder: Path) -> Path:
    """The tiles, as the service writes them."""
    files = TileFiles(folder)
    writer = TileWriter(files, log.store, log.checkpoints, interval_ms=10, tiles_per_round=256)
    assert await writer.round()
    return folder


def forged_export(path: Path, leaves: Sequence[bytes], note: str) -> Path:
    """An export whose every line fits the others; only the signature cannot be made."""
    lines = [header_line(0), checkpoint_line(note)]
    lines += [leaf_line(index, leaf) for index, leaf in enumerate(leaves)]
    content = b"".join(lines)
    path.write_bytes(content + footer_line(len(leaves), hashlib.sha256(content).hexdigest()))
    return path


def audited(log: Path, *earlier: str) -> Report:
    auditor = Auditor.of(str(KEYS.signer.verifier()), earlier)
    return (verify_tiles if log.is_dir() else verify_lines)(log, auditor)


def found(log: Path, *earlier: str) -> VerificationError:
    with pytest.raises(VerificationError) as raised:
        audited(log, *earlier)
    return raised.value


async def looked(honest: Honest) -> Sighting:
    verifier = KEYS.signer.verifier()
    return await next_sighting(WITNESS, verifier, honest.witnessed, Shown(honest.log), 8)


async def test_without_an_attack_nothing_is_found(honest: Honest) -> None:
    for form in (
        await exported(honest.log, honest.folder / "log.export"),
        await tiled(honest.log, honest.folder / "tiles"),
    ):
        assert audited(form, *honest.kept).earlier_tree_sizes == SIGNED_AT
    assert (await looked(honest)).checkpoint.tree_size == SIZE
    await honest.log.append(make_event("later"))
    assert (await looked(honest)).checkpoint.tree_size == SIZE + 1


# --------------------------------------------------------------------- without the key


@pytest.mark.parametrize(
    ("attack", "place"),
    [
        ("change", "leaves 100 to 199"),
        ("delete", "line 302 (leaf 299)"),
        ("insert", "leaves 100 to 199"),
        ("reorder", "leaves 100 to 199"),
        ("truncate", "line 253 (leaf 250)"),
        ("replace", "leaves 0 to 99"),
        ("fork", "leaves 100 to 199"),
    ],
)
async def test_a_forged_export_is_found_and_placed(honest: Honest, attack: str, place: str) -> None:
    forged = ATTACKS[attack](honest.leaves)
    path = forged_export(honest.folder / "log.export", forged, honest.kept[-1])
    assert found(path, *honest.kept[:2]).place == place


@pytest.mark.parametrize(
    ("attack", "place"),
    [
        ("change", "leaves 100 to 199"),
        ("delete", "tile/0/001.p/44"),
        ("insert", "leaves 100 to 199"),  # the leaf too many lies behind what was signed
        ("reorder", "leaves 100 to 199"),
        ("truncate", "tile/0/000"),
        ("replace", "leaves 0 to 99"),
        ("fork", "leaves 100 to 199"),
    ],
)
async def test_forged_tiles_are_found_and_placed(honest: Honest, attack: str, place: str) -> None:
    """Every tile is made anew, so that all hashes fit; the checkpoint stays."""
    forged = ATTACKS[attack](honest.leaves)
    if attack in {"insert", "fork"}:
        forged = forged[:SIZE]
    folder = write_tiles(honest.folder / "tiles", forged, honest.kept[-1])
    assert found(folder, *honest.kept[:2]).place == place


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE events SET leaf = '{}' WHERE leaf_index = 150", None),
        (SWAP, None),
        ("DELETE FROM events WHERE leaf_index = 150", "leaves 128 to 191 are not all"),
    ],
    ids=["change", "reorder", "delete"],
)
async def test_what_an_owner_of_the_database_does_to_entries_is_found(
    honest: Honest, statement: str, fault: str | None
) -> None:
    """The key is elsewhere: the checkpoint stays true, and what the service exports does not."""
    await honest.owner(statement)
    path = honest.folder / "log.export"
    if fault is None:
        place = found(await exported(honest.log, path), *honest.kept[:2]).place
        assert place == f"leaves {SIGNED_AT[0]} to {SIGNED_AT[1] - 1}"
    else:
        with pytest.raises(RemitError, match=fault):
            await exported(honest.log, path)
        assert not path.exists()
    with pytest.raises(RemitError, match="leaves 0 to 255 are not"):
        await tiled(honest.log, honest.folder / "tiles")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE leaves SET leaf_hash = sha256('x') WHERE leaf_index = 150",
        "DELETE FROM leaves WHERE leaf_index = 150",
        "DELETE FROM leaves WHERE leaf_index >= 150",
    ],
    ids=["change", "delete", "truncate"],
)
async def test_a_database_that_was_changed_is_not_signed(honest: Honest, statement: str) -> None:
    await honest.owner("DELETE FROM nodes", statement)
    await honest.log.append(make_event("later"))
    with pytest.raises(RemitError) as raised:
        await fresh(honest).checkpoints.covering_all()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT


# ------------------------------------------------------------------------ with the key


def fresh(honest: Honest) -> Log:
    """The log through a service that started after the attack."""
    old = honest.log
    store = LogStore(old.database, max_batch=1024, max_queue=16_384)
    checkpoints = CheckpointSigner(old.database, store, SigningKeys(KEYS.signer), interval_ms=10)
    ids, pseudonyms = SystemIds(old.clock), Pseudonyms(KEYS.pseudonym)
    log = AuditLog(store, old.keyring, pseudonyms, ids)  # it remembers no larger log
    return replace(old, store=store, log=log, checkpoints=checkpoints)


async def rewrite(honest: Honest, leaves: Sequence[bytes]) -> None:
    """Put other leaves into the database, with every hash, and forget what was signed."""
    await honest.owner("TRUNCATE leaves, nodes, events, checkpoints")
    name = await honest.log.database.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(honest.postgres.dsn(name, "remit_audit_owner"))
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    ids = [f"{index}-{Leaf.decode(leaf).event_id}" for index, leaf in enumerate(leaves)]
    await owner.copy_records_to_table(
        "leaves", records=[(n, ids[n], hashes[n]) for n in range(len(leaves))]
    )
    await owner.executemany(
        "INSERT INTO events VALUES"
        " ($1, now(), now(), 'orgs/acme', sha256('s'), 'INTENT', '', '', '', '', $2, '')",
        [(index, pack(leaf)) for index, leaf in enumerate(leaves)],
    )
    kept = [
        (node.level, node.position, value)
        for node, value in tree(leaves)[1].items()
        if node.level and merkle.is_stored(node)
    ]
    await owner.copy_records_to_table("nodes", records=kept)
    await owner.close()
    honest.log = fresh(honest)


PLACES = {
    "change": (200, "leaves 100 to 199"),
    "delete": (200, "leaves 100 to 199"),
    "insert": (200, "leaves 100 to 199"),
    "reorder": (200, "leaves 100 to 199"),
    "truncate": (300, "cut back: it has 250 leaves"),
    "replace": (100, "leaves 0 to 99"),
    "fork": (200, "leaves 100 to 199"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_insiders_forgery_is_found_by_what_was_kept(honest: Honest, attack: str) -> None:
    """The log signs what it was made into, and every proof of its own is right."""
    await rewrite(honest, ATTACKS[attack](honest.leaves))
    for form in (
        await exported(honest.log, honest.folder / "log.export"),
        await tiled(honest.log, honest.folder / "tiles"),
    ):
        assert audited(form).tree_size == len(ATTACKS[attack](honest.leaves))
        size, where = PLACES[attack]
        error = found(form, *honest.kept)
        assert error.place == f"the earlier checkpoint of {size} leaves"
        assert where in error.fault


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_insiders_forgery_is_refused_by_the_witness(honest: Honest, attack: str) -> None:
    forged = ATTACKS[attack](honest.leaves)
    await rewrite(honest, forged)
    with pytest.raises(WitnessRefusalError) as raised:
        await looked(honest)
    told = str(raised.value)
    kind = "rolled back" if len(forged) < SIZE else "forked"
    assert told.startswith(f"{kind}: this witness saw 300 leaves (root ")
    assert f"{tree(honest.leaves)[0].hex()})" in told
    assert f"shows {len(forged)} leaves (root {tree(forged)[0].hex()})" in told
    assert raised.value.note, "what the log signed is evidence against it"


async def test_tiles_that_were_shown_are_not_rewritten(honest: Honest) -> None:
    """The writer itself stops where the folder shows another past."""
    folder = await tiled(honest.log, honest.folder / "tiles")
    for attack in ("change", "truncate"):
        await rewrite(honest, ATTACKS[attack](honest.leaves))
        with pytest.raises(RemitError, match=r"rolled back|another tree of 300 leaves"):
            await tiled(honest.log, folder)
        assert audited(folder, *honest.kept).tree_size == SIZE


# ----------------------------------------------------------------- rollback of the database


ROLLBACK = (
    "DELETE FROM events WHERE leaf_index >= 200",
    "DELETE FROM leaves WHERE leaf_index >= 200",
    "DELETE FROM nodes",
    "DELETE FROM checkpoints WHERE tree_size > 200",
)
"""The database as a backup from the second checkpoint restores it."""


async def test_a_restored_backup_is_found_before_and_after_it_grows(honest: Honest) -> None:
    await honest.owner(*ROLLBACK)
    honest.log = fresh(honest)
    path = await exported(honest.log, honest.folder / "log.export")
    assert audited(path, *honest.kept[:2]).tree_size == 200
    error = found(path, *honest.kept)
    assert error.place == "the earlier checkpoint of 300 leaves"
    assert "cut back: it has 200 leaves now" in error.fault
    with pytest.raises(WitnessRefusalError, match=r"rolled back: .* saw 300 leaves .* shows 200"):
        await looked(honest)

    await honest.log.append(*(make_event(f"again-{n}") for n in range(150)))
    path = await exported(honest.log, honest.folder / "log.export")
    error = found(path, *honest.kept)
    assert error.place == "the earlier checkpoint of 300 leaves"
    assert "rewritten: leaves 200 to 299" in error.fault
    with pytest.raises(WitnessRefusalError, match=r"forked: .* saw 300 leaves .* shows 350 leaves"):
        await looked(honest)


async def test_two_histories_of_one_log_cannot_both_be_shown(honest: Honest) -> None:
    """A fork: each half is shown to another person. One kept checkpoint each is enough to tell."""
    first = await exported(honest.log, honest.folder / "first.export")
    forged = ATTACKS["fork"](honest.leaves)
    second = forged_export(honest.folder / "second.export", forged, signed(forged, KEYS.signer))
    assert audited(first, *honest.kept).tree_size == SIZE
    assert audited(second).tree_size == len(forged)
    assert "rewritten: leaves 100 to 199" in found(second, *honest.kept).fault
    assert "cut back: it has 300 leaves" in found(first, signed(forged, KEYS.signer)).fault
    assert "rewritten" in found(first, signed(forged[:SIZE], KEYS.signer)).fault


# --------------------------------------------------------------------------- bad input


async def test_a_checkpoint_of_another_log_or_a_wrong_key(honest: Honest) -> None:
    folder = await tiled(honest.log, honest.folder / "tiles")
    path = await exported(honest.log, honest.folder / "log.export")
    other = Signer.generate("remit.internal/audit/other")
    for form, place in ((folder, "checkpoint"), (path, "line 2 (checkpoint)")):
        assert found(form, signed(honest.leaves[:9], other)).place == "the earlier checkpoint"
        auditor = Auditor.of(str(Signer.generate(KEYS.signer.name).verifier()))
        with pytest.raises(VerificationError) as raised:
            (verify_tiles if form.is_dir() else verify_lines)(form, auditor)
        assert raised.value.place == place


async def test_a_proof_for_another_tree_size_proves_nothing(honest: Honest) -> None:
    """Of every pair of sizes that were signed, one proof and the other's checkpoint."""
    roots = {size: await honest.log.store.root(size) for size in SIGNED_AT}
    leaf = merkle.leaf_hash(honest.leaves[42])
    for made in SIGNED_AT:
        ranges = merkle.inclusion_ranges(42, made)
        proof = await honest.log.store.range_hashes(ranges)
        merkle.verify_inclusion(leaf, 42, made, proof, roots[made])
        for asked in SIGNED_AT:
            if asked != made:
                with pytest.raises(merkle.ProofError):
                    merkle.verify_inclusion(leaf, 42, asked, proof, roots[asked])
    proof = await honest.log.store.range_hashes(merkle.consistency_ranges(100, 200))
    with pytest.raises(merkle.ProofError):
        merkle.verify_consistency(100, 300, roots[100], roots[300], proof)
    with pytest.raises(merkle.ProofError):
        merkle.verify_consistency(200, 300, roots[200], roots[300], proof)
