"""What an operator does to a log beside its running service, with the service's own rights."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from remit.audit.accepting_loss import Loss, accept, look
from remit.audit.anchor import Anchor
from remit.audit.archive_run import ArchivePlan, Done, LogParts, open_archiver, run_once
from remit.audit.checkpoints import CheckpointSigner, SignedCheckpoint
from remit.audit.key_files import load_log_keys
from remit.audit.log import AuditLog
from remit.audit.lost_leaves import LeafSource
from remit.audit.own_events import (
    REPORTER,
    LossAccepted,
    reconciliation_event,
    record_reconciliation,
)
from remit.audit.parts import anchor_of, checkpoints_of, keyring_of, signing_of
from remit.audit.reconciliation import Reconciled, reconcile
from remit.audit.sealing import Pseudonyms, SealedEvent
from remit.audit.settings import AuditSettings
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.ids import IdSource


@dataclass(frozen=True)
class _OpenLog:
    """A log as an operator's command has it open."""

    database: Database
    store: LogStore
    log: AuditLog
    signing: SigningKeys
    anchor: Anchor


@contextlib.asynccontextmanager
async def _opened(settings: AuditSettings, clock: Clock, ids: IdSource) -> AsyncIterator[_OpenLog]:
    keys = load_log_keys(settings.keys_dir)
    signing = signing_of(settings, keys)
    async with (
        Database.of(settings, "audit") as database,
        Database.of(settings, "audit_keys", settings.keys_dsn) as keys_database,
    ):
        store = LogStore(database, max_batch=settings.max_batch, max_queue=settings.max_queue)
        await store.prepare_partitions()
        keyring = keyring_of(settings, keys_database, keys, clock, ids)
        log = AuditLog(store, keyring, Pseudonyms(keys.pseudonym), ids)
        yield _OpenLog(database, store, log, signing, anchor_of(settings, signing))


async def reconciled(
    settings: AuditSettings, source: LeafSource, *, clock: Clock, ids: IdSource
) -> Reconciled | None:
    """Reconcile the log with its checkpoints, and record that; None if nothing was missing.

    Raises:
        RemitError: as `open_service` and `reconcile`.

    """
    async with _opened(settings, clock, ids) as it:

        async def tell(done: Reconciled) -> SealedEvent:
            event = reconciliation_event(it.signing.signer.name, done, clock.now())
            return await it.log.sealed(event, REPORTER)

        parts = (it.database, it.store, it.signing, it.anchor, source)
        return await reconcile(*parts, tell=tell)


async def lost(settings: AuditSettings, note: str | None, *, clock: Clock, ids: IdSource) -> Loss:
    """Look which loss there is to accept; `note`: a checkpoint that was kept elsewhere.

    Raises:
        RemitError: as `open_service` and `accepting_loss.look`.

    """
    async with _opened(settings, clock, ids) as it:
        return await look(it.store, it.signing, it.anchor, note)


@dataclass(frozen=True)
class LossPlan:
    """Which loss to accept: `note` and `source` are what is left elsewhere, or None."""

    note: str | None
    source: LeafSource | None
    by: str
    reason: str


async def loss_accepted(
    settings: AuditSettings, plan: LossPlan, *, clock: Clock, ids: IdSource
) -> tuple[Loss, Reconciled | None, SignedCheckpoint]:
    """Put back what is left elsewhere, and let the log go on without the rest.

    Raises:
        RemitError: as `open_service`, `reconcile` and `accepting_loss`.

    """
    async with _opened(settings, clock, ids) as it:
        loss, done = await look(it.store, it.signing, it.anchor, plan.note), None
        if plan.source is not None and not loss.is_declared:
            parts = (it.database, it.store, it.signing, it.anchor, plan.source)
            done = await reconcile(*parts, partly=True)
            loss = await look(it.store, it.signing, it.anchor, plan.note)
        unguarded = CheckpointSigner(
            it.database, it.store, it.signing, interval_ms=settings.checkpoint_interval_ms
        )
        accepted = LossAccepted(plan.by, plan.reason, clock.now())
        signed = await accept(it.log, unguarded, it.anchor, loss, accepted)
        if done is not None:
            await record_reconciliation(it.log, it.signing.signer.name, done, clock.now())
        return loss, done, signed


async def archived(
    settings: AuditSettings, plan: ArchivePlan, *, clock: Clock, ids: IdSource
) -> list[Done]:
    """Archive old months once, beside the running service.

    Raises:
        RemitError: as `open_service` and `run_once`.

    """
    async with _opened(settings, clock, ids) as it:
        checkpoints = checkpoints_of(settings, it.database, it.store, it.signing)
        await checkpoints.check()
        parts = LogParts(it.database, it.log, checkpoints, it.signing, clock)
        async with open_archiver(settings, parts) as (archiver, folder):
            return await run_once(archiver, folder, plan)
