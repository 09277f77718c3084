"""Parts of a log as its settings describe them, for the service and for an operator's command."""

from __future__ import annotations

from remit.audit.anchor import ANCHOR_FILE, Anchor
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.guard import LogGuard
from remit.audit.key_files import LogKeys, load_log_keys
from remit.audit.keyring import SubjectKeyring
from remit.audit.settings import AuditSettings
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.audit.wrapping import FileKeyWrapper
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.ids import IdSource


def anchor_of(settings: AuditSettings, keys: SigningKeys) -> Anchor:
    """The checkpoint that is kept outside of the database."""
    return Anchor(settings.anchor_file or settings.keys_dir / ANCHOR_FILE, keys)


def signing_of(settings: AuditSettings, keys: LogKeys) -> SigningKeys:
    """The keys that checkpoints are signed and believed with."""
    return SigningKeys(keys.signer, keys.rotations, load=lambda: load_log_keys(settings.keys_dir))


def checkpoints_of(
    settings: AuditSettings, database: Database, store: LogStore, signing: SigningKeys
) -> CheckpointSigner:
    """The signer of checkpoints, which closes a log that was rolled back."""
    return CheckpointSigner(
        database,
        store,
        signing,
        interval_ms=settings.checkpoint_interval_ms,
        guard=LogGuard(store, anchor_of(settings, signing)),
    )


def keyring_of(
    settings: AuditSettings, database: Database, keys: LogKeys, clock: Clock, ids: IdSource
) -> SubjectKeyring:
    """The keys of subjects."""
    return SubjectKeyring(
        database,
        FileKeyWrapper(keys.master, ids),
        clock=clock,
        ids=ids,
        cache_size=settings.subject_key_cache_size,
        cache_ttl_s=settings.subject_key_cache_s,
    )
