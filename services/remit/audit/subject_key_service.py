"""SubjectKeyService: areas' keys of subjects. Proto in, proto out.

A key is read from the database each time, never from a memory: the area that is given one counts
the time for which it may remember it from before it asked. So that time alone, and not the sum of
two, is the bound after an erasure.

Which area was given a key of whom is in the log (remit.access_recorder): once an interval, and the
first time within a second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration

from remit import names
from remit.access import USE_SUBJECT_KEY, Access, Occasion
from remit.access_recorder import AccessRecorder
from remit.api.audit.v1 import subject_key_service_pb2, subject_key_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.keyring import SubjectKeyring
from remit.audit.sealing import KEY_ID_BYTES, Pseudonyms, SubjectKey, area_key
from remit.rpc.calls import current_call
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.parties import caller_label

MAX_REQUESTS: Final = 256

Asked: TypeAlias = subject_key_service_pb2.SubjectKeyRequest
Result: TypeAlias = subject_key_service_pb2.SubjectKeyResult


class SubjectKeyService(subject_key_service_pb2_grpc.SubjectKeyServiceServicer):
    """Hands out the keys that are derived for whoever asks."""

    def __init__(
        self, keyring: SubjectKeyring, pseudonyms: Pseudonyms, accesses: AccessRecorder
    ) -> None:
        self._keyring = keyring
        self._pseudonyms = pseudonyms
        self._accesses = accesses

    async def GetSubjectKeys(
        self,
        request: subject_key_service_pb2.GetSubjectKeysRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> subject_key_service_pb2.GetSubjectKeysResponse:
        """Return the caller's keys of subjects; see the contract."""
        _check_count(len(request.requests))
        area = caller_label(current_call().caller)
        results = await self._results(area, request.requests)
        return subject_key_service_pb2.GetSubjectKeysResponse(results=results)

    async def _results(self, area: str, requests: Sequence[Asked]) -> list[Result]:
        well_formed = [asked for asked in requests if not _faults(asked)]
        pseudonyms = {asked.subject: self._pseudonyms.of(asked.subject) for asked in well_formed}
        writing = {pseudonyms[asked.subject] for asked in well_formed if not asked.key_id}
        keys = await self._keys(set(pseudonyms.values()), writing)
        return [
            self._result(area, asked, keys.get(pseudonyms.get(asked.subject, b"")))
            for asked in requests
        ]

    async def _keys(
        self, pseudonyms: Collection[bytes], writing: Collection[bytes]
    ) -> dict[bytes, SubjectKey | RemitError]:
        """Return the keys; a damaged one fails alone."""
        try:
            found = await self._keyring.stored(pseudonyms) if pseudonyms else {}
            missing = set(writing) - found.keys()
            return {**found, **(await self._keyring.for_passing_on(missing) if missing else {})}
        except RemitError as error:
            if error.reason != error_reason_pb2.ERROR_REASON_DATA_CORRUPT:
                raise
            if len(pseudonyms) == 1:
                return dict.fromkeys(pseudonyms, error)
        each = [await self._keys([one], {one} & set(writing)) for one in pseudonyms]
        return {pseudonym: key for one in each for pseudonym, key in one.items()}

    def _result(self, area: str, asked: Asked, key: SubjectKey | RemitError | None) -> Result:
        faults = _faults(asked)
        if faults:
            return Result(error=invalid_request(faults).to_status())
        if isinstance(key, RemitError):
            return Result(error=key.to_status())
        if key is None or (asked.key_id and asked.key_id != key.key_id):
            return Result(error=_erased(asked).to_status())
        try:
            self._accesses.allow(_use(area, asked.subject), _occasion())
        except RemitError as error:
            return Result(
                error=error.to_status()
            )  # of what the log cannot be told, no key is given
        remember_for = Duration()
        remember_for.FromTimedelta(timedelta(seconds=self._keyring.cache_ttl_s))
        return Result(
            key=subject_key_service_pb2.SubjectKey(
                key_id=key.key_id, area_key=area_key(key, area), remember_for=remember_for
            )
        )


def _use(area: str, subject: str) -> Access:
    """What the log is told of a key that an area is given."""
    return Access(
        org=names.org_of(subject),
        subject=subject,
        action=USE_SUBJECT_KEY,
        resource=subject,
        is_allowed=True,
        reason="",
        asked_by=area,
    )


def _occasion() -> Occasion:
    call = current_call()
    return Occasion(method=call.method, trace_id=call.trace_id)


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_REQUESTS:
        fault = f"has {count} requests; 1 to {MAX_REQUESTS} are accepted"
        raise invalid_request([Violation("requests", fault)])


def _faults(asked: Asked) -> list[Violation]:
    faults = []
    if not names.is_name("user", asked.subject):
        faults.append(Violation("subject", "must be a user, such as `orgs/acme/users/alice`"))
    if len(asked.key_id) not in {0, KEY_ID_BYTES}:
        faults.append(Violation("key_id", f"must have {KEY_ID_BYTES} bytes, or none"))
    return faults


def _erased(asked: Asked) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_SUBJECT_ERASED,
        f"what was stored of {asked.subject} under the key {asked.key_id.hex()} was erased",
    )
