"""The guard: no effect starts on a log that forgot what it had signed.

A database that is restored from a backup, or replaced by another, would go on where the backup ends
and give new events the places of lost ones. So it must extend the checkpoint that is kept outside
of it (`anchor`), and what this replica itself has seen committed. If it does not, every append is
refused, from the look at it until a later look finds the log whole again: no intent, no effect.
What needs no entry is still served.
"""

from __future__ import annotations

from remit import telemetry
from remit.audit.anchor import Anchor, Anchored
from remit.audit.merkle import Frontier
from remit.audit.metrics import ROLLED_BACK
from remit.audit.store import LogStore, rolled_back
from remit.rpc.errors import RemitError

log = telemetry.logger(__name__)


class LogGuard:
    """Compares the log with its anchor, and closes the store to appends where they part."""

    def __init__(self, store: LogStore, anchor: Anchor) -> None:
        self._store = store
        self._anchor = anchor
        self._kept: Anchored | None = None

    async def check(self) -> None:
        """Look whether the log extends what is kept outside, and open or close it.

        Raises:
            RemitError: LOG_ROLLED_BACK: it does not; CONFIGURATION_INVALID: the anchor is damaged.

        """
        # The log is looked at last: it grows, and so do the others, never beyond it.
        seen = self._store.committed
        kept = await self._anchor.read()
        size = await self._store.size()
        fault = await self._forgotten(seen, size) or await self._fault(kept, size)
        self._kept = kept
        if fault is None:
            self._reopen()
            return
        raise self._close(fault)

    def keeps(self, tree_size: int) -> bool:
        """Whether what is kept outside covers so many leaves, as of the last look."""
        return self._kept is not None and self._kept.checkpoint.tree_size >= tree_size

    async def keep(self, signed_note: str) -> None:
        """Keep a checkpoint of this log outside.

        Raises:
            RemitError: CONFIGURATION_INVALID: it cannot be written.

        """
        await self._anchor.advance(signed_note)

    async def _forgotten(self, seen: Frontier, size: int) -> str | None:
        if size < seen.size:
            return f"the log has {size} leaves, and this replica saw {seen.size} of them committed"
        # It grew again meanwhile: this replica would go on from the edge of a tree that is gone.
        if seen.size and await self._store.root(seen.size) != seen.root():
            return (
                f"the first {seen.size} leaves of the log are not those that this replica saw"
                " committed; start it anew"
            )
        return None

    async def _fault(self, kept: Anchored | None, size: int) -> str | None:
        if kept is None:
            return None
        known = kept.checkpoint
        if size < known.tree_size:
            return f"the log has {size} leaves, and a checkpoint of {known.tree_size} was signed"
        if known.tree_size and await self._store.root(known.tree_size) != known.root_hash:
            return (
                f"the first {known.tree_size} leaves of the log are not those for which a"
                " checkpoint was signed"
            )
        return None

    def _close(self, fault: str) -> RemitError:
        error = rolled_back(fault)
        if self._store.refusal is None or self._store.refusal.message != error.message:
            log.error("log_rolled_back", fault=fault, anchor=str(self._anchor.path))
        self._store.refusal = error
        ROLLED_BACK.set(1)
        return error

    def _reopen(self) -> None:
        if self._store.refusal is not None:
            log.warning("log_whole_again")
        self._store.refusal = None
        ROLLED_BACK.set(0)
