"""The keys of subjects: random, wrapped under the master key, one row each in their own database.

A subject's key is made when its first event arrives. It is remembered for a bounded time, which is
also how long a replica may still open payloads of a subject whose key was deleted elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.key_files import MasterKey
from remit.audit.sealing import KEY_BYTES, NONCE_BYTES
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource

_SELECT = """
    SELECT subject_pseudonym, master_key_id, wrapped_key FROM subject_keys
    WHERE subject_pseudonym = ANY($1::bytea[])
"""
_INSERT = """
    INSERT INTO subject_keys (subject_pseudonym, master_key_id, wrapped_key)
    SELECT pseudonym, $3, wrapped FROM unnest($1::bytea[], $2::bytea[]) AS made(pseudonym, wrapped)
    ORDER BY pseudonym
    ON CONFLICT DO NOTHING
"""


class SubjectKeyring:
    """Makes, keeps and returns the keys of subjects."""

    def __init__(
        self,
        database: Database,
        master: MasterKey,
        *,
        clock: Clock,
        ids: IdSource,
        cache_size: int,
        cache_ttl_s: float,
    ) -> None:
        self._database = database
        self._master = master
        self._clock = clock
        self._ids = ids
        self._cache_size = cache_size
        self._cache_ttl_s = cache_ttl_s
        self._cache: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    async def for_writing(self, pseudonyms: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the key of every subject, making those that do not exist.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE without the database, DATA_CORRUPT for a damaged key.

        """
        keys = await self.for_reading(pseudonyms)
        missing = sorted(set(pseudonyms) - keys.keys())
        if missing:
            await self._make(missing)
            keys |= await self.for_reading(missing)
        return keys

    async def for_reading(self, pseudonyms: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the keys of those subjects that have one.

        Raises:
            RemitError: as `for_writing`.

        """
        now_s = self._clock.monotonic()
        keys = {p: key for p in pseudonyms if (key := self._remembered(p, now_s))}
        unknown = set(pseudonyms) - keys.keys()
        if unknown:
            rows = await self._database.fetch(_SELECT, list(unknown))
            fetched = {row["subject_pseudonym"]: self._unwrap(*row) for row in rows}
            self._remember(fetched, now_s)
            keys |= fetched
        return keys

    async def ping(self) -> None:
        """Return when the database of keys answers; raise DEPENDENCY_UNAVAILABLE otherwise."""
        await self._database.ping()

    async def _make(self, pseudonyms: list[bytes]) -> None:
        wrapped = [self._wrap(p, self._ids.token_bytes(KEY_BYTES)) for p in pseudonyms]
        await self._database.execute(_INSERT, pseudonyms, wrapped, self._master.key_id)

    def _wrap(self, pseudonym: bytes, key: bytes) -> bytes:
        nonce = self._ids.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self._master.key).encrypt(nonce, key, pseudonym)

    def _unwrap(self, pseudonym: bytes, master_key_id: str, wrapped: bytes) -> bytes:
        if master_key_id != self._master.key_id:
            raise _corrupt(pseudonym, f"is wrapped under the master key {master_key_id}")
        nonce, encrypted = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            return AESGCM(self._master.key).decrypt(nonce, encrypted, pseudonym)
        except (InvalidTag, ValueError) as error:
            raise _corrupt(pseudonym, "does not open with its master key") from error

    def _remembered(self, pseudonym: bytes, now_s: float) -> bytes | None:
        expiry_s, key = self._cache.get(pseudonym, (0.0, b""))
        if not key:
            return None
        if now_s >= expiry_s:
            del self._cache[pseudonym]
            return None
        return key

    def _remember(self, keys: dict[bytes, bytes], now_s: float) -> None:
        for pseudonym, key in keys.items():
            self._cache[pseudonym] = (now_s + self._cache_ttl_s, key)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)


def _corrupt(pseudonym: bytes, fault: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
        f"the key of the subject {pseudonym.hex()[:16]} {fault}",
    )
