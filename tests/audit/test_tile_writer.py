"""The writer of tiles: what it leaves is the log, after kills, with rivals, and on a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.evidence import Auditor
from remit.audit.key_chain import rotation_note
from remit.audit.note import Checkpoint, Signer
from remit.audit.signing_keys import SigningKeys
from remit.audit.tile_files import TileFiles
from remit.audit.tile_folder import TileFolder
from remit.audit.tile_verifier import verify_tiles
from remit.audit.tile_writer import TileWriter
from remit.audit.tiles import Tile
from remit.rpc.errors import RemitError
from tests.audit.events import KEYS, NOW, Log, make_event
from tests.audit.tile_trees import files_in, tile_files
from tests.conftest import PostgresCluster
from tests.monitoring.values import gained, value
from tests.waiting import eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "public" / "tiles"


def writer(
    log: Log, folder: Path, *, most: int = 256, files: TileFiles | None = None
) -> TileWriter:
    files = files or TileFiles(folder)
    return TileWriter(files, log.store, log.checkpoints, interval_ms=10, tiles_per_round=most)


async def fill(log: Log, count: int, prefix: str = "e") -> str:
    """Append so many events and return the checkpoint after them."""
    await log.append(*(make_event(f"{prefix}-{n}") for n in range(count)))
    return (await log.checkpoints.covering_all()).signed_note


async def everything(log: Log, note: str) -> dict[str, bytes]:
    """The files that this log needs, made from its leaves alone."""
    return tile_files(await log.store.leaves(0, await log.store.size()), note)


async def test_an_empty_log_is_a_checkpoint_alone(log: Log, folder: Path) -> None:
    note = await fill(log, 0)
    assert await writer(log, folder).round()
    assert files_in(folder) == {"checkpoint": note.encode()}
    assert await writer(log, folder).round()


def modes_in(folder: Path) -> tuple[set[int], set[int]]:
    """Of the files, and of the folders."""
    files, folders = set[int](), {stat.S_IMODE(folder.stat().st_mode)}
    for path in folder.rglob("*"):
        (folders if path.is_dir() else files).add(stat.S_IMODE(path.stat().st_mode))
    return files, folders


async def test_the_files_are_the_writers_own(log: Log, folder: Path) -> None:
    """Who publishes the log copies or serves it; a volume shows it to nobody else."""
    await fill(log, 300)
    assert await writer(log, folder).round()
    assert modes_in(folder) == ({0o600}, {0o700})


async def test_the_folder_is_the_log_at_every_size(log: Log, folder: Path) -> None:
    """Growing by steps around full tiles: at each, exactly what a reader of that size needs."""
    keeping = writer(log, folder)
    size = 0
    for step in (1, 200, 54, 1, 1, 255, 88):
        note = await fill(log, step, f"at-{size}")
        size += step
        assert await keeping.round()
        needed = await everything(log, note)
        found = files_in(folder)
        assert {path: found[path] for path in needed} == needed
        replaced = {path for path in found if ".p/" in path} - needed.keys()
        full = {path for path in found if ".p/" not in path}
        assert not {path for path in replaced if path.partition(".p/")[0] in full}
    assert value("remit_audit_tiles_size") == 600


async def test_partial_tiles_stay_until_the_full_one_is_there(log: Log, folder: Path) -> None:
    """A reader with the checkpoint before finds its tiles for as long as no full one is there."""
    keeping = writer(log, folder)
    for step in range(3):
        await fill(log, 10, f"at-{step}")
        await keeping.round()
    assert {"tile/0/000.p/10", "tile/0/000.p/20", "tile/0/000.p/30"} <= files_in(folder).keys()
    await fill(log, 226, "more")
    await keeping.round()
    assert {path for path in files_in(folder) if "000.p" in path} == {"tile/1/000.p/1"}


async def test_a_round_is_bounded_and_the_next_goes_on(log: Log, folder: Path) -> None:
    note = await fill(log, 1000)
    keeping = writer(log, folder, most=2)
    assert not await keeping.round()
    assert "checkpoint" not in files_in(folder)
    assert sum("entries" in path for path in files_in(folder)) == 2
    assert await writer(log, folder, most=2).round(), "another replica takes it up"
    assert files_in(folder) == await everything(log, note)


async def test_what_is_there_is_not_written_again(log: Log, folder: Path) -> None:
    await fill(log, 600)
    await writer(log, folder).round()
    before = {path: (folder / path).stat().st_mtime_ns for path in files_in(folder)}
    await writer(log, folder).round()
    await fill(log, 1, "f")
    await writer(log, folder).round()
    after = {path: (folder / path).stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} == {"checkpoint"}


async def test_a_lost_file_comes_back_when_the_checkpoint_is_moved_away(
    log: Log, folder: Path
) -> None:
    note = await fill(log, 600)
    keeping = writer(log, folder)
    await keeping.round()
    for path in ("tile/0/000", "tile/entries/001", "tile/1/000.p/2", "checkpoint"):
        (folder / path).unlink()
    await keeping.round()
    assert files_in(folder) == await everything(log, note)


async def test_two_replicas_share_a_folder(log: Log, folder: Path) -> None:
    rivals = [writer(log, folder, most=1) for _ in range(4)]
    running = [asyncio.create_task(rival.run()) for rival in rivals]
    try:
        note = ""
        for step in range(4):
            note = await fill(log, 150, f"at-{step}")

            async def published(due: str = note) -> bool:
                return files_in(folder).get("checkpoint") == due.encode()

            await eventually(published)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    found, needed = files_in(folder), await everything(log, note)
    assert {path: found[path] for path in needed} == needed


async def test_while_another_process_writes_this_one_stands_aside(log: Log, folder: Path) -> None:
    await fill(log, 3)
    with TileFiles(folder).locked() as held:
        assert held
        assert not await writer(log, folder).round()
        assert files_in(folder) == {}
    assert await writer(log, folder).round()


KILLED = """
import os, sys
from pathlib import Path
from remit.audit.tile_files import TileFiles

