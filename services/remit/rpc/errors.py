"""The one error of the mesh: raised on the server, sent as google.rpc.Status, raised on the client.

Every error has an ErrorReason; code, retry advice and what to do next come from the reason's
contract in `protos/remit/api/errors/v1`. Details follow AIP-193: ErrorInfo always; BadRequest,
QuotaFailure and RetryInfo where apt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from remit.api.errors.v1 import error_reason_pb2
from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.api.options.v1 import options_pb2
from remit.rpc.fitting import (
    MAX_STATUS_BYTES,
    fitting_entries,
    fitting_message,
    fitting_metadata,
    fitting_text,
)

DOMAIN: Final = "remit.dev"
"""google.rpc.ErrorInfo.domain of every error of Remit."""

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
QUOTING: Final = frozenset(
    {
        error_reason_pb2.ERROR_REASON_PROVIDER_FAILED,
        error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
        error_reason_pb2.ERROR_REASON_TOOL_FAILED,
        error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS,
        # It repeats the words of the failure that left the doubt.
        error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT,
    }
)
"""Reasons whose message may quote a provider, a tool or a model, and so what a user wrote."""
_QUOTED: Final = "message"
"""Key of ErrorInfo.metadata that holds the message of a quoting error on its way."""
_ELSEWHERE: Final = f"what was said is in ErrorInfo.metadata['{_QUOTED}']"
_PREFIX: Final = "ERROR_REASON_"
_RESET: Final = "RST_STREAM"
"""A frame of HTTP/2 (RFC 9113, 6.4) by which a stream ends without a status."""
_DEFAULT_RETRY_S: Final = 1.0
_ENVELOPE_BYTES: Final = 64
"""What packing adds to a detail: its type's name, tags and lengths."""
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
# An error that no service of ours made (Envoy, the channel itself) carries no ErrorInfo.
_REASON_OF_FOREIGN_CODE: Final = {
    grpc.StatusCode.UNAVAILABLE: error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: error_reason_pb2.ERROR_REASON_CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: error_reason_pb2.ERROR_REASON_OVERLOADED,
    grpc.StatusCode.UNIMPLEMENTED: error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN,
    grpc.StatusCode.UNAUTHENTICATED: error_reason_pb2.ERROR_REASON_CREDENTIAL_INVALID,
    grpc.StatusCode.PERMISSION_DENIED: error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED,
}


