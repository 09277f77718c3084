"""Wires the audit service."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from remit import telemetry
from remit.access_recorder import AccessRecorder
from remit.api.audit.v1 import (
    audit_query_service_pb2_grpc,
    audit_service_pb2_grpc,
    privacy_service_pb2_grpc,
    subject_key_service_pb2_grpc,
)
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.audit.admission import Limits
from remit.audit.archive_run import (
    LogParts,
    archive_job,
)
from remit.audit.archived_leaves import ArchivedLeaves
from remit.audit.archived_months import ArchivedMonths
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.completeness_check import CompletenessCheck
from remit.audit.edge_log import REPORTER as GATEWAY
from remit.audit.edge_log import EdgeLog, by_log
from remit.audit.erasing import Eraser
from remit.audit.key_files import LogKeys, load_log_keys
from remit.audit.log import AuditLog
from remit.audit.own_events import record_rotations
from remit.audit.parts import checkpoints_of, keyring_of, signing_of
from remit.audit.privacy_service import PrivacyService
from remit.audit.query_service import AuditQueryService, PageSizes
from remit.audit.reading import REPORTER, ReadRecorder
from remit.audit.run_events import RunEvents
from remit.audit.sealing import Pseudonyms
from remit.audit.service import AuditService
from remit.audit.settings import AuditSettings
from remit.audit.store import LogStore
from remit.audit.subject_key_service import SubjectKeyService
from remit.audit.tail import LogHead, Tail
from remit.audit.tile_files import TileFiles
from remit.audit.tile_writer import TileWriter
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.envoy import add_access_log_servicer
from remit.rpc.errors import RemitError
from remit.rpc.host import Service
from remit.rpc.ids import IdSource
from remit.rpc.keys import RemoteKeys
from remit.rpc.mesh import Mesh
from remit.rpc.permission import StreamPermissions
from remit.rpc.remits import RemitVerifier

log = telemetry.logger(__name__)


@contextlib.asynccontextmanager
async def open_service(
    settings: AuditSettings, mesh: Mesh, *, clock: Clock, ids: IdSource
) -> AsyncIterator[Service]:
    """Open the databases, check the log against its last checkpoint, and yield the wired service.

    A log that was rolled back is served all the same: it takes nothing until it is whole again.

    Raises:
        RemitError: CONFIGURATION_INVALID for a missing or wrong key file, DEPENDENCY_UNAVAILABLE
            without a database, DATA_CORRUPT when the log does not extend its last checkpoint.

    """
    keys = load_log_keys(settings.keys_dir)
    async with (
        Database.of(settings, "audit") as database,
        Database.of(settings, "audit_keys", settings.keys_dsn) as keys_database,
        _destroyer(settings) as destroyer,
    ):
        store = LogStore(database, max_batch=settings.max_batch, max_queue=settings.max_queue)
        keyring = keyring_of(settings, keys_database, keys, clock, ids)
        pseudonyms = Pseudonyms(keys.pseudonym)
        audit_log = AuditLog(store, keyring, pseudonyms, ids)
        eraser = Eraser(database, audit_log, keyring, pseudonyms, destroyer, clock=clock)
        signing = signing_of(settings, keys)
        checkpoints = checkpoints_of(settings, database, store, signing)
        parts = LogParts(database, audit_log, checkpoints, signing, clock)
        months = ArchivedMonths(database)
        leaves = ArchivedLeaves(store, months, settings.tiles_dir)
        await store.prepare_partitions()
        await _checked(checkpoints, audit_log, keys)
        policy = mesh.stub(policy_service_pb2_grpc.PolicyServiceStub)
        verifier = RemitVerifier(RemoteKeys(policy, clock), clock)
        head = LogHead(store, every_s=settings.tail_look_ms / 1000)
        tell = functools.partial(_recorder, settings, audit_log, clock, ids)
        refusals = tell(GATEWAY, settings.access_interval_s)
        key_uses = tell(REPORTER, settings.key_use_interval_s)
        edge_log = EdgeLog(refusals, pseudonyms, clock)
        reads, sizes = ReadRecorder(audit_log, clock, ids), _page_sizes(settings)
        queries = AuditQueryService(
            audit_log,
            checkpoints,
            reads,
            sizes,
            RunEvents(audit_log, reads, verifier, months, default=sizes.default, most=sizes.most),
            CompletenessCheck.of(database, mesh, open_limit_s=settings.open_limit_s),
            tail=_tail(settings, audit_log, head),
            months=months,
            leaves=leaves,
        )
        yield Service(
            "audit",
            servicers=[
                (
                    audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
                    AuditService(audit_log, verifier, _limits(settings), clock),
                ),
                (
                    audit_query_service_pb2_grpc.add_AuditQueryServiceServicer_to_server,
                    queries,
                ),
                (
                    privacy_service_pb2_grpc.add_PrivacyServiceServicer_to_server,
                    PrivacyService(eraser, clock),
                ),
                (
                    subject_key_service_pb2_grpc.add_SubjectKeyServiceServicer_to_server,
                    SubjectKeyService(keyring, pseudonyms, key_uses),
                ),
                (add_access_log_servicer, edge_log),
            ],
            verifier=verifier,
            background=[
                checkpoints.run,
                head.run,
                refusals.run,
                key_uses.run,
                _partition_keeper(store, settings.partition_check_s),
                *_tile_writers(settings, store, checkpoints, leaves),
                *archive_job(settings, parts),
                functools.partial(eraser.run, settings.erasure_check_s),
            ],
            ready=[store.ping, keyring.ping],
            drain=[head.close, edge_log.close],
            permissions=StreamPermissions(policy, clock),
        )


async def _checked(checkpoints: CheckpointSigner, audit_log: AuditLog, keys: LogKeys) -> None:
    """Sign what there is. A log that was rolled back is served all the same, without appends."""
    try:
        await checkpoints.check()
        await record_rotations(audit_log, keys.rotations)
        await checkpoints.covering_all()
    except RemitError as error:
        if error.reason != error_reason_pb2.ERROR_REASON_LOG_ROLLED_BACK:
            raise


@contextlib.asynccontextmanager
async def _destroyer(settings: AuditSettings) -> AsyncIterator[Database | None]:
    """Connections of the role that may delete keys and nothing else; none where it is not set."""
    if not settings.keys_eraser_dsn:
        yield None
        return
    # One connection: what is seldom done needs no pool, and this one is worth guarding.
    async with Database.open(
        settings.keys_eraser_dsn,
        pool_size=1,
        statement_timeout_s=settings.statement_timeout_s,
        allow_unsafe_durability=settings.allow_unsafe_durability,
    ) as database:
        yield database


def _limits(settings: AuditSettings) -> Limits:
    return Limits(
        max_entries=settings.max_entries,
        max_detail_bytes=settings.max_detail_bytes,
        max_text_chars=settings.max_text_chars,
        max_future_s=settings.max_future_s,
    )


def _recorder(
    settings: AuditSettings,
    audit_log: AuditLog,
    clock: Clock,
    ids: IdSource,
    reporter: str,
    interval_s: float,
) -> AccessRecorder:
    """Keeps what was refused or given until the log has it."""
    return AccessRecorder(
        by_log(audit_log, reporter),
        clock,
        ids,
        reporter=reporter,
        flush_s=settings.access_flush_s,
        interval_s=interval_s,
        max_entries=settings.access_max_entries,
    )


def _tail(settings: AuditSettings, audit_log: AuditLog, head: LogHead) -> Tail:
    return Tail(
        audit_log,
        head,
        page=settings.max_page_size,
        looked_at=settings.page_looked_at_events,
        heartbeat_s=settings.heartbeat_s,
    )


def _page_sizes(settings: AuditSettings) -> PageSizes:
    return PageSizes(
        default=settings.default_page_size,
        most=settings.max_page_size,
        looked_at=settings.page_looked_at_events,
        export_leaves=settings.export_leaves_per_message,
    )


def _tile_writers(
    settings: AuditSettings,
    store: LogStore,
    checkpoints: CheckpointSigner,
    leaves: ArchivedLeaves,
) -> Iterator[Callable[[], Awaitable[None]]]:
    if settings.tiles_dir is not None:
        yield TileWriter(
            TileFiles(settings.tiles_dir),
            store,
            checkpoints,
            interval_ms=settings.tiles_interval_ms,
            tiles_per_round=settings.tiles_per_round,
            leaves=leaves.read,
        ).run


def _partition_keeper(store: LogStore, interval_s: float) -> Callable[[], Awaitable[None]]:
    async def keep() -> None:
        """Make next month's partition in time. A failed look is repeated long before it is due."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await store.prepare_partitions()
            except RemitError as error:
                log.warning("partition_delayed", reason=error.reason_name, error=error.message)

    return keep
