"""Accepting a loss: the log goes on without leaves that it had signed and that exist nowhere.

Each step after the one before, and each that was done is found done:

1. A leaf declares the loss, in the place of the first lost one, under the lock of appends.
2. A checkpoint covers that leaf. It extends what the database has, and not what was lost.
3. The checkpoint that is kept outside gives way to it, and is set aside beside it. From then on the
   log is open again, and says of itself what it lost to everybody who holds the old checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.anchor import Anchor, Anchored
from remit.audit.checkpoints import CheckpointSigner, SignedCheckpoint
from remit.audit.declared_loss import declared_loss, loss_id
from remit.audit.log import AuditLog
from remit.audit.note import Checkpoint
from remit.audit.own_events import REPORTER, LossAccepted, loss_event
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.rpc.errors import RemitError


@dataclass(frozen=True)
class Loss:
    """What the log cannot extend any more, and how many leaves it kept."""

    log_name: str
    kept_size: int
    lost: Checkpoint
    is_declared: bool
    """Whether the log declares it already: a command died before its last step."""

    @property
    def count(self) -> int:
        """How many leaves are known to be lost; younger ones than the checkpoint nobody knows."""
        return self.lost.tree_size - self.kept_size


async def look(store: LogStore, keys: SigningKeys, anchor: Anchor, note: str | None) -> Loss:
    """Return the loss that there is to accept; `note`: a checkpoint that was kept elsewhere.

    Raises:
        RemitError: INVALID_STATE: nothing is lost, or it is declared and done; LOG_ROLLED_BACK: the
            log took other leaves than were signed; CONFIGURATION_INVALID: no checkpoint is known,
            or the one given is not the log's largest.

    """
    kept = await anchor.read()
    lost = _largest(kept, None if note is None else await keys.opened(note))
    place = await store.index_of(loss_id(lost))
    if place is not None:
        await _check_open(store, kept, lost, place)
        return Loss(keys.signer.name, place, lost, is_declared=True)
    size = await store.size()
    if size < lost.tree_size:
        return Loss(keys.signer.name, size, lost, is_declared=False)
    if await store.root(lost.tree_size) == lost.root_hash:
        raise _done(f"nothing is lost: the log extends the checkpoint of {lost.tree_size} leaves")
    raise RemitError(
        error_reason_pb2.ERROR_REASON_LOG_ROLLED_BACK,
        f"the log has {size} leaves, and its first {lost.tree_size} are not those that were signed:"
        " what it kept of them cannot be told, so no loss can be named; begin a new log in an"
        " empty database",
    )


async def accept(
    log: AuditLog, checkpoints: CheckpointSigner, anchor: Anchor, loss: Loss, accepted: LossAccepted
) -> SignedCheckpoint:
    """Let the log go on without what was lost; return its first checkpoint after that.

    `checkpoints` signs without a guard: what the guard asks for is what was lost.

    Raises:
        RemitError: INVALID_STATE: the log changed since it was looked at; as `CheckpointSigner`
            and `Anchor`.

    """
    if not loss.is_declared:
        kept_root = await log.store.root(loss.kept_size)
        event = loss_event(loss.log_name, loss.kept_size, kept_root, loss.lost, accepted)
        await log.append_at(loss.kept_size, event, REPORTER)
    signed = await checkpoints.covering_all()
    await anchor.give_up(loss.lost, signed.signed_note)
    return signed


def _largest(kept: Anchored | None, given: Checkpoint | None) -> Checkpoint:
    """The largest checkpoint that is known: that one was lost, and not an earlier one."""
    if kept is None and given is None:
        raise _unusable(
            "no checkpoint of the log is kept outside; give one that was kept elsewhere"
        )
    if kept is None or given is None:
        found = given if kept is None else kept.checkpoint
        assert found is not None  # noqa: S101 - one of them is there
        return found
    known = kept.checkpoint
    if given.tree_size < known.tree_size:
        raise _unusable(
            f"the checkpoint of {given.tree_size} leaves is not what was lost: one of"
            f" {known.tree_size} was signed"
        )
    if given.tree_size == known.tree_size and given.root_hash != known.root_hash:
        raise _unusable(f"the log signed two trees of {known.tree_size} leaves; keep both as proof")
    return given


async def _check_open(store: LogStore, kept: Anchored | None, lost: Checkpoint, place: int) -> None:
    """Check that a declared loss is audit's own word, and that the anchor still has to follow."""
    entry = (await store.leaves(place, place + 1))[0]
    if declared_loss(place, entry) is None:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
            f"leaf {place} has the id of a loss and declares none",
        )
    if kept is None or await _extends(store, kept.checkpoint):
        size = lost.tree_size
        raise _done(f"the log declares the loss of {size} leaves already, at leaf {place}")


async def _extends(store: LogStore, known: Checkpoint) -> bool:
    if await store.size() < known.tree_size:
        return False
    return await store.root(known.tree_size) == known.root_hash


def _done(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_INVALID_STATE, fault)


def _unusable(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, fault)
