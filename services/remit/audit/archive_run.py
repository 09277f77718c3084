"""Archiving as it is run: by the service, at its interval, or once, by an operator."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.archive_file import MODE, Contents, label
from remit.audit.archived_months import ArchivedMonth
from remit.audit.archiving import Archiver, Month, retained_from
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.log import AuditLog
from remit.audit.metrics import ARCHIVE_FAILING
from remit.audit.settings import AuditSettings
from remit.audit.signing_keys import SigningKeys
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_LOCK: Final = ".lock"
_RETRY_S: Final = 600.0
"""Each try reads a month."""
_DROP_TIMEOUT_S: Final = 3600.0
"""The database reads a whole month before it drops it."""

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class Done:
    """What was done about a month; `archive` and `dropped` are None where it was not done."""

    month: Month
    archive: Contents | None = None
    dropped: ArchivedMonth | None = None


@dataclass(frozen=True)
class ArchivePlan:
    """What to do: with the months before one, and whether to drop them, or only to look."""

    before: date
    drops: bool
    only_looks: bool = False


@dataclass(frozen=True)
class LogParts:
    """What an archiver works with."""

    database: Database
    log: AuditLog
    checkpoints: CheckpointSigner
    keys: SigningKeys
    clock: Clock


@contextlib.asynccontextmanager
async def open_archiver(
    settings: AuditSettings, parts: LogParts
) -> AsyncIterator[tuple[Archiver, Path]]:
    """Yield the archiver that the settings describe, and the folder of its archives.

    Raises:
        RemitError: CONFIGURATION_INVALID without the folders.

    """
    if settings.archive_dir is None or settings.tiles_dir is None:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            "archiving needs REMIT_AUDIT_TILES_DIR and REMIT_AUDIT_ARCHIVE_DIR",
        )
    async with _dropper(settings) as dropper:
        archiver = Archiver(
            parts.database,
            parts.log,
            parts.checkpoints,
            parts.keys,
            dropper,
            tiles=settings.tiles_dir,
            folder=settings.archive_dir,
            clock=parts.clock,
        )
        yield archiver, settings.archive_dir


async def run_once(archiver: Archiver, folder: Path, plan: ArchivePlan) -> list[Done]:
    """Archive what is due, oldest month first; a month that fails ends it.

    Raises:
        RemitError: as `Archiver`; INVALID_STATE while another process archives into the folder.

    """
    with _locked(folder) if not plan.only_looks else contextlib.nullcontext():
        done = []
        for due in await archiver.due(plan.before):
            month = await archiver.look(due)
            if month is None:
                continue
            if plan.only_looks:
                await archiver.check_tiles(month)
                done.append(Done(month))
                continue
            archive = await archiver.archive(month)
            dropped = await archiver.drop(due) if plan.drops else None
            done.append(Done(month, archive, dropped))
        return done


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder of archives meanwhile.

    Raises:
        RemitError: INVALID_STATE while one does, CONFIGURATION_INVALID where the disk refuses.

    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, MODE)
    except OSError as error:
        fault = f"{folder} cannot be written: {error.strerror}"
        raise RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, fault) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        fault = f"another process archives into {folder}"
        raise RemitError(error_reason_pb2.ERROR_REASON_INVALID_STATE, fault) from error
    finally:
        os.close(descriptor)  # which releases the lock


def archive_job(
    settings: AuditSettings, parts: LogParts
) -> Iterator[Callable[[], Awaitable[None]]]:
    """The job of a service that keeps a number of months; none where it keeps all."""
    if not settings.retention_months:
        return

    async def keep() -> None:
        """Archive and drop what is older than the retention. What fails is tried again soon."""
        while True:
            first_kept = retained_from(parts.clock.now(), settings.retention_months)
            try:
                async with open_archiver(settings, parts) as (archiver, folder):
                    await run_once(archiver, folder, ArchivePlan(first_kept, drops=True))
            except RemitError as error:
                ARCHIVE_FAILING.set(1)
                log.warning(
                    "archive_delayed",
                    reason=error.reason_name,
                    error=error.message,
                    before=label(first_kept),
                )
                await asyncio.sleep(min(_RETRY_S, settings.archive_check_s))
            else:
                ARCHIVE_FAILING.set(0)
                await asyncio.sleep(settings.archive_check_s)

    yield keep


@contextlib.asynccontextmanager
async def _dropper(settings: AuditSettings) -> AsyncIterator[Database | None]:
    """One connection of the role that may drop archived months; none where it is not set."""
    if not settings.archiver_dsn:
        yield None
        return
    async with Database.open(
        settings.archiver_dsn,
        pool_size=1,
        statement_timeout_s=_DROP_TIMEOUT_S,
        allow_unsafe_durability=settings.allow_unsafe_durability,
    ) as database:
        yield database
