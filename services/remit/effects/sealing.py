"""What an attempt leaves is sealed, so that an erasure of its subject reaches it.

Result, error and the digest of a result lie in the claims under the key of their attempt, which is
derived from the service's key of the subject (`subject_keys`). An attempt has its key before it may
start, so that what it does can always be recorded; and it has no other key, so that however long it
goes on, it can open nothing that was there before.

Who closes what died needs no key: money and record do not wait for one that was destroyed.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

from remit import names, telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.effects.claims import Attempt, Ended, Outcome, SealedEnd
from remit.effects.steps import Refuse, Unclosed
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.subject_keys import (
    NONCE_BYTES,
    AreaKey,
    RecordKey,
    SubjectKeys,
    is_erased,
    key_id_of,
)

_RESULT = b"result"
_ERROR = b"error"
_DIGEST = b"digest"

log = telemetry.logger(__name__)


class AttemptSeal:
    """Seals what one attempt leaves, and opens it."""

    def __init__(self, key: RecordKey, ids: IdSource) -> None:
        self._key = key
        self._ids = ids

    def end(self, ended: Ended) -> SealedEnd:
        """An end as it may be stored. What is empty stays empty."""
        has_digest = bool(ended.result) or ended.outcome is Outcome.SUCCEEDED
        digest = hashlib.sha256(ended.result).digest() if has_digest else b""
        return SealedEnd(
            outcome=ended.outcome,
            result=self._sealed(ended.result, _RESULT),
            error=self._sealed(ended.error, _ERROR),
            digest=self._sealed(digest, _DIGEST),
            used=ended.used,
            cost_nanos=ended.cost_nanos,
            repeatable=ended.repeatable,
        )

    def error(self, error: bytes) -> bytes:
        """An error as it may be stored."""
        return self._sealed(error, _ERROR)

    def opened(self, end: SealedEnd) -> Ended:
        """An end as it was. Raises DATA_CORRUPT."""
        return Ended(
            outcome=end.outcome,
            result=self._opened(end.result, _RESULT),
            error=self._opened(end.error, _ERROR),
            used=end.used,
            cost_nanos=end.cost_nanos,
            repeatable=end.repeatable,
            result_digest=b"" if end.is_kept else self._opened(end.digest, _DIGEST),
        )

    def opened_unclosed(self, ended: Unclosed) -> Unclosed:
        """The same of an end that waits to be closed. Raises DATA_CORRUPT."""
        return replace(
            ended,
            error=self._opened(ended.error, _ERROR),
            result_digest=self._opened(ended.result_digest, _DIGEST),
            is_sealed=False,
        )

    def _sealed(self, clear: bytes, part: bytes) -> bytes:
        if not clear:
            return b""
        return self._key.seal(clear, part=part, nonce=self._ids.token_bytes(NONCE_BYTES))

    def _opened(self, sealed: bytes, part: bytes) -> bytes:
        return self._key.open(sealed, part=part) if sealed else b""


class Sealing:
    """The seals of attempts, by the keys of their subjects."""

    def __init__(self, keys: SubjectKeys, ids: IdSource) -> None:
        self._keys = keys
        self._ids = ids

    def of(self, subject: str, claim: str, attempt: int) -> asyncio.Future[AttemptSeal]:
        """The seal of an attempt that is to start, to be awaited; at once if the key is at hand.

        Its error is DEPENDENCY_UNAVAILABLE and the like where audit gives no key.
        """
        seal = self.at_hand(subject, claim, attempt)
        if seal is None:
            return asyncio.ensure_future(self._asked(subject, claim, attempt))
        answer: asyncio.Future[AttemptSeal] = asyncio.get_running_loop().create_future()
        answer.set_result(seal)
        return answer

    def at_hand(self, subject: str, claim: str, attempt: int) -> AttemptSeal | None:
        """The same, if the subject's key is known here and now."""
        key = self._keys.remembered(subject)
        return self._seal(key, claim, attempt) if key else None

    async def recorded(self, known: Attempt) -> Ended | None:
        """How an attempt ended.

        Raises SUBJECT_ERASED where nobody can say any more, or why audit gives no key now.
        """
        end = known.ended
        if not isinstance(end, SealedEnd):
            return end
        some = end.result or end.digest or end.error
        if not some:
            return Ended(end.outcome, b"", b"", end.used, end.cost_nanos, end.repeatable)
        try:
            key = await self._keys.for_reading(known.subject, key_id_of(some))
        except RemitError as error:
            error.metadata.setdefault("claim", names.claim_name(known.claim))
            raise
        return self._seal(key, known.claim, known.attempt).opened(end)

    async def unclosed(self, ended: Unclosed) -> Unclosed:
        """What is left of an end to tell the log: all of it, or what needs no key.

        Raises why audit gives no key now; then it takes no outcome either.
        """
        some = ended.result_digest or ended.error
        if not ended.is_sealed or not some:
            return ended
        try:
            key = await self._keys.for_reading(ended.subject, key_id_of(some))
            return self._seal(key, ended.claim, ended.attempt).opened_unclosed(ended)
        except RemitError as error:
            if error.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT:
                log.exception("end_unreadable", claim=ended.claim, text=error.message)
            elif not is_erased(error):
                raise
        return replace(ended, error=b"", result_digest=b"", is_sealed=False, is_unreadable=True)

    async def _asked(self, subject: str, claim: str, attempt: int) -> AttemptSeal:
        return self._seal(await self._keys.for_writing(subject), claim, attempt)

    def _seal(self, key: AreaKey, claim: str, attempt: int) -> AttemptSeal:
        return AttemptSeal(key.of_record(f"claims/{claim}/{attempt}".encode()), self._ids)


def refusal(claim: str, attempt: int, error: RemitError, seal: AttemptSeal | None) -> Refuse:
    """The end of an attempt that did not start; without a key its reason alone is stored."""
    if seal is not None:
        told = error.to_status().SerializeToString()
        return Refuse(claim, attempt, seal.error(told), is_sealed=True)
    bare = RemitError(error.reason, "it was refused before what it says could be sealed")
    return Refuse(claim, attempt, bare.to_status().SerializeToString(), is_sealed=False)
