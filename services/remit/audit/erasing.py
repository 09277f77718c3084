"""Erasing a subject: the entry that tells of it, then the end of the key.

The log itself is what remembers an erasure that a crash interrupted. Its entry names the key, by
the subject's pseudonym and the key's id, in the part of the leaf that all can read:
`orgs/acme/users/~PSEUDONYM/keys/KEY`. Every replica looks through those entries, all of them when
it starts and the new ones from time to time, and deletes the keys that they name. So what the entry
says becomes true even if who wrote it dies, and a key that comes back with a backup of the keys
goes again at the next start. A subject's new key has another id and is not touched.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from remit import telemetry
from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.keyring import SubjectKeyring
from remit.audit.leaf import NANOS_PER_S, Leaf, LeafError
from remit.audit.log import AuditLog
from remit.audit.packing import PackingError, unpack
from remit.audit.reading import REPORTER
from remit.audit.sealing import Pseudonyms, shown
from remit.audit.store import StoredEvent
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

ACTION: Final = "audit.erase"
_PAGE: Final = 256
_NAMED = re.compile(r"orgs/[^/]+/users/~([A-Za-z0-9_-]{43})/keys/([0-9a-f]{16})")
_NEW_ERASURES = """
    SELECT leaf_index, leaf FROM events
    WHERE kind = 'ADMIN' AND action = 'audit.erase' AND leaf_index >= $1
    ORDER BY leaf_index LIMIT $2
"""
_DELETE = """
    DELETE FROM subject_keys USING unnest($1::bytea[], $2::bytea[]) AS named(pseudonym, key)
    WHERE subject_pseudonym = named.pseudonym AND key_id = named.key
"""

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class ErasureRequest:
    """Who asks for the erasure of whom."""

    caller: str
    subject: str
    request_id: str
    trace_id: str
    time: datetime

    @property
    def event_id(self) -> str:
        """Of the entry; a request_id is its caller's alone."""
        named = f"{self.caller}\0{ACTION}\0{self.request_id}".encode()
        return f"admin-{hashlib.sha256(named).hexdigest()}"


@dataclass(frozen=True)
class Erased:
    """What became of a request: the key that is gone, and the leaf that tells of it."""

    resource: str
    leaf_index: int
    erase_time: datetime
    forget_time: datetime


