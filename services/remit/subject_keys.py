"""The keys under which an area stores what is about a person, so that an erasure reaches it.

Audit keeps one key of each subject and derives from it a key for each area (`GetSubjectKeys`). What
an area stores of a subject, it seals under its own key of that subject; once the subject is erased
nobody can derive that key any more, and what was sealed is noise wherever it lies.

`AreaKey` seals. A record's own key is ``HMAC-SHA256(area's key, "remit/record/v1" 00 record)``, and
what is sealed is ``01 key_id[8] nonce[12] AES-256-GCM(clear)``, bound to its part of the record. So
nothing opens in another record's place, and a nonce, 12 random bytes, needs to differ from those of
the same record alone: of 2**32 sealings of one record two would share one with a chance of 2**-33.
`RecordKey` is what to keep while a record is made for long: it opens no other.

`SubjectKeys` gets keys and remembers them no longer than audit says, counted from before it asked.
Those who need keys at once share an RPC. Without an answer there is no key, and nothing is stored
or read without one.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.rpc import status_pb2

from remit.api.audit.v1 import subject_key_service_pb2, subject_key_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.calls import spawn
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.telemetry.trace import Trace, current, together, within

KEY_ID_BYTES: Final = 8
NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = 1 + KEY_ID_BYTES + NONCE_BYTES + 16
"""By which what is sealed is longer than it was."""
MAX_BATCH: Final = 256
"""Keys asked for in one RPC, by the contract."""
REMEMBERED: Final = 10_000
"""Subjects whose key is remembered at most, and erased keys that are remembered as such."""
HOLDER_SHARE: Final = 0.8
"""A key is used for this share of the time for which it may be remembered."""
MAX_WAITING: Final = 16_384
"""Keys that are waited for at most."""
_MAX_IN_FLIGHT: Final = 4
_AREA_KEY_BYTES: Final = 32
_FORM: Final = b"\x01"
_HEAD_BYTES: Final = 1 + KEY_ID_BYTES


class RecordKey:
    """Seals and opens the parts of one record, and nothing else."""

    def __init__(self, key_id: bytes, secret: bytes) -> None:
        self.key_id = key_id
        self._cipher = AESGCM(secret)

    def seal(self, clear: bytes, *, part: bytes = b"", nonce: bytes) -> bytes:
        """What may be stored of `clear`. The nonce is NONCE_BYTES random bytes, new each time."""
        return _FORM + self.key_id + nonce + self._cipher.encrypt(nonce, clear, _FORM + part)

    def open(self, sealed: bytes, *, part: bytes = b"") -> bytes:
        """What was sealed. Raises DATA_CORRUPT for what this key did not seal as this part."""
        if key_id_of(sealed) != self.key_id:
            raise _corrupt("was sealed under another key")
        nonce = sealed[_HEAD_BYTES : _HEAD_BYTES + NONCE_BYTES]
        try:
            return self._cipher.decrypt(nonce, sealed[_HEAD_BYTES + NONCE_BYTES :], _FORM + part)
        except InvalidTag as error:
            raise _corrupt("does not open with its key: it was damaged or moved") from error


@dataclass(frozen=True)
class AreaKey:
    """An area's key of one subject."""

    key_id: bytes
    """Which of the subject's keys it comes of, KEY_ID_BYTES."""
    secret: bytes = field(repr=False)

    def of_record(self, record: bytes) -> RecordKey:
        """The key of one record; `record` names it and nothing else of the area's, for ever."""
        derived = hmac.digest(self.secret, b"remit/record/v1\x00" + record, "sha256")
        return RecordKey(self.key_id, derived)

    def seal(self, clear: bytes, *, bound_to: bytes, nonce: bytes) -> bytes:
        """What may be stored of `clear` in the record `bound_to`; see `RecordKey.seal`."""
        return self.of_record(bound_to).seal(clear, nonce=nonce)

    def open(self, sealed: bytes, *, bound_to: bytes) -> bytes:
        """What was sealed in this record. Raises DATA_CORRUPT."""
        return self.of_record(bound_to).open(sealed)

    def opens(self, sealed: bytes) -> bool:
        """Whether that was sealed under this key, as far as its head says."""
        return sealed[1:_HEAD_BYTES] == self.key_id


