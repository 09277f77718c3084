"""What an operator does to a log beside its running service, with the service's own rights."""

from __future__ import annotations

from remit.audit.archive_run import ArchivePlan, Done, LogParts, open_archiver, run_once
from remit.audit.key_files import load_log_keys
from remit.audit.log import AuditLog
from remit.audit.lost_leaves import LeafSource
from remit.audit.own_events import record_reconciliation
from remit.audit.parts import anchor_of, checkpoints_of, keyring_of, signing_of
from remit.audit.reconciliation import Reconciled, reconcile
from remit.audit.sealing import Pseudonyms
from remit.audit.settings import AuditSettings
from remit.audit.store import LogStore
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.ids import IdSource


async def reconciled(
    settings: AuditSettings, source: LeafSource, *, clock: Clock, ids: IdSource
) -> Reconciled | None:
    """Reconcile the log with its checkpoints, and record that; None if nothing was missing.

    Raises:
        RemitError: as `open_service` and `reconcile`.

    """
    keys = load_log_keys(settings.keys_dir)
    signing = signing_of(settings, keys)
    async with (
        Database.of(settings, "audit") as database,
        Database.of(settings, "audit_keys", settings.keys_dsn) as keys_database,
    ):
        store = LogStore(database, max_batch=settings.max_batch, max_queue=settings.max_queue)
        await store.prepare_partitions()
        done = await reconcile(database, store, signing, anchor_of(settings, signing), source)
        if done is not None:
            keyring = keyring_of(settings, keys_database, keys, clock, ids)
            audit_log = AuditLog(store, keyring, Pseudonyms(keys.pseudonym), ids)
            await record_reconciliation(audit_log, keys.signer.name, done, clock.now())
        return done


async def archived(
    settings: AuditSettings, plan: ArchivePlan, *, clock: Clock, ids: IdSource
) -> list[Done]:
    """Archive old months once, beside the running service.

    Raises:
        RemitError: as `open_service` and `run_once`.

    """
    keys = load_log_keys(settings.keys_dir)
    signing = signing_of(settings, keys)
    async with (
        Database.of(settings, "audit") as database,
        Database.of(settings, "audit_keys", settings.keys_dsn) as keys_database,
    ):
        store = LogStore(database, max_batch=settings.max_batch, max_queue=settings.max_queue)
        await store.prepare_partitions()
        checkpoints = checkpoints_of(settings, database, store, signing)
        await checkpoints.check()
        keyring = keyring_of(settings, keys_database, keys, clock, ids)
        audit_log = AuditLog(store, keyring, Pseudonyms(keys.pseudonym), ids)
        parts = LogParts(database, audit_log, checkpoints, signing, clock)
        async with open_archiver(settings, parts) as (archiver, folder):
            return await run_once(archiver, folder, plan)
