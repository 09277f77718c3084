"""The log as its services use it: events in and out, sealed and opened on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.filters import EventFilter, Walk
from remit.audit.keyring import SubjectKeyring
from remit.audit.leaf import LeafError
from remit.audit.metrics import count_appends
from remit.audit.sealing import (
    NONCE_BYTES,
    Pseudonyms,
    SealedEvent,
    SealError,
    SubjectKey,
    is_replay,
    seal,
    unseal,
)
from remit.audit.store import LogStore, StoredEvent
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource


@dataclass(frozen=True)
class LoggedEvent:
    """An event and its place."""

    leaf_index: int
    append_time: datetime
    event: event_pb2.Event


class AuditLog:
    """Appends and lists events."""

    def __init__(
        self, store: LogStore, keyring: SubjectKeyring, pseudonyms: Pseudonyms, ids: IdSource
    ) -> None:
        self.store = store
        self._keyring = keyring
        self._pseudonyms = pseudonyms
        self._ids = ids

    async def append(
        self, events: Sequence[event_pb2.Event], reporter: str
    ) -> list[int | RemitError]:
        """Append events of one reporter, each on its own; return indices or errors, in order.

        An event that is in the log already keeps its index; after its subject's key was destroyed
        it is the same event if all that its leaf shows is the same.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE when the subjects' keys cannot be had.

        """
        pseudonyms = [self._pseudonyms.of(event.subject) for event in events]
        keys = await self._keyring.for_writing(set(pseudonyms))
        sealed = [
            self._sealed(event, reporter, keys[pseudonym])
            for event, pseudonym in zip(events, pseudonyms, strict=True)
        ]
        places = list(await asyncio.gather(*map(self._append_one, sealed)))
        count_appends(events, places)
        return places

    async def append_at(self, index: int, event: event_pb2.Event, reporter: str) -> None:
        """Append audit's own event as the leaf of exactly that index, though appends are refused.

        Raises:
            RemitError: INVALID_STATE when the log does not have so many leaves,
                DEPENDENCY_UNAVAILABLE when a database is away.

        """
        await self.store.put_back(index, [[await self.sealed(event, reporter)]])

    async def sealed(self, event: event_pb2.Event, reporter: str) -> SealedEvent:
        """Return an event as the log would store it. Raises DEPENDENCY_UNAVAILABLE."""
        pseudonym = self._pseudonyms.of(event.subject)
        keys = await self._keyring.for_writing({pseudonym})
        return self._sealed(event, reporter, keys[pseudonym])

    def pseudonym_of(self, subject: str) -> bytes:
        """Return the pseudonym of `orgs/{org}/users/{user}`, 32 bytes."""
        return self._pseudonyms.of(subject)

    def hiding_users(self, resource: str, org: str) -> str:
        """Return a resource name with every user in it replaced by a pseudonym."""
        return self._pseudonyms.in_resource(resource, org)

    async def list_events(
        self, wanted: EventFilter, walk: Walk, *, limit: int
    ) -> list[LoggedEvent]:
        """Return the events that are wanted among those that a walk looks at, in its order.

        Of a subject whose key is gone, an event shows what its leaf says: no subject, no detail.

        Raises:
            RemitError: DATA_CORRUPT for an event that does not fit its leaf.

        """
        rows = await self.store.list_events(wanted, walk, limit=limit)
        keys = await self._keyring.for_reading({row.subject_pseudonym for row in rows})
        return [_opened(row, keys.get(row.subject_pseudonym)) for row in rows]

    def _sealed(self, event: event_pb2.Event, reporter: str, key: SubjectKey) -> SealedEvent:
        return seal(
            event,
            reporter=reporter,
            subject_key=key,
            pseudonyms=self._pseudonyms,
            nonce=self._ids.token_bytes(NONCE_BYTES),
        )

    async def _append_one(self, event: SealedEvent) -> int | RemitError:
        try:
            return await self.store.append(event)
        except RemitError as error:
            if error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED:
                replayed = await self._replayed(event)
                return error if replayed is None else replayed
            return error

    async def _replayed(self, event: SealedEvent) -> int | RemitError | None:
        """Return the index of an event that was sealed under a key that is gone; None for none."""
        try:
            row = await self.store.find(event.leaf.event_id)
            same = row is not None and is_replay(event, row.leaf, row.payload)
        except RemitError as error:
            return error
        except (LeafError, SealError) as error:
            return _corrupt(event.leaf.event_id, error)
        return row.leaf_index if row and same else None


def _opened(row: StoredEvent, key: SubjectKey | None) -> LoggedEvent:
    try:
        return LoggedEvent(row.leaf_index, row.append_time, unseal(row.leaf, row.payload, key))
    except (LeafError, SealError) as error:
        raise _corrupt(f"leaf {row.leaf_index}", error) from error


def _corrupt(what: str, error: ValueError) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, f"{what}: {error}")
