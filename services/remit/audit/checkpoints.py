"""Signing checkpoints: the log's word about its own state, given only if it extends the last.

Before a checkpoint is signed, the tree must prove from its stored hashes that it extends the last
one. So a log that was rolled back or damaged stops here instead of signing a fork.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.audit import merkle
from remit.audit.guard import LogGuard
from remit.audit.metrics import TREE_SIZE, note_checkpoint
from remit.audit.note import Checkpoint
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.postgres import Database
from remit.rpc.errors import RemitError, Violation, invalid_request

# Replicas with two keys may sign one size both: everybody then means the one that came first.
_NEWEST = """
    SELECT tree_size, root_hash, signed_note FROM checkpoints
    ORDER BY tree_size DESC, sign_time, key_id LIMIT 1
"""
_AT_SIZE = """
    SELECT tree_size, root_hash, signed_note FROM checkpoints
    WHERE tree_size = $1 ORDER BY sign_time, key_id LIMIT 1
"""
_INSERT = """
    INSERT INTO checkpoints (tree_size, key_id, root_hash, signed_note) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING
"""

_WAITED_FOR = frozenset(
    {
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
        error_reason_pb2.ERROR_REASON_LOG_ROLLED_BACK,
    }
)
"""Reasons that an operator ends while the service runs."""

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class SignedCheckpoint:
    """A checkpoint and the note that states it."""

    tree_size: int
    root_hash: bytes
    signed_note: str


class CheckpointSigner:
    """Signs, keeps and returns checkpoints; with a guard, outside of the database too."""

    def __init__(
        self,
        database: Database,
        store: LogStore,
        keys: SigningKeys,
        *,
        interval_ms: int,
        guard: LogGuard | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._keys = keys
        self._guard = guard
        self._interval_s = interval_ms / 1000
        self._lock = asyncio.Lock()

    @property
    def rotations(self) -> tuple[str, ...]:
        """The statements that lead from the log's first key to the newest, oldest first."""
        return self._keys.chain.notes

    async def run(self) -> None:
        """Sign whenever the log grew, until cancelled.

        A database that is away is waited for, and so are one that was rolled back, an anchor that
        cannot be written, and new key files once another replica has them: nothing is signed.

        Raises:
            RemitError: DATA_CORRUPT when the log does not extend its last checkpoint.

        """
        while True:
            try:
                await self.covering_all()
            except RemitError as error:
                if not error.retryable and error.reason not in _WAITED_FOR:
                    raise
                log.warning("checkpoint_delayed", reason=error.reason_name, error=error.message)
            await asyncio.sleep(self._interval_s)

    async def covering(self, min_tree_size: int) -> SignedCheckpoint:
        """Return a checkpoint of at least that size, the newest one if it is 0.

        Raises:
            RemitError: INVALID_REQUEST when the log has fewer leaves.

        """
        newest = await self._newest()
        if newest is None or newest.tree_size < min_tree_size:
            newest = await self.covering_all()
        if newest.tree_size < min_tree_size:
            fault = f"is {min_tree_size}, but the log has {newest.tree_size} leaves"
            raise invalid_request([Violation("min_tree_size", fault)])
        return newest

    async def check(self) -> None:
        """Look whether the log is the one that was signed, without signing anything.

        Raises:
            RemitError: as `covering_all`.

        """
        async with self._lock:
            await self._guarded()
            await self._newest()

    async def covering_all(self) -> SignedCheckpoint:
        """Return a checkpoint of the log as it is now, newly signed if it grew.

        Raises:
            RemitError: LOG_ROLLED_BACK when the log does not extend the checkpoint that is kept
                outside, DATA_CORRUPT when it does not extend its own last one.

        """
        async with self._lock:
            await self._guarded()
            last = await self._newest()
            size = await self._store.size()
            TREE_SIZE.set(size)
            if last is None or last.tree_size != size:
                last = await self._sign(size, last)
            await self._keep(last)
            note_checkpoint(size)
            return last

    async def at_size(self, tree_size: int) -> SignedCheckpoint:
        """Return the checkpoint that was signed at exactly that size.

        Raises:
            RemitError: INVALID_REQUEST when there is none.

        """
        row = await self._database.fetchrow(_AT_SIZE, tree_size)
        if row is None:
            fault = f"no checkpoint was signed at {tree_size} leaves"
            raise invalid_request([Violation("tree_size", fault)])
        return await self._checked(SignedCheckpoint(*row))

    async def _guarded(self) -> None:
        if self._guard is not None:
            await self._guard.check()

    async def _keep(self, signed: SignedCheckpoint) -> None:
        """Keep a checkpoint of the whole log outside, whichever replica signed it."""
        size = signed.tree_size
        if self._guard is None or self._guard.keeps(size):
            return
        await self._check_extends(signed, size, await self._store.root(size))
        await self._guard.keep(signed.signed_note)

    async def _newest(self) -> SignedCheckpoint | None:
        row = await self._database.fetchrow(_NEWEST)
        if row is None:
            return None
        return await self._checked(SignedCheckpoint(*row))

    async def _checked(self, found: SignedCheckpoint) -> SignedCheckpoint:
        """Return a row of the database once the log's own signature on it is verified."""
        stated = await self._keys.opened(found.signed_note)
        if (stated.tree_size, stated.root_hash) != (found.tree_size, found.root_hash):
            raise _corrupt(f"the checkpoint of {found.tree_size} leaves is not what was signed")
        return found

    async def _sign(self, size: int, last: SignedCheckpoint | None) -> SignedCheckpoint:
        root = await self._store.root(size)
        if last is not None:
            await self._check_extends(last, size, root)
        signer = self._keys.signer
        note = signer.sign(Checkpoint(signer.name, size, root).body())
        await self._database.execute(_INSERT, size, signer.verifier().key_id, root, note)
        signed = await self.at_size(size)
        if signed.root_hash != root:
            raise _corrupt(f"another replica signed another tree of {size} leaves")
        return signed

    async def _check_extends(self, last: SignedCheckpoint, size: int, root: bytes) -> None:
        if last.tree_size > size:
            raise _corrupt(
                f"the log has {size} leaves, fewer than its checkpoint of {last.tree_size}"
            )
        if last.tree_size == 0:
            return
        ranges = merkle.consistency_ranges(last.tree_size, size)
        proof = await self._store.range_hashes(ranges)
        try:
            merkle.verify_consistency(last.tree_size, size, last.root_hash, root, proof)
        except merkle.ProofError as error:
            raise _corrupt(f"the log does not extend its last checkpoint: {error}") from error


def _corrupt(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, fault)


async def insert_checkpoint(database: Database, keys: SigningKeys, signed_note: str) -> None:
    """Put a checkpoint that the log signed among those of its database, unless it is there."""
    signer, stated = keys.chain.signer_of(signed_note), await keys.opened(signed_note)
    await database.execute(_INSERT, stated.tree_size, signer.key_id, stated.root_hash, signed_note)
