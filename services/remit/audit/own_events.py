"""What the log records about itself: a new key, a reconciliation, a loss, an archive of a month.

The operator answers for these.

They belong to no tenant, so they stand under an org of the operator's own. Each is a function of
what it tells and nothing else, so that every replica may append it and one entry comes of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from remit.api.audit.v1 import event_pb2
from remit.audit.archive_file import Contents, label
from remit.audit.declared_loss import ACCEPT_LOSS, loss_id
from remit.audit.key_chain import Rotation
from remit.audit.log import AuditLog
from remit.audit.note import Checkpoint
from remit.audit.reconciliation import Reconciled
from remit.rpc.errors import RemitError

REPORTER: Final = "audit"
ORG: Final = "orgs/operator"
SUBJECT: Final = "orgs/operator/users/audit"
ROTATE_KEY: Final = "audit.rotate_key"
RECONCILE: Final = "audit.reconcile"
ARCHIVE: Final = "audit.archive"
_ID_HEX: Final = 32


@dataclass(frozen=True)
class LossAccepted:
    """Who accepted a loss, why, and when."""

    by: str
    reason: str
    time: datetime


async def record_rotations(log: AuditLog, rotations: Sequence[str]) -> None:
    """Append an entry for each rotation of the log's key, unless it is there already.

    Raises:
        RemitError: one cannot be appended.

    """
    events = [rotation_event(Rotation.open(note)) for note in rotations]
    for place in await log.append(events, REPORTER):
        if isinstance(place, RemitError):
            raise place


def rotation_event(rotation: Rotation) -> event_pb2.Event:
    """The ADMIN event of a rotation."""
    keys = {"old_key": str(rotation.old), "new_key": str(rotation.new)}
    event = _event(ROTATE_KEY, "rotation", rotation.new.name, keys)
    event.event_time.FromDatetime(datetime.fromisoformat(rotation.time))
    return event


async def record_reconciliation(
    log: AuditLog, log_name: str, done: Reconciled, now: datetime
) -> int:
    """Append the entry of a reconciliation; return its index.

    Raises:
        RemitError: it cannot be appended.

    """
    [place] = await log.append([reconciliation_event(log_name, done, now)], REPORTER)
    if isinstance(place, RemitError):
        raise place
    return place


def reconciliation_event(log_name: str, done: Reconciled, now: datetime) -> event_pb2.Event:
    """The ADMIN event of a reconciliation."""
    detail: dict[str, object] = {
        "kept_size": done.kept_size,
        "kept_root": done.kept_root.hex(),
        "tree_size": done.tree_size,
        "root": done.root_hash.hex(),
        "put_back": done.count,
        "time": now.isoformat(),
    }
    event = _event(RECONCILE, "reconcile", log_name, detail)
    event.event_time.FromDatetime(now)
    return event


def loss_event(
    log_name: str, kept_size: int, kept_root: bytes, lost: Checkpoint, accepted: LossAccepted
) -> event_pb2.Event:
    """The ADMIN event that declares a loss. Its id names what was lost, to who has but the leaf."""
    detail: dict[str, object] = {
        "kept_size": kept_size,
        "kept_root": kept_root.hex(),
        "lost_size": lost.tree_size,
        "lost_root": lost.root_hash.hex(),
        "accepted_by": accepted.by,
        "reason": accepted.reason,
        "time": accepted.time.isoformat(),
    }
    event = _event(ACCEPT_LOSS, "loss", log_name, detail)
    event.event_id = loss_id(lost)
    event.event_time.FromDatetime(accepted.time)
    return event


async def record_archive(log: AuditLog, contents: Contents, now: datetime) -> int:
    """Append the entry that a month is archived, unless it is there already; return its index.

    Its id names the month and the digest of its contents, so whoever has the leaf can check the
    file, and the database drops nothing else by it.

    Raises:
        RemitError: it cannot be appended.

    """
    known = await log.store.index_of(contents.event_id)
    if known is not None:
        return known
    detail: dict[str, object] = {
        "month": label(contents.month),
        "events": contents.events,
        "first_index": contents.first_index,
        "last_index": contents.last_index,
        "digest": contents.digest.hex(),
    }
    event = _event(ARCHIVE, "archive", contents.log_name, detail)
    event.event_id = contents.event_id
    event.event_time.FromDatetime(now)
    [place] = await log.append([event], REPORTER)
    if isinstance(place, RemitError):
        # Another replica recorded the same at another time.
        known = await log.store.index_of(contents.event_id)
        if known is None:
            raise place
        return known
    return place


def _event(action: str, word: str, log_name: str, detail: Mapping[str, object]) -> event_pb2.Event:
    text = json.dumps(detail, sort_keys=True)
    digest = hashlib.sha256(f"{log_name}\0{text}".encode()).hexdigest()[:_ID_HEX]
    return event_pb2.Event(
        event_id=f"{word}-{digest}",
        kind=event_pb2.EVENT_KIND_ADMIN,
        org=ORG,
        subject=SUBJECT,
        action=action,
        resource=log_name,
        outcome=event_pb2.OUTCOME_SUCCEEDED,
        detail_json=text,
    )
