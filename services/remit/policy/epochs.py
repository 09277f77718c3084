"""The policies in force on this replica.

Files say what the policies shall be when a service starts; the database says what they are. A
change of the files becomes a new epoch at the next start, whichever replica starts first; the
others follow at their next decision, because every decision reads the epoch in force with the run's
fence.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.policy.rules import PolicySource, RuleBook
from remit.policy.schema import schema_text
from remit.policy.store import PolicyStore
from remit.rpc.errors import RemitError


def read_policies(folder: Path) -> PolicySource:
    """Read the *.cedar files of a folder, with the schema of this version of Remit.

    Raises:
        RemitError: CONFIGURATION_INVALID if the folder or a file cannot be read.

    """
    try:
        files = {
            path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.cedar"))
        }
    except (OSError, UnicodeDecodeError) as error:
        raise RemitError(
            ERROR_REASON_CONFIGURATION_INVALID, f"the policies in {folder} cannot be read: {error}"
        ) from error
    if not files:
        raise RemitError(
            ERROR_REASON_CONFIGURATION_INVALID,
            f"{folder} has no *.cedar file; REMIT_POLICY_POLICIES_DIR must name a folder that does",
        )
    return PolicySource(files, schema_text())


class Policies:
    """The rule book in force, replaced as a whole when a newer epoch is seen."""

    def __init__(self, store: PolicyStore, book: RuleBook) -> None:
        self._store = store
        self._book = book
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, store: PolicyStore, source: PolicySource) -> Policies:
        """Check `source`, put it in force unless it is, and load what is in force.

        Raises:
            RemitError: CONFIGURATION_INVALID; nothing that does not parse is ever put in force.

        """
        RuleBook(source, 0)
        await store.accept_policies(source)
        newest = await store.newest_policies()
        return cls(store, RuleBook(newest.source, newest.epoch))

    @property
    def book(self) -> RuleBook:
        """The rule book as this replica last saw it."""
        return self._book

    async def at_least(self, epoch: int) -> RuleBook:
        """Return the rule book of `epoch` or a later one."""
        if self._book.epoch < epoch:
            async with self._lock:
                if self._book.epoch < epoch:
                    newest = await self._store.newest_policies()
                    self._book = RuleBook(newest.source, newest.epoch)
        return self._book

    async def refresh(self) -> None:
        """Load a newer epoch if there is one."""
        await self.at_least(await self._store.newest_epoch())
