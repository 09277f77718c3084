"""The keys of subjects: random, wrapped under the master key, one row each in their own database.

A subject's key is made when its first event arrives, and again when the subject acts after its key
was destroyed: each key has an id of its own, which stands in what it encrypted. A key is remembered
for a bounded time, which is also how long a replica may still use one that was destroyed elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.sealing import FIRST_KEY_ID, KEY_BYTES, KEY_ID_BYTES, SubjectKey
from remit.audit.wrapping import KeyWrapper, UnwrapError
from remit.postgres import Database, unavailable
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource

_MAKING_ROUNDS = 3
"""How often a key is made that is destroyed again before it could be read."""
_SELECT = """
    SELECT subject_pseudonym, key_id, master_key_id, wrapped_key FROM subject_keys
    WHERE subject_pseudonym = ANY($1::bytea[])
"""
_INSERT = """
    INSERT INTO subject_keys (subject_pseudonym, key_id, master_key_id, wrapped_key)
    SELECT pseudonym, key_id, $4, wrapped
    FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) AS made(pseudonym, key_id, wrapped)
    ORDER BY pseudonym
    ON CONFLICT DO NOTHING
"""


class SubjectKeyring:
    """Makes, keeps and returns the keys of subjects."""

    def __init__(
        self,
        database: Database,
        wrapper: KeyWrapper,
        *,
        clock: Clock,
        ids: IdSource,
        cache_size: int,
        cache_ttl_s: float,
    ) -> None:
        self._database = database
        self._wrapper = wrapper
        self._clock = clock
        self._ids = ids
        self._cache_size = cache_size
        self.cache_ttl_s = cache_ttl_s
        self._cache: OrderedDict[bytes, tuple[float, SubjectKey]] = OrderedDict()

    async def for_writing(self, pseudonyms: Collection[bytes]) -> dict[bytes, SubjectKey]:
        """Return the key of every subject, making those that do not exist.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE without the database, DATA_CORRUPT for a damaged key.

        """
        return await self._completed(await self.for_reading(pseudonyms), pseudonyms)

    async def for_passing_on(self, pseudonyms: Collection[bytes]) -> dict[bytes, SubjectKey]:
        """As `for_writing`, and as the database has them now.

        Whoever is handed what is derived from them remembers it for a time of their own.

        Raises:
            RemitError: as `for_writing`.

        """
        return await self._completed(await self._fetched(set(pseudonyms)), pseudonyms)

    async def stored(self, pseudonyms: Collection[bytes]) -> dict[bytes, SubjectKey]:
        """As `for_reading`, and as the database has them now.

        Raises:
            RemitError: as `for_writing`.

        """
        return await self._fetched(set(pseudonyms))

    async def for_reading(self, pseudonyms: Collection[bytes]) -> dict[bytes, SubjectKey]:
        """Return the keys of those subjects that have one.

        Raises:
            RemitError: as `for_writing`.

        """
        now_s = self._clock.monotonic()
        keys = {p: key for p in pseudonyms if (key := self._remembered(p, now_s))}
        unknown = set(pseudonyms) - keys.keys()
        return keys | await self._fetched(unknown) if unknown else keys

    def forget(self, pseudonym: bytes) -> None:
        """Forget a key at once."""
        self._cache.pop(pseudonym, None)

    async def ping(self) -> None:
        """Return when the database of keys answers; raise DEPENDENCY_UNAVAILABLE otherwise."""
        await self._database.ping()

    async def _completed(
        self, keys: dict[bytes, SubjectKey], pseudonyms: Collection[bytes]
    ) -> dict[bytes, SubjectKey]:
        """Return the keys and those that are missing among them, newly made."""
        for _ in range(_MAKING_ROUNDS):
            missing = sorted(set(pseudonyms) - keys.keys())
            if not missing:
                return keys
            await self._make(missing)
            keys |= await self._fetched(set(missing))
        raise unavailable("the keys of subjects are destroyed as fast as they are made")

    async def _fetched(self, pseudonyms: Collection[bytes]) -> dict[bytes, SubjectKey]:
        # The clock first: a key may be destroyed while the answer is on its way.
        now_s = self._clock.monotonic()
        rows = await self._database.fetch(_SELECT, list(pseudonyms))
        fetched = {row["subject_pseudonym"]: await self._unwrap(*row) for row in rows}
        self._remember(fetched, now_s)
        return fetched

    async def _make(self, pseudonyms: list[bytes]) -> None:
        key_ids = [self._ids.token_bytes(KEY_ID_BYTES) for _ in pseudonyms]
        wrapped = [
            await self._wrapper.wrap(self._ids.token_bytes(KEY_BYTES), _context(pseudonym, key_id))
            for pseudonym, key_id in zip(pseudonyms, key_ids, strict=True)
        ]
        master_key_id = self._wrapper.master_key_id
        await self._database.execute(_INSERT, pseudonyms, key_ids, wrapped, master_key_id)

    async def _unwrap(
        self, pseudonym: bytes, key_id: bytes, master_key_id: str, wrapped: bytes
    ) -> SubjectKey:
        context = _context(pseudonym, key_id)
        try:
            return SubjectKey(key_id, await self._wrapper.unwrap(master_key_id, wrapped, context))
        except UnwrapError as error:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
                f"the key of the subject {pseudonym.hex()[:16]} {error}",
            ) from error

    def _remembered(self, pseudonym: bytes, now_s: float) -> SubjectKey | None:
        expiry_s, key = self._cache.get(pseudonym, (0.0, None))
        if key and now_s >= expiry_s:
            del self._cache[pseudonym]
            return None
        return key

    def _remember(self, keys: dict[bytes, SubjectKey], now_s: float) -> None:
        for pseudonym, key in keys.items():
            self._cache[pseudonym] = (now_s + self.cache_ttl_s, key)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)


def _context(pseudonym: bytes, key_id: bytes) -> bytes:
    """What a wrapped key is bound to: its subject, and its id unless it is older than ids are."""
    return pseudonym if key_id == FIRST_KEY_ID else pseudonym + key_id
