"""What the database holds of a person: compressed, then sealed under the subject's key.

A run keeps the key with which it was created. Everything of it is sealed under that one key, so
that what it knows never stands under a key that its subject got after an erasure. Content is found
by an address that depends on the key: without it nobody can tell whether two runs hold the same, or
try a guess.

A fork of another user's run knows what that one was about. It is sealed under the keys of both, one
around the other, so that the erasure of either reaches it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from remit.agent.compression import pack, unpack
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.subject_keys import NONCE_BYTES, AreaKey, SubjectKeys, is_erased

SEALED: Final = 1
"""First byte of what is sealed; what was stored before keys were begins with another one."""


class OtherKey(NamedTuple):
    """A key of another subject."""

    subject: str
    key_id: bytes


@dataclass(frozen=True, slots=True)
class KeyRef:
    """Which key something is sealed under."""

    subject: str
    """`orgs/{org}/users/{user}`."""
    key_id: bytes | None = None
    """None: it is older than keys are, and nothing of it is sealed yet."""
    others: tuple[OtherKey, ...] = ()
    """Of a fork: the keys of those whose runs it goes on from."""

    @property
    def all_of_it(self) -> tuple[OtherKey, ...]:
        """Every key that something is sealed under which is derived from what this one opens."""
        own = () if self.key_id is None else (OtherKey(self.subject, self.key_id),)
        return own + self.others


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes and the digest that names them."""

    digest: bytes
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Content:
        """The content of `data`, which its SHA-256 names."""
        return cls(hashlib.sha256(data).digest(), data)

    @property
    def is_plain(self) -> bool:
        """Whether the digest is that of the bytes as they are: then nothing is sealed."""
        return hashlib.sha256(self.data).digest() == self.digest


class Key:
    """The key of one run or conversation, which names the record; and of its subject's content."""

    def __init__(self, areas: Sequence[AreaKey], record: UUID, ids: IdSource) -> None:
        """`areas`: its own subject's key first, then those of others whose erasure it obeys."""
        self._areas = areas
        self._records = [area.of_record(record.bytes) for area in areas]
        self._ids = ids

    @property
    def key_id(self) -> bytes:
        """Which of its own subject's keys it is."""
        return self._areas[0].key_id

    def seal(self, part: str, clear: bytes) -> bytes:
        """A part of the record as it may be stored."""
        sealed = pack(clear)
        for record in reversed(self._records):
            sealed = record.seal(sealed, part=part.encode(), nonce=self._nonce())
        return sealed

    def open(self, part: str, sealed: bytes) -> bytes:
        """What was sealed as this part. Raises DATA_CORRUPT."""
        for record in self._records:
            sealed = record.open(sealed, part=part.encode())
        return unpack(sealed)

    def keyed(self, digest: bytes) -> bytes:
        """A digest that nobody can compare with a guess who lacks the key, 32 bytes."""
        for area in self._areas:
            digest = hmac.digest(area.secret, b"remit/agent/digest/v1\x00" + digest, "sha256")
        return digest

    def knows(self, stored: bytes, digest: bytes) -> bool:
        """Whether a stored digest is that one: keyed, or as it is in a row from before keys."""
        return hmac.compare_digest(stored, self.keyed(digest)) or stored == digest

    def sealed(self, content: Content) -> Content:
        """Content as it may be stored: once, whichever of the subject's runs refers to it."""
        address = self.keyed(content.digest)
        data = pack(content.data)
        for area in reversed(self._areas):
            data = area.seal(data, bound_to=_named(address), nonce=self._nonce())
        return Content(address, data)

    def opened(self, stored: Content) -> bytes:
        """The bytes of stored content. Raises DATA_CORRUPT."""
        if stored.is_plain:
            return stored.data
        data = stored.data
        for area in self._areas:
            data = area.open(data, bound_to=_named(stored.digest))
        return unpack(data)

    def _nonce(self) -> bytes:
        return self._ids.token_bytes(NONCE_BYTES)


class Keys:
    """The keys of runs and conversations. Without audit's answer there is none."""

    def __init__(self, subjects: SubjectKeys, ids: IdSource) -> None:
        self._subjects = subjects
        self._ids = ids

    async def new(self, subject: str, record: UUID, others: Sequence[OtherKey] = ()) -> Key:
        """The key of a record that is made now. Raises DEPENDENCY_UNAVAILABLE, OVERLOADED.

        SUBJECT_ERASED where one of the others is gone.
        """
        own = await self._subjects.for_writing(subject)
        return Key([own, *await self._read(others)], record, self._ids)

    async def of(self, ref: KeyRef, record: UUID) -> Key:
        """The key of a record. Raises SUBJECT_ERASED, and as `new`.

        A record that is older than keys gets its subject's present one.
        """
        if ref.key_id is None:
            return await self.new(ref.subject, record)
        own = await self._subjects.for_reading(ref.subject, ref.key_id)
        return Key([own, *await self._read(ref.others)], record, self._ids)

    async def to_read(self, ref: KeyRef, record: UUID) -> Key | None:
        """As `of`; None for a record of which nothing is sealed."""
        return None if ref.key_id is None else await self.of(ref, record)

    async def to_show(self, refs: Iterable[tuple[UUID, KeyRef]]) -> dict[UUID, Key | None]:
        """The keys of many records; None for one that was erased or of which nothing is sealed."""
        wanted = dict(refs)
        found = await asyncio.gather(*(self._or_none(ref, of) for of, ref in wanted.items()))
        return dict(zip(wanted, found, strict=True))

    async def _read(self, keys: Sequence[OtherKey]) -> list[AreaKey]:
        return [await self._subjects.for_reading(*key) for key in keys]

    async def _or_none(self, ref: KeyRef, record: UUID) -> Key | None:
        try:
            return await self.to_read(ref, record)
        except RemitError as error:
            if not is_erased(error):
                raise
            return None


def key_ref(row: asyncpg.Record) -> KeyRef:
    """What the run of a row is sealed with: its columns of KEY_COLUMNS."""
    others = (line.split(" ", 1) for line in (row["other_keys"] or "").splitlines())
    return KeyRef(
        row["subject"],
        row["key_id"],
        tuple(OtherKey(subject, bytes.fromhex(key_id)) for key_id, subject in others),
    )


def other_keys(keys: Iterable[OtherKey]) -> str | None:
    """Other keys as a column holds them: one a line, its id in hex and its subject."""
    return "\n".join(f"{key.key_id.hex()} {key.subject}" for key in keys) or None


KEY_COLUMNS: Final = "runs.subject, runs.key_id, runs.other_keys"
"""What a query on `runs` selects for `key_ref`."""


def request_erased(request_id: str, subject: str) -> RemitError:
    """SUBJECT_ERASED about a request id that stands in a record which cannot be read any more."""
    return RemitError(
        reasons.ERROR_REASON_SUBJECT_ERASED,
        f"request_id {request_id} was used before {subject} was erased; use a new one",
    )


def _named(address: bytes) -> bytes:
    return b"content\x00" + address