def key_id_of(sealed: bytes) -> bytes:
    """The id of the key that something is sealed under. Raises DATA_CORRUPT if it is not sealed."""
    if sealed[:1] != _FORM or len(sealed) < OVERHEAD_BYTES:
        raise _corrupt("has no form that is known")
    return sealed[1:_HEAD_BYTES]


def is_erased(error: BaseException) -> bool:
    """Whether an error says that a key was destroyed, so that it will never be had again."""
    return (
        isinstance(error, RemitError)
        and error.reason == error_reason_pb2.ERROR_REASON_SUBJECT_ERASED
    )


class _Wanted(NamedTuple):
    """A key that is asked for."""

    subject: str
    key_id: bytes
    """Empty: the one to write with."""


@dataclass
class _Asked:
    """A question, and the answer that everybody waits for who has it."""

    wanted: _Wanted
    place: Trace | None = field(default_factory=current)
    answer: asyncio.Future[AreaKey | status_pb2.Status] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class SubjectKeys:
    """An area's keys of subjects, from audit."""

    def __init__(
        self, audit: subject_key_service_pb2_grpc.SubjectKeyServiceStub, clock: Clock
    ) -> None:
        self._audit = audit
        self._clock = clock
        self._keys: OrderedDict[str, tuple[float, AreaKey]] = OrderedDict()
        self._erased: OrderedDict[_Wanted, None] = OrderedDict()
        self._asking: dict[_Wanted, _Asked] = {}
        self._queue: deque[_Asked] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._draining = 0
        self._forgetting: asyncio.TimerHandle | None = None
        self.sent = 0
        """RPCs sent so far, for benchmarks."""

    async def for_writing(self, subject: str) -> AreaKey:
        """The key to seal with what is stored of a subject, `orgs/{org}/users/{user}`, now.

        Raises DEPENDENCY_UNAVAILABLE without an answer, OVERLOADED, DATA_CORRUPT.
        """
        return self.remembered(subject) or await self._ask(_Wanted(subject, b""))

    async def for_reading(self, subject: str, key_id: bytes) -> AreaKey:
        """The key of that id. Raises SUBJECT_ERASED if it was destroyed, or as `for_writing`."""
        key = self.remembered(subject)
        if key is not None and key.key_id == key_id:
            return key
        wanted = _Wanted(subject, key_id)
        if wanted in self._erased:
            raise _erased(wanted)
        return await self._ask(wanted)

    async def opened(self, subject: str, sealed: bytes, *, bound_to: bytes) -> bytes:
        """What was sealed of a subject. Raises SUBJECT_ERASED, or as `for_reading`."""
        key = await self.for_reading(subject, key_id_of(sealed))
        return key.open(sealed, bound_to=bound_to)

    def remembered(self, subject: str) -> AreaKey | None:
        """The key to seal with, if it is known here and now."""
        until_s, key = self._keys.get(subject, (0.0, None))
        return key if key is not None and self._clock.monotonic() < until_s else None

    # ------------------------------------------------------------------------------ asking

    async def _ask(self, wanted: _Wanted) -> AreaKey:
        asked = self._asking.get(wanted)
        if asked is None:
            if len(self._asking) >= MAX_WAITING:
                raise RemitError(
                    error_reason_pb2.ERROR_REASON_OVERLOADED,
                    f"{len(self._asking)} keys of subjects are waited for, the limit",
                )
            asked = self._asking[wanted] = _Asked(wanted)
            self._queue.append(asked)
            if self._draining < _MAX_IN_FLIGHT:
                # Not the caller's deadline: the RPC is shared.
                task = spawn(self._drain(), name="subject-keys")
                self._draining += 1
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)
        answer = await asyncio.shield(asked.answer)
        if isinstance(answer, status_pb2.Status):
            raise RemitError.from_status(answer)  # an error of each caller's own
        return answer

    async def _drain(self) -> None:
        """Sends what waits; what comes in the meantime goes with the next RPC."""
        try:
            while self._queue:
                count = min(len(self._queue), MAX_BATCH)
                await self._send([self._queue.popleft() for _ in range(count)])
        except BaseException:
            while self._queue:
                self._settle(self._queue.popleft(), _stopping())
            raise
        finally:
            # At once: whoever is answered runs before the callbacks of a task that has ended.
            self._draining -= 1

    async def _send(self, batch: Sequence[_Asked]) -> None:
        self.sent += 1
        before_s = self._clock.monotonic()
        answers: Sequence[AreaKey | RemitError] = [_stopping()] * len(batch)
        try:
            with within(together([asked.place for asked in batch])):
                answers = await self._answers(batch, before_s)
        except RemitError as error:
            answers = [_unavailable(error.message)] * len(batch)
        except Exception:  # noqa: BLE001 - whatever it is, those who wait must hear it
            answers = [_unavailable("it could not be asked")] * len(batch)
        finally:
            for asked, answer in zip(batch, answers, strict=True):
                self._settle(asked, answer)

    async def _answers(
        self, batch: Sequence[_Asked], before_s: float
    ) -> Sequence[AreaKey | RemitError]:
        response = await self._audit.GetSubjectKeys(
            subject_key_service_pb2.GetSubjectKeysRequest(
                requests=[
                    subject_key_service_pb2.SubjectKeyRequest(
                        subject=asked.wanted.subject, key_id=asked.wanted.key_id
                    )
                    for asked in batch
                ]
            )
        )
        if len(response.results) != len(batch):
            raise _unavailable(f"{len(response.results)} keys came to {len(batch)} questions")
        return [
            self._noted(asked.wanted, result, before_s)
            for asked, result in zip(batch, response.results, strict=True)
        ]

    def _noted(
        self, wanted: _Wanted, result: subject_key_service_pb2.SubjectKeyResult, before_s: float
    ) -> AreaKey | RemitError:
        """The answer to a question, remembered for as long as it may be."""
        if result.WhichOneof("result") != "key":
            error = RemitError.from_status(result.error)
            if is_erased(error) and wanted.key_id:
                self._erased[wanted] = None
                if len(self._erased) > REMEMBERED:
                    self._erased.popitem(last=False)
            return error
        told = result.key
        if len(told.key_id) != KEY_ID_BYTES or len(told.area_key) != _AREA_KEY_BYTES:
            return _unavailable("what came is no key")
        if wanted.key_id not in {b"", told.key_id}:
            return _unavailable("another key came than was asked for")
        key = AreaKey(told.key_id, told.area_key)
        remember_s = told.remember_for.ToNanoseconds() / 1e9
        self._remember(wanted.subject, key, before_s + HOLDER_SHARE * remember_s)
        return key

    def _settle(self, asked: _Asked, answer: AreaKey | RemitError) -> None:
        self._asking.pop(asked.wanted, None)
        asked.answer.set_result(answer.to_status() if isinstance(answer, RemitError) else answer)

    # --------------------------------------------------------------------------- remembering

    def _remember(self, subject: str, key: AreaKey, until_s: float) -> None:
        self._keys.pop(subject, None)
        self._keys[subject] = (until_s, key)
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        if self._forgetting is None:
            self._forget_old()

    def _forget_old(self) -> None:
        """Forgets what is used no longer, and sees to the rest in time.

        Keys are in the order in which they came, which is that of their ends but for the time that
        an RPC takes; the share of the time in which no key is used has room for that.
        """
        self._forgetting = None
        now_s = self._clock.monotonic()
        while self._keys:
            subject, (until_s, _) = next(iter(self._keys.items()))
            if now_s < until_s:
                loop = asyncio.get_running_loop()
                self._forgetting = loop.call_later(until_s - now_s, self._forget_old)
                return
            del self._keys[subject]


def _stopping() -> RemitError:
    return _unavailable("the service stops")


def _unavailable(why: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"the key of the subject cannot be had from audit: {why}",
    )


def _erased(wanted: _Wanted) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_SUBJECT_ERASED,
        f"what was stored of {wanted.subject} under the key {wanted.key_id.hex()} was erased",
    )


def _corrupt(what: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DATA_CORRUPT, f"something that is sealed {what}"
    )