class Eraser:
    """Destroys keys of subjects."""

    def __init__(
        self,
        database: Database,
        audit_log: AuditLog,
        keyring: SubjectKeyring,
        pseudonyms: Pseudonyms,
        destroyer: Database | None,
        *,
        clock: Clock,
    ) -> None:
        self._database = database
        self._log = audit_log
        self._keyring = keyring
        self._pseudonyms = pseudonyms
        self._destroyer = destroyer
        self._clock = clock
        self._unchecked = 0

    async def erase(self, request: ErasureRequest) -> Erased:
        """Append the erasure's entry, destroy the key, and tell both. Safe to repeat.

        Raises:
            RemitError: RESOURCE_NOT_FOUND for a subject without a key, KEY_REUSED for a request_id
                that erased another one, CONFIGURATION_INVALID where keys cannot be deleted here,
                DEPENDENCY_UNAVAILABLE: what the log has of it will be done.

        """
        self._require_destroyer()
        pseudonym = self._pseudonyms.of(request.subject)
        row = await self._log.store.find(request.event_id)
        if row is None:
            row = await self._recorded(request, pseudonym)
        leaf = _leaf_of(row)
        named = _key_named_by(leaf)
        if named is None or named[0] != pseudonym:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_KEY_REUSED,
                f"request_id {request.request_id} was used before for another request",
            )
        await self._destroy([named])
        erase_time = datetime.fromtimestamp(leaf.event_time_ns / NANOS_PER_S, UTC)
        forget_time = self._clock.now() + timedelta(seconds=self._keyring.cache_ttl_s)
        return Erased(leaf.resource, row.leaf_index, erase_time, forget_time)

    async def run(self, interval_s: float) -> None:
        """Finish, until cancelled, the erasures that the log tells of."""
        while True:
            try:
                if self._destroyer is not None:
                    await self.finish()
            except RemitError as error:
                log.warning("erasure_delayed", reason=error.reason_name, error=error.message)
            await asyncio.sleep(interval_s)

    async def finish(self) -> None:
        """Destroy the keys that entries name which were not looked at yet.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE: the rest is looked at the next time.

        """
        while True:
            rows = await self._database.fetch(_NEW_ERASURES, self._unchecked, _PAGE)
            leaves = [_decoded(row["leaf_index"], row["leaf"]) for row in rows]
            await self._destroy([named for leaf in leaves if (named := _key_named_by(leaf))])
            if rows:
                self._unchecked = rows[-1]["leaf_index"] + 1
            if len(rows) < _PAGE:
                return

    async def _recorded(self, request: ErasureRequest, pseudonym: bytes) -> StoredEvent:
        """Append the entry that names the subject's key; return it as the log has it."""
        self._keyring.forget(pseudonym)  # another replica may have erased and renewed it
        key = (await self._keyring.for_reading([pseudonym])).get(pseudonym)
        if key is None:
            # The same request may have come to another replica, which is done by now.
            done = await self._log.store.find(request.event_id)
            if done is not None:
                return done
            raise RemitError(
                error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND,
                f"{request.subject} has no key: nothing of it is in the log, or it was erased",
            )
        org = "/".join(request.subject.split("/")[:2])
        event = event_pb2.Event(
            event_id=request.event_id,
            kind=event_pb2.EVENT_KIND_ADMIN,
            org=org,
            subject=request.caller,
            action=ACTION,
            resource=f"{org}/users/{shown(pseudonym)}/keys/{key.key_id.hex()}",
            outcome=event_pb2.OUTCOME_SUCCEEDED,
            trace_id=request.trace_id,
        )
        event.event_time.FromDatetime(request.time)
        [place] = await self._log.append([event], REPORTER)
        # A request that was sent twice at once differs from itself in its time: the first counts.
        row = await self._log.store.find(request.event_id)
        if row is None:
            raise place if isinstance(place, RemitError) else _unreadable(request.event_id)
        return row

    async def _destroy(self, named: list[tuple[bytes, bytes]]) -> None:
        if named:
            destroyer = self._require_destroyer()
            await destroyer.execute(_DELETE, [p for p, _ in named], [key for _, key in named])
        for pseudonym, _ in named:
            self._keyring.forget(pseudonym)

    def _require_destroyer(self) -> Database:
        if self._destroyer is None:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
                "REMIT_AUDIT_KEYS_ERASER_DSN is not set: this service cannot delete a key",
            )
        return self._destroyer


def _key_named_by(leaf: Leaf) -> tuple[bytes, bytes] | None:
    """Return pseudonym and id of the key that an entry says is destroyed; None: it says no such.

    Only audit itself can say so: another service may report changes, but not this one.
    """
    named = _NAMED.fullmatch(leaf.resource)
    if leaf.action != ACTION or leaf.reporter != REPORTER or named is None:
        return None
    return base64.urlsafe_b64decode(named[1] + "="), bytes.fromhex(named[2])


def _leaf_of(row: StoredEvent) -> Leaf:
    try:
        return Leaf.decode(row.leaf)
    except LeafError as error:
        raise _corrupt(row.leaf_index, error) from error


def _decoded(leaf_index: int, stored: bytes) -> Leaf:
    try:
        return Leaf.decode(unpack(stored))
    except (LeafError, PackingError) as error:
        raise _corrupt(leaf_index, error) from error


def _corrupt(leaf_index: int, error: ValueError) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, f"leaf {leaf_index}: {error}")


def _unreadable(event_id: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DATA_CORRUPT, f"the event {event_id} is not in the log"
    )