@dataclass(frozen=True)
class Violation:
    """One fault of a request: the path of the field and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True)
class QuotaViolation:
    """One limit that refused: the account or queue, and the limit in words."""

    subject: str
    description: str


@dataclass(frozen=True)
class ReasonContract:
    """What an ErrorReason means, read from its enum value option."""

    code: grpc.StatusCode
    example: str
    next_step: str
    retryable: bool


class RemitError(Exception):
    """An error with a reason, as every RPC of Remit reports it.

    `message` is one sentence for people and names the thing that is wrong. It must hold no content
    of sensitive fields. A retryable reason always carries `retry_after_s`. What does not fit into a
    status (`remit.rpc.fitting`) is cut from it.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        quota: Sequence[QuotaViolation] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = fitting_message(message)
        self.violations = tuple(violations)
        self.quota = tuple(quota)
        self.metadata = dict(metadata or {})
        if retry_after_s is None and self.contract.retryable:
            retry_after_s = _DEFAULT_RETRY_S
        self.retry_after_s = retry_after_s

    @property
    def contract(self) -> ReasonContract:
        """What the reason means."""
        return reason_contract(self.reason)

    @property
    def code(self) -> grpc.StatusCode:
        """Canonical code of the reason."""
        return self.contract.code

    @property
    def reason_name(self) -> str:
        """The reason as it stands in ErrorInfo, without the enum's prefix."""
        return ErrorReason.Name(self.reason).removeprefix(_PREFIX)

    @property
    def next_step(self) -> str:
        """What the reader should do."""
        return self.contract.next_step

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without any change."""
        return self.contract.retryable

    @property
    def quotes(self) -> bool:
        """Whether the message may quote what others said."""
        return self.reason in QUOTING

    @property
    def plain_message(self) -> str:
        """The message as the header `grpc-message`, which proxies keep, on spans for example."""
        return f"{self.reason_name}: {_ELSEWHERE}" if self.quotes else self.message

    def to_status(self) -> status_pb2.Status:
        """This error as google.rpc.Status, as much of it as fits."""
        return self._status(self.message, self.metadata)

    def to_trailers(self) -> status_pb2.Status:
        """This error as it ends an RPC of gRPC: what it quotes is in its details alone.

        Clients compare the message of the status with `grpc-message`, so both are the plain one.
        """
        if not self.quotes:
            return self.to_status()
        # What was said goes first: the first entries fit.
        return self._status(self.plain_message, {_QUOTED: self.message, **self.metadata})

    def _status(self, text: str, metadata: Mapping[str, str]) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code.value[0], message=text)
        status.details.extend(_packed(detail) for detail in self._small_details(metadata))
        if self.violations:
            status.details.append(_packed(_bad_request(self.violations, _room(status))))
        if self.quota:
            status.details.append(_packed(_quota_failure(self.quota, _room(status))))
        return status

    def _small_details(self, metadata: Mapping[str, str]) -> Iterator[message.Message]:
        info = {"next_step": self.next_step} | fitting_metadata(metadata)
        yield error_details_pb2.ErrorInfo(reason=self.reason_name, domain=DOMAIN, metadata=info)
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            yield error_details_pb2.RetryInfo(retry_delay=delay)

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> RemitError:
        """The error that a status carries; without our ErrorInfo its code tells the reason."""
        reason = _REASON_OF_FOREIGN_CODE.get(
            _CODES.get(status.code, grpc.StatusCode.UNKNOWN),
            error_reason_pb2.ERROR_REASON_INTERNAL,
        )
        parts = _Parts()
        for detail in status.details:
            reason = parts.take(detail, reason)
        quoted = parts.metadata.pop(_QUOTED, None) if reason in QUOTING else None
        return cls(
            reason,
            status.message if quoted is None else quoted,
            violations=parts.violations,
            quota=parts.quota,
            retry_after_s=parts.retry_after_s,
            metadata=parts.metadata,
        )

    @classmethod
    def from_rpc(cls, error: grpc.aio.AioRpcError) -> RemitError:
        """The error that a failed call carries."""
        status = None
        # Details that contradict the code are not ours: then the code alone is judged.
        with contextlib.suppress(ValueError):
            status = rpc_status.from_call(error)  # type: ignore[arg-type]
        if status is None:
            status = status_pb2.Status(code=_foreign_code(error), message=error.details() or "")
        return cls.from_status(status)


def _foreign_code(error: grpc.aio.AioRpcError) -> int:
    """The code of an error without details, as a number.

    A stream that the other side's death cut short ends with RST_STREAM, which the client library
    calls INTERNAL; it is an outage and no defect.
    """
    cut = error.code() is grpc.StatusCode.INTERNAL and _RESET in (error.details() or "")
    code = grpc.StatusCode.UNAVAILABLE if cut else error.code()
    return int(code.value[0])


class _Parts:
    """Collects what the details of a status say."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.quota: list[QuotaViolation] = []
        self.metadata: dict[str, str] = {}
        self.retry_after_s: float | None = None

    def take(self, detail: any_pb2.Any, reason: ErrorReason.ValueType) -> ErrorReason.ValueType:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        quota = error_details_pb2.QuotaFailure()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            self.metadata = {k: v for k, v in info.metadata.items() if k != "next_step"}
            return ErrorReason.Value(_PREFIX + info.reason) if _known(info.reason) else reason
        if detail.Unpack(bad):
            self.violations = [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(quota):
            self.quota = [QuotaViolation(v.subject, v.description) for v in quota.violations]
        elif detail.Unpack(retry):
            self.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        return reason


def reason_contract(reason: ErrorReason.ValueType) -> ReasonContract:
    """What a reason means. Raises KeyError for a reason without a contract."""
    return _CONTRACTS[reason]


def invalid_request(violations: Sequence[Violation]) -> RemitError:
    """INVALID_REQUEST that lists every violation and names the first in its message."""
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return RemitError(
        error_reason_pb2.ERROR_REASON_INVALID_REQUEST,
        f"{first.field}: {first.description}{more}",
        violations=violations,
    )


def check_all(*checks: Callable[[], object]) -> None:
    """Runs every check, so that a request is told all that is wrong with it at once.

    Raises INVALID_REQUEST with the violations of every check, if one of them raises that: what is
    malformed is malformed whatever else it may be. Else what the first check raises that fails.
    """
    found: list[Violation] = []
    is_malformed, other = False, None
    for check in checks:
        try:
            check()
        except RemitError as error:
            found += error.violations
            if error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST:
                is_malformed = True
            else:
                other = other or error
    if is_malformed:
        raise invalid_request(found)
    if other is not None:
        raise other


def _read_contracts() -> dict[int, ReasonContract]:
    contracts = {}
    for value in ErrorReason.DESCRIPTOR.values:
        options = value.GetOptions()
        if options.HasExtension(options_pb2.reason):
            stated = options.Extensions[options_pb2.reason]
            contracts[value.number] = ReasonContract(
                _CODES[stated.code], stated.example, stated.next_step, stated.retryable
            )
    return contracts


_CONTRACTS: Final = _read_contracts()


def _known(reason_name: str) -> bool:
    return _PREFIX + reason_name in ErrorReason.keys()  # noqa: SIM118 - an enum wrapper, not a dict


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _room(status: status_pb2.Status) -> int:
    """Bytes that one more detail may have."""
    return MAX_STATUS_BYTES - status.ByteSize() - _ENVELOPE_BYTES


def _bad_request(violations: Sequence[Violation], room_bytes: int) -> error_details_pb2.BadRequest:
    field_violation = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(
        field_violations=fitting_entries(
            violations,
            room_bytes,
            lambda v: field_violation(
                field=fitting_text(v.field), description=fitting_text(v.description)
            ),
            lambda left_out: field_violation(description=_and_more(left_out)),
        )
    )


def _quota_failure(
    quota: Sequence[QuotaViolation], room_bytes: int
) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation
    return error_details_pb2.QuotaFailure(
        violations=fitting_entries(
            quota,
            room_bytes,
            lambda q: violation(
                subject=fitting_text(q.subject), description=fitting_text(q.description)
            ),
            lambda left_out: violation(description=_and_more(left_out)),
        )
    )


def _and_more(left_out: int) -> str:
    return f"and {left_out} more"
