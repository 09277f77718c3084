"""Audit as areas see it that seal: keys of subjects by the real contract, and their destruction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from remit.api.audit.v1 import subject_key_service_pb2, subject_key_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.subject_keys import AreaKey


@dataclass
class Subjects:
    """Whose keys there are: how often each subject was erased."""

    away: bool = False
    """Whether nothing answers."""
    remember_s: float = 60.0
    generations: dict[str, int] = field(default_factory=dict)
    batches: list[list[tuple[str, bytes]]] = field(default_factory=list)
    """What was asked: subject and id."""

    def erase(self, subject: str) -> None:
        """The subject's key is destroyed; it gets another one when it is asked for."""
        self.generations[subject] = self.generations.get(subject, 0) + 1

    def key_id(self, subject: str) -> bytes:
        """Of the key that the subject has, or gets."""
        return self._derived("id", subject)[:8]

    def area_key(self, subject: str) -> bytes:
        """What an area is given of it."""
        return self._derived("key", subject)

    def key(self, subject: str) -> AreaKey:
        """Both, as the area has them."""
        return AreaKey(self.key_id(subject), self.area_key(subject))

    def _derived(self, what: str, subject: str) -> bytes:
        generation = self.generations.get(subject, 0)
        return hashlib.sha256(f"{what} {subject} {generation}".encode()).digest()


class SubjectKeyService(subject_key_service_pb2_grpc.SubjectKeyServiceServicer):
    """Answers by the contract."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects

    async def GetSubjectKeys(
        self, request: subject_key_service_pb2.GetSubjectKeysRequest, _context: Any
    ) -> subject_key_service_pb2.GetSubjectKeysResponse:
        asked = [(one.subject, one.key_id) for one in request.requests]
        self._subjects.batches.append(asked)
        if self._subjects.away:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "audit is away")
        return subject_key_service_pb2.GetSubjectKeysResponse(
            results=[self._result(*one) for one in asked]
        )

    def _result(self, subject: str, key_id: bytes) -> subject_key_service_pb2.SubjectKeyResult:
        current = self._subjects.key_id(subject)
        if key_id not in {b"", current}:
            error = RemitError(error_reason_pb2.ERROR_REASON_SUBJECT_ERASED, f"{subject} is gone")
            return subject_key_service_pb2.SubjectKeyResult(error=error.to_status())
        key = subject_key_service_pb2.SubjectKey(
            key_id=current, area_key=self._subjects.area_key(subject)
        )
        key.remember_for.FromNanoseconds(int(self._subjects.remember_s * 1e9))
        return subject_key_service_pb2.SubjectKeyResult(key=key)
