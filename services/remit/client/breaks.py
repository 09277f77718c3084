"""What breaks a call or a stream, told from what refuses it.

What broke may be asked again: a stream from its last event on, a call whose contract says that it
may be repeated. A refusal is an answer, and asking again changes nothing.
"""

from __future__ import annotations

from typing import Final

import grpc

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

_BROKEN: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    # A replica that dies resets the streams that it serves: no error of ours, no error id.
    grpc.StatusCode.INTERNAL,
}


def is_break(error: RemitError) -> bool:
    """Whether the transport failed, rather than the server refused."""
    return error.code in _BROKEN and "error_id" not in error.metadata


def asked_wait_s(error: RemitError) -> float:
    """Seconds that the server asked to wait; a failure of the transport asks for nothing."""
    if error.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE:
        return 0.0
    return error.retry_after_s or 0.0


def silent(limit_s: float) -> RemitError:
    """DEPENDENCY_UNAVAILABLE about a stream that said nothing, not even a heartbeat."""
    return RemitError(
        reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"nothing came for {limit_s:g} s, not even a heartbeat",
    )


def cut_short(sequence: int) -> RemitError:
    """DEPENDENCY_UNAVAILABLE about a stream that ended like a whole one before the run did."""
    return RemitError(
        reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"the stream ended after event {sequence}, before the run did",
    )


class GapError(RemitError):
    """DATA_CORRUPT about events that a stream left out."""

    def __init__(self, seen: int, got: int) -> None:
        super().__init__(
            reasons.ERROR_REASON_DATA_CORRUPT,
            f"event {got} came after event {seen}: the stream has a gap",
        )


def out_of_time(what: str, timeout_s: float, advice: str) -> RemitError:
    """DEADLINE_EXCEEDED about a wait that its caller bounded."""
    return RemitError(
        reasons.ERROR_REASON_DEADLINE_EXCEEDED,
        f"{what} did not end within {timeout_s:g} s; {advice}",
    )
