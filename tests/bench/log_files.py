"""A log of so many entries at rest: what they take, and how fast an auditor verifies them.

Verification is the auditor's own command, started anew each time: `remit audit verify` of an export
and of a folder of tiles, with a public key and nothing else. Once more it is timed without the
start of Python, in this process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.audit.checkpoints import SignedCheckpoint
from remit.audit.evidence import Auditor
from remit.audit.export import write_export
from remit.audit.key_files import LOG_PUBLIC_KEY
from remit.audit.settings import AuditSettings
from remit.audit.store import LogStore
from remit.audit.tile_files import TileFiles
from remit.audit.tile_verifier import verify_tiles
from remit.audit.tile_writer import TileWriter
from remit.audit.verifier import verify_lines
from remit.postgres import Database
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.bench.counters import use_of
from tests.bench.log_ways import REPORTER, Logs, intent_of, outcome_of
from tests.bench.payers import USERS, Payer, payers
from tests.bench.running import MeasuringError
from tests.bench.trees import REPOSITORY

EXPORT: Final = "export"
TILES: Final = "tiles"
_AT_ONCE: Final = 1024
_EFFECTS: Final = 3
"""Of a run."""
_RELATIONS: Final = """
    SELECT c.relname AS name, CASE WHEN c.relkind = 'i' THEN pg_relation_size(c.oid)
                                   ELSE pg_table_size(c.oid) END AS bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'i')
"""
_MONTH: Final = re.compile(r"_\d{4}_\d\d")
_SHARED_BYTES: Final = 65_536
"""Smaller relations do not grow with the log."""


@dataclass(frozen=True)
class Rest:
    """A log at rest, as an auditor gets it."""

    entries: int
    files: Path
    """A folder with `export`, `tiles` and the keys."""
    bytes_per_entry: dict[str, float]

    @property
    def key(self) -> Path:
        """File of the log's public key."""
        return self.files / "keys" / LOG_PUBLIC_KEY


async def at_rest(dsn: str, made: Logs, entries: int, folder: Path) -> Rest:
    """Fill an empty log, and write an export and tiles of it."""
    settings = AuditSettings.load()
    async with Database.open(dsn, pool_size=settings.pool_size) as database:
        log = made.log(database, settings.max_batch)
        await log.store.prepare_partitions()
        for events in _events(entries):
            for place in await log.append(events, REPORTER):
                if isinstance(place, RemitError):
                    raise place
        signer = made.signer(database, log)
        checkpoint = await signer.covering_all()
        messages = _export(log.store, checkpoint, settings.export_leaves_per_message)
        await write_export(folder / EXPORT, messages)
        tiles = TileWriter(
            TileFiles(folder / TILES), log.store, signer, interval_ms=1, tiles_per_round=4096
        )
        while not await tiles.round():
            pass
    sizes = {f"database.{name}": size for name, size in (await _relations(dsn)).items()}
    sizes[EXPORT] = (folder / EXPORT).stat().st_size
    written = (file for file in (folder / TILES).rglob("*") if file.is_file())
    sizes[TILES] = sum(file.stat().st_size for file in written)
    return Rest(entries, folder, {name: size / entries for name, size in sizes.items()})


def _events(count: int) -> list[list[event_pb2.Event]]:
    """What runs of three effects leave, of many users, in lists of what one commit takes."""
    ids, paying = SystemIds(), itertools.cycle(payers(USERS))
    events: list[event_pb2.Event] = []
    while len(events) < count:
        payer = Payer(next(paying).subject, f"runs/{ids.uuid7()}")
        for _ in range(_EFFECTS):
            claim = f"claims/{ids.uuid7()}"
            events += [intent_of(payer, claim), outcome_of(payer, claim)]
    del events[count:]
    return [events[at : at + _AT_ONCE] for at in range(0, count, _AT_ONCE)]


async def _export(
    store: LogStore, checkpoint: SignedCheckpoint, at_once: int
) -> AsyncIterator[audit_query_service_pb2.ExportLogResponse]:
    """What the service streams."""
    signed = event_pb2.Checkpoint(
        tree_size=checkpoint.tree_size,
        root_hash=checkpoint.root_hash,
        signed_note=checkpoint.signed_note,
    )
    yield audit_query_service_pb2.ExportLogResponse(checkpoint=signed)
    for start in range(0, checkpoint.tree_size, at_once):
        leaves = await store.leaves(start, min(start + at_once, checkpoint.tree_size))
        yield audit_query_service_pb2.ExportLogResponse(sequence=start, leaves=leaves)


async def _relations(dsn: str) -> dict[str, int]:
    """Bytes of each table without its indexes, and of each index, after VACUUM."""
    connection = await asyncpg.connect(dsn.replace("remit_audit@", "postgres@"))
    try:
        await connection.execute("VACUUM")
        rows = await connection.fetch(_RELATIONS)
    finally:
        await connection.close()
    sizes: dict[str, int] = {}
    for row in rows:
        name = _MONTH.sub("", row["name"])
        sizes[name] = sizes.get(name, 0) + row["bytes"]
    return {name: size for name, size in sizes.items() if size > _SHARED_BYTES}


# ---------------------------------------------------------------------------------- verification


async def verified(rest: Rest, what: str) -> dict[str, float]:
    """Entries a second of the command, of its CPU, and of the verifying alone.

    Raises:
        MeasuringError: it did not verify.

    """
    own = use_of(os.getpid()).cpu_s
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remit.cli.main", "audit", "verify", str(rest.files / what)),
        *("--key", str(rest.key)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode != 0 or f"verified {rest.entries:,} entries" not in told.decode():
        raise MeasuringError(f"{what} was not verified: {told.decode()}")
    cpu_s = use_of(os.getpid()).cpu_s - own
    alone_s = await asyncio.to_thread(_alone, rest, what)
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "entries_per_s": rest.entries / seconds,
        "alone_entries_per_s": rest.entries / alone_s,
    }


def _alone(rest: Rest, what: str) -> float:
    auditor = Auditor.of(rest.key.read_text(encoding="utf-8"))
    verify = verify_tiles if what == TILES else verify_lines
    began = time.perf_counter()
    report = verify(rest.files / what, auditor)
    if report.tree_size != rest.entries:
        raise MeasuringError(f"{what} has {report.tree_size} entries")
    return time.perf_counter() - began
