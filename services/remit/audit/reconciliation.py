"""Reconciliation: the leaves that a restored database lost are put back where they were.

The leaves of an export, or of tiles, are public; what they commit to is not in it, so the events
come back as their leaves say them, without subject and detail. That is enough for every checkpoint
that was ever signed to hold again, and for a replayed event to be known as the one it is.

It is done in one transaction, and only if the leaves lead from the log as it is now to the largest
checkpoint that is known: a log that went another way since is refused.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.anchor import Anchor, Anchored
from remit.audit.checkpoints import insert_checkpoint
from remit.audit.leaf import Leaf, LeafError
from remit.audit.lost_leaves import LeafSource, SourceError
from remit.audit.merkle import Frontier, leaf_hash
from remit.audit.note import Checkpoint
from remit.audit.sealing import LOST_PAYLOAD, SealedEvent
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.postgres import Database
from remit.rpc.errors import RemitError

_BATCH: Final = 1024


@dataclass(frozen=True)
class Reconciled:
    """What was done: leaves from `kept_size` on are back, up to a checkpoint of `tree_size`."""

    kept_size: int
    kept_root: bytes
    tree_size: int
    root_hash: bytes
    lost_intents: int
    """Intents among them whose outcome is not among the leaves of the log."""

    @property
    def count(self) -> int:
        """How many leaves were put back."""
        return self.tree_size - self.kept_size


Tell: TypeAlias = Callable[[Reconciled], Awaitable[SealedEvent]]
"""Makes the entry of a reconciliation."""


@dataclass(frozen=True)
class _Target:
    checkpoint: Checkpoint
    signed_note: str


async def reconcile(  # noqa: PLR0913 - its parts, and how it is asked
    database: Database,
    store: LogStore,
    keys: SigningKeys,
    anchor: Anchor,
    source: LeafSource,
    *,
    tell: Tell | None = None,
    partly: bool = False,
) -> Reconciled | None:
    """Put back what the log lacks of its largest checkpoint; None if it lacks nothing.

    `tell` makes the entry about it, which is stored with what is put back or not at all; None: it
    is told otherwise. `partly`: no more than the source has, up to its own checkpoint.

    Raises:
        RemitError: CONFIGURATION_INVALID: the source is damaged, of another log, or too short;
            LOG_ROLLED_BACK: the log went another way since, so that nothing can be put back.

    """
    try:
        kept = None if partly else await anchor.read()
        target = await _target(keys, kept, source)
        size = await store.size()
        root = await store.root(size)
        known = [target.checkpoint, *([kept.checkpoint] if kept else [])]
        if size >= target.checkpoint.tree_size:
            await _check_whole(store, target.checkpoint)
            return None
        await asyncio.to_thread(_check_leads, source, size, root, known)
        goal = target.checkpoint
        lost = await asyncio.to_thread(_open_intents, source, size, goal.tree_size)
        done = Reconciled(size, root, goal.tree_size, goal.root_hash, len(lost))
        entry = None if tell is None else await tell(done)
        events = _batches(_events(source, size, goal.tree_size))
        await store.put_back(size, events, goal.root_hash, entry)
    except (SourceError, LeafError, OSError) as error:
        raise _unusable(str(error)) from error
    await insert_checkpoint(database, keys, target.signed_note)
    await anchor.advance(target.signed_note)
    return done


async def _target(keys: SigningKeys, kept: Anchored | None, source: LeafSource) -> _Target:
    """Return the largest checkpoint that the log signed: the anchor's or the source's."""
    note = await asyncio.to_thread(source.signed_note)
    exported = _Target(await keys.opened(note), note)
    if kept is None or kept.checkpoint.tree_size <= exported.checkpoint.tree_size:
        return exported
    covered, signed = exported.checkpoint.tree_size, kept.checkpoint.tree_size
    raise _unusable(
        f"{source.path} ends at {covered} leaves, and a checkpoint of {signed} was signed; give a"
        " later one"
    )


async def _check_whole(store: LogStore, checkpoint: Checkpoint) -> None:
    size = checkpoint.tree_size
    if await store.root(size) != checkpoint.root_hash:
        raise _forked(f"the log's first {size} leaves are not those that were signed")


def _check_leads(source: LeafSource, size: int, root: bytes, known: Sequence[Checkpoint]) -> None:
    """Check that the leaves go on from the log as it is, and meet every checkpoint on the way."""
    frontier = Frontier()
    roots = {0: frontier.root()}
    wanted = {size, *(checkpoint.tree_size for checkpoint in known)}
    for leaf in source.leaves(max(wanted)):
        frontier.append(leaf_hash(leaf))
        if frontier.size in wanted:
            roots[frontier.size] = frontier.root()
    for checkpoint in known:
        if roots.get(checkpoint.tree_size) != checkpoint.root_hash:
            raise SourceError(
                f"{source.path}: its first {checkpoint.tree_size} leaves are not those that were"
                " signed, or are not all there"
            )
    if roots[size] != root:
        raise _forked(f"the log has {size} leaves, of which {source.path} holds others")


def _events(source: LeafSource, start: int, stop: int) -> Iterator[SealedEvent]:
    for leaf in itertools.islice(source.leaves(stop), start, None):
        yield SealedEvent(Leaf.decode(leaf), leaf, leaf_hash(leaf), LOST_PAYLOAD)


def _batches(events: Iterator[SealedEvent]) -> Iterator[list[SealedEvent]]:
    while batch := list(itertools.islice(events, _BATCH)):
        yield batch


def _open_intents(source: LeafSource, start: int, stop: int) -> set[tuple[str, int]]:
    """Claims and attempts that began among the lost leaves and did not end there."""
    began: set[tuple[str, int]] = set()
    for event in _events(source, start, stop):
        attempt = (event.leaf.claim, event.leaf.attempt)
        if event.leaf.kind == "INTENT":
            began.add(attempt)
        elif event.leaf.kind == "OUTCOME":
            began.discard(attempt)
    return began


def _unusable(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, fault)


def _forked(fault: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_LOG_ROLLED_BACK,
        f"{fault}: it went another way since, and nothing can be put back; restore the database"
        " of before, or begin a new log in an empty one",
    )
