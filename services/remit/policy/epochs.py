"""The policies in force on this replica.

Files say what the policies shall be when a service starts, until somebody pushes; the database says
what they are. Every decision reads the epoch in force with the run's fence, so a change that was
committed decides the next question of whichever replica. The edge, which asks the database of none
of its calls, follows within `Policies.refresh`'s period.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from remit import telemetry
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.policy.grants import Grants
from remit.policy.metrics import EPOCH
from remit.policy.rule_sets import PolicyFaultsError, PolicySource, RuleSet, compile_policies
from remit.policy.rules import RuleBook
from remit.policy.schema import actions, schema_text
from remit.policy.set_store import InForce, NewSet, SetStore
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

log = telemetry.logger(__name__)


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

    def __init__(self, store: SetStore, book: RuleBook) -> None:
        self._store = store
        self._book = book
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, store: SetStore, source: PolicySource, clock: Clock) -> Policies:
        """Put in force what this replica starts with, and load what is in force then.

        Raises:
            RemitError: CONFIGURATION_INVALID; nothing that does not pass is ever put in force.

        """
        if await store.governed_by_pushes():
            await _upgrade(store, source)
        else:
            rules = await checked(source)
            await store.accept(NewSet(source, len(rules.policies), "FILES"))
        return cls(store, await _book(await store.in_force(), clock))

    @property
    def book(self) -> RuleBook:
        """The rule book as this replica last saw it."""
        return self._book

    async def at_least(self, epoch: int) -> RuleBook:
        """Return the rule book of `epoch` or a later one."""
        if self._book.epoch < epoch:
            async with self._lock:
                if self._book.epoch < epoch:
                    self._book = await _next(self._book, await self._store.in_force())
        return self._book

    async def newest(self) -> RuleBook:
        """Return the rule book that the database has in force now."""
        return await self.at_least(await self._store.newest_epoch())

    async def refresh(self) -> None:
        """Load a newer epoch if there is one."""
        await self.newest()


async def checked(source: PolicySource) -> RuleSet:
    """Check policies while others go on.

    Raises:
        RemitError: CONFIGURATION_INVALID; it names file, line and policy.

    """
    try:
        return await asyncio.to_thread(compile_policies, source)
    except PolicyFaultsError as error:
        raise RemitError(ERROR_REASON_CONFIGURATION_INVALID, str(error)) from error


async def _upgrade(store: SetStore, source: PolicySource) -> None:
    """Give what was pushed the schema of this version of Remit, which may know new actions."""
    pushed = (await store.in_force()).stored.source
    if pushed.files != source.files:
        log.warning("policy_files_ignored", why="policies were pushed, and those are in force")
    if pushed.schema != source.schema:
        renewed = PolicySource(pushed.files, source.schema)
        await store.accept(NewSet(renewed, len((await checked(renewed)).policies), "UPGRADE"))


async def _book(in_force: InForce, clock: Clock) -> RuleBook:
    rules = await checked(in_force.stored.source)
    book = RuleBook(rules, in_force.epoch, grants=Grants(in_force.grants), clock=clock)
    await asyncio.to_thread(book.prepare, actions())
    _told(in_force)
    return book


async def _next(book: RuleBook, in_force: InForce) -> RuleBook:
    """The book of a newer epoch; where grants changed alone, with the policies as they are."""
    if book.source.digest != in_force.stored.source.digest:
        return await _book(in_force, book.clock)
    _told(in_force)
    return book.with_grants(Grants(in_force.grants), in_force.epoch)


def _told(in_force: InForce) -> None:
    EPOCH.set(in_force.epoch)
    log.info(
        "policies_in_force",
        epoch=in_force.epoch,
        version=in_force.stored.facts.version,
        grants=len(in_force.grants),
    )