class Dying(TileFiles):
    left = int(sys.argv[2])

    def write(self, path, data):
        if self.left == 0:
            (self.folder / ".unfinished").write_bytes(data[:7])
            os.kill(os.getpid(), 9)
        self.left -= 1
        super().write(path, data)

files = Dying(Path(sys.argv[1]))
with files.locked() as held:
    assert held
    for line in sys.stdin.buffer:
        path, data = line.split()
        files.write(path.decode(), bytes.fromhex(data.decode()))
"""


@pytest.mark.parametrize("after", [0, 1, 2, 5, 6, 7])
async def test_a_killed_writer_leaves_nothing_half(log: Log, folder: Path, after: int) -> None:
    """Killed within any write: what is there is whole, and the next writer completes it."""
    note = await fill(log, 600)
    needed = await everything(log, note)
    order = sorted(needed, key=lambda path: (path == "checkpoint", path))
    lines = b"".join(f"{path} {needed[path].hex()}\n".encode() for path in order)
    command = [sys.executable, "-c", KILLED, str(folder), str(after)]
    dead = await asyncio.to_thread(subprocess.run, command, input=lines, check=False)
    assert dead.returncode == -9
    assert files_in(folder) == {path: needed[path] for path in order[:after]}
    await writer(log, folder).round()
    assert files_in(folder) == needed
    assert not (folder / ".unfinished").exists()


class FullDisk(TileFiles):
    """A disk that refuses so many writes."""

    refused = 2

    def write(self, path: str, data: bytes) -> None:
        if self.refused and path != "tile/entries/000":
            self.refused -= 1
            raise OSError(28, os.strerror(28))
        super().write(path, data)


async def test_a_full_disk_is_told_counted_and_waited_for(log: Log, folder: Path) -> None:
    note = await fill(log, 300)
    failures = gained("remit_audit_tiles_failures_total", reason="ENOSPC")
    running = asyncio.create_task(writer(log, folder, files=FullDisk(folder)).run())
    try:

        async def published() -> bool:
            return files_in(folder).get("checkpoint") == note.encode()

        await eventually(published)
        assert failures() == 2
        assert await log.append(make_event("meanwhile")) == [300]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_a_rolled_back_log_leaves_what_was_published(
    log: Log, folder: Path, postgres: PostgresCluster
) -> None:
    note = await fill(log, 300)
    await writer(log, folder).round()
    before = files_in(folder)
    await as_owner(log, postgres, "DELETE FROM leaves WHERE leaf_index >= 200")
    await as_owner(log, postgres, "DELETE FROM nodes")
    await as_owner(log, postgres, "DELETE FROM checkpoints")
    await log.checkpoints.covering_all()
    await refused(log, folder, "has 200 leaves, and the tiles in .* show 300 already")
    assert files_in(folder) == before
    assert before["checkpoint"] == note.encode()


async def test_another_log_is_not_written_over_the_first(log: Log, folder: Path) -> None:
    foreign = KEYS.signer.sign(Checkpoint("another.example/log", 2, b"r" * 32).body())
    TileFiles(folder).write("checkpoint", foreign.encode())
    await fill(log, 5)
    await refused(log, folder, "another tree of 2 leaves, of the log another.example/log")
    assert files_in(folder) == {"checkpoint": foreign.encode()}


async def test_a_damaged_checkpoint_is_named_and_kept(log: Log, folder: Path) -> None:
    for damaged in (b"nonsense", b"\xff\xff"):
        TileFiles(folder).write("checkpoint", damaged)
        await refused(log, folder, "is no checkpoint; move it away")
        assert files_in(folder) == {"checkpoint": damaged}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET leaf = '{}' WHERE leaf_index = 290",
        "UPDATE leaves SET leaf_hash = sha256('x') WHERE leaf_index = 290",
        "DELETE FROM events WHERE leaf_index = 290",
    ],
)
async def test_what_the_tree_does_not_vouch_for_is_not_published(
    log: Log, folder: Path, postgres: PostgresCluster, change: str
) -> None:
    await fill(log, 300)
    await as_owner(log, postgres, change)
    await refused(log, folder, "leaves 256 to 299 are not")
    assert "checkpoint" not in files_in(folder)


async def test_a_tile_that_was_changed_in_the_tree_is_not_published(
    log: Log, folder: Path, postgres: PostgresCluster
) -> None:
    await fill(log, 300)
    await as_owner(log, postgres, "UPDATE nodes SET hash = sha256('x')")
    await refused(log, folder, "leaves 0 to 255 are not what the tree holds")


async def test_how_the_key_was_replaced_is_published_with_the_checkpoint(
    log: Log, folder: Path
) -> None:
    """A replica that has only old key files takes nothing away."""
    await fill(log, 5)
    await writer(log, folder).round()
    new = Signer.generate(KEYS.signer.name)
    keys = SigningKeys(new, [rotation_note(KEYS.signer, new, NOW)])
    rotated = CheckpointSigner(log.database, log.store, keys, interval_ms=10)
    await log.append(make_event("later"))
    note = (await rotated.covering_all()).signed_note
    files = TileFiles(folder)
    await TileWriter(files, log.store, rotated, interval_ms=10, tiles_per_round=1).round()
    assert tuple(TileFolder(folder).rotations()) == rotated.rotations
    assert files_in(folder)["checkpoint"] == note.encode()
    for key in (KEYS.signer, new):
        assert verify_tiles(folder, Auditor.of(str(key.verifier()))).tree_size == 6
    with pytest.raises(RemitError, match="did not sign"):
        await writer(log, folder).round()
    assert tuple(TileFolder(folder).rotations()) == rotated.rotations


async def test_a_reader_never_misses_a_tile_while_the_log_grows(log: Log, folder: Path) -> None:
    """Reads at whatever moment: the tiles of the checkpoint that was seen are there."""
    running = asyncio.create_task(writer(log, folder).run())
    reads = 0
    try:
        for step in range(12):
            await fill(log, 60, f"at-{step}")
            if step == 0:
                await eventually((folder / "checkpoint").exists)
            size = Checkpoint.parse(TileFolder(folder).checkpoint().partition("\n\n")[0] + "\n")
            full, width = divmod(size.tree_size, 256)
            if width:
                assert len(TileFolder(folder).entries(Tile(-1, full, width))) == width
                reads += 1
            assert TileFolder(folder).root(size.tree_size, size.tree_size) == size.root_hash
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert reads


async def refused(log: Log, folder: Path, fault: str) -> None:
    with pytest.raises(RemitError, match=fault) as raised:
        await writer(log, folder).round()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT


async def as_owner(log: Log, postgres: PostgresCluster, sql: str) -> None:
    name = await log.database.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(postgres.dsn(name, "remit_audit_owner"))
    await owner.execute(sql)
    await owner.close()
