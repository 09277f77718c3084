"""What every call passes before its method runs, whichever transport brought it.

Caller allow-list, capacity by phase, remit, deadline, error translation and metrics, all from the
method's contract. The gRPC server and the in-memory mesh of the tests share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Final

import grpc

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.rpc import metrics
from remit.rpc.calls import REMIT_KEY, RUNS_KEY, TRACE_KEY, Call, serving
from remit.rpc.clock import Clock
from remit.rpc.contracts import MethodContract
from remit.rpc.errors import RemitError
from remit.rpc.parties import caller_label
from remit.rpc.permission import StreamPermission, StreamPermissions
from remit.rpc.remits import Remit, RemitVerifier

# The inner time limit is shorter than the caller's, so that its report still arrives.
SHAVE_SHARE: Final = 0.05
SHAVE_MOST_S: Final = 0.25
_SHARE_OF_PHASE: Final = {
    options_pb2.PHASE_OPEN: 0.8,
    options_pb2.PHASE_OTHER: 0.9,
    options_pb2.PHASE_CLOSE: 1.0,
}

log = telemetry.logger(__name__)


class Admission:
    """Counts calls in flight; opening calls are shed first, closing ones last."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._total = 0
        self._by_method: Counter[str] = Counter()

    @contextlib.contextmanager
    def admitted(self, contract: MethodContract) -> Iterator[None]:
        """Holds a place for the body. Raises OVERLOADED at once when there is none."""
        limit = int(self._max_in_flight * _SHARE_OF_PHASE[contract.phase])
        if self._total >= limit:
            raise _overloaded(contract.path, f"the replica serves {self._total} calls")
        if self._by_method[contract.path] >= contract.max_in_flight:
            raise _overloaded(contract.path, f"{contract.max_in_flight} calls are in flight")
        self._total += 1
        self._by_method[contract.path] += 1
        try:
            yield
        finally:
            self._total -= 1
            self._by_method[contract.path] -= 1

    @property
    def in_flight(self) -> int:
        """Calls being served, health checks and reflection not counted."""
        return sum(n for path, n in self._by_method.items() if path.startswith("/remit."))


class Guard:
    """Admits calls to one service."""

    def __init__(
        self,
        *,
        audience: Caller.ValueType,
        verifier: RemitVerifier,
        clock: Clock,
        max_in_flight: int,
        permissions: StreamPermissions | None = None,
    ) -> None:
        """Without `permissions` no stream begins whose contract bounds its permission."""
        self._audience = audience
        self._verifier = verifier
        self._clock = clock
        self._permissions = permissions
        self.admission = Admission(max_in_flight)

    @contextlib.asynccontextmanager
    async def serve(
        self,
        contract: MethodContract,
        caller: Caller.ValueType,
        metadata: Iterable[tuple[str, str | bytes]],
        time_remaining_s: float | None,
    ) -> AsyncIterator[StreamPermission | None]:
        """Runs the body as the method of `contract`. Raises nothing but RemitError.

        Yields what is to be renewed before each message of a stream, where its contract says so.
        """
        fields = dict(metadata)
        with (
            telemetry.within(_place(caller, fields)),
            self._observed(contract, caller),
            self.admission.admitted(contract),
            _reported(contract.path),
        ):
            self._check_caller(contract, caller)
            limit_s = _time_limit_s(contract, time_remaining_s)
            deadline = self._clock.monotonic() + limit_s
            async with _deadline(contract, limit_s):
                call = await self._call(contract, caller, fields, deadline)
                permission = self._permission(contract, call)
                with serving(call):
                    yield permission

    @contextlib.contextmanager
    def _observed(self, contract: MethodContract, caller: Caller.ValueType) -> Iterator[None]:
        """Counts a call, and writes its line where its trace is recorded."""
        started = self._clock.monotonic()
        code = grpc.StatusCode.OK
        metrics.rpc_began(contract.path)
        try:
            yield
        except RemitError as error:
            code = error.code
            if error.reason == error_reason_pb2.ERROR_REASON_OVERLOADED:
                metrics.rpc_overloaded(contract.path)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = self._clock.monotonic() - started
            metrics.rpc_ended(contract.path, code.name, seconds)
            if contract.area:
                _say_served(contract, caller, code, seconds)

    def _check_caller(self, contract: MethodContract, caller: Caller.ValueType) -> None:
        if caller not in contract.callers:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED,
                f"{caller_label(caller)} may not call {contract.path.removeprefix('/')}",
            )

    def _permission(self, contract: MethodContract, call: Call) -> StreamPermission | None:
        if contract.stream is None or not contract.stream.permission_bound_s:
            return None
        if self._permissions is None:
            message = f"nothing asks for the permission of {contract.path} again"
            raise ValueError(message)
        return self._permissions.of(contract, call)

    async def _call(
        self,
        contract: MethodContract,
        caller: Caller.ValueType,
        metadata: dict[str, str | bytes],
        deadline: float,
    ) -> Call:
        token = str(metadata.get(REMIT_KEY, ""))
        remit: Remit | None = None
        if contract.auth == options_pb2.AUTH_REMIT:
            remit = await self._verifier.verify(token, audience=self._audience, presenter=caller)
            _check_permission(contract, caller, remit)
            telemetry.name_runs(remit.run)
        return Call(
            method=contract.path,
            caller=caller,
            remit=remit,
            remit_token=token,
            deadline=deadline,
            trace_id=(telemetry.current() or telemetry.fresh()).trace_id,
            monotonic=self._clock.monotonic,
        )


def _check_permission(contract: MethodContract, caller: Caller.ValueType, remit: Remit) -> None:
    """Raises PERMISSION_DENIED for a client's remit that was issued for something else.

    The edge asks policy and then gets a remit for that alone. So whoever comes past it, with its
    certificate and somebody's remit, can do what the remit was issued for and nothing besides.
    """
    if caller == options_pb2.CALLER_PUBLIC and contract.permission not in remit.permissions:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
            f"{remit.subject} presents a remit that was issued for"
            f" {', '.join(sorted(remit.permissions)) or 'no method'}; {contract.permission} needs"
            " one of its own from the edge",
            metadata={"permission": contract.permission},
        )


def check_request_size(contract: MethodContract, size_bytes: int) -> None:
    """Raises TOO_LARGE for a request over its contract's bound."""
    if size_bytes > contract.max_request_bytes:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_TOO_LARGE,
            f"the request has {size_bytes} bytes; {contract.path.removeprefix('/')} takes"
            f" {contract.max_request_bytes}",
        )


def check_response_size(contract: MethodContract, size_bytes: int) -> None:
    """Raises TOO_LARGE for an answer, or one message of a stream, over its contract's bound."""
    if size_bytes > contract.max_response_bytes:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_TOO_LARGE,
            f"the response has {size_bytes} bytes; {contract.path.removeprefix('/')} gives at most"
            f" {contract.max_response_bytes}",
        )


async def check_message(
    contract: MethodContract, permission: StreamPermission | None, size_bytes: int
) -> None:
    """Returns when a message of a stream may be sent.

    Raises TOO_LARGE for one over its contract's bound, and what renewing the permission raises.
    """
    if permission is not None:
        await permission.renew()
    check_response_size(contract, size_bytes)


def _place(caller: Caller.ValueType, metadata: Mapping[str, str | bytes]) -> telemetry.Trace:
    """Where the call stands: in its caller's trace, or in a new one.

    Runs are believed to services alone, and only to be named in logs.
    """
    runs = "" if caller == options_pb2.CALLER_PUBLIC else str(metadata.get(RUNS_KEY, ""))
    return telemetry.served(str(metadata.get(TRACE_KEY, "")), runs)


def _say_served(
    contract: MethodContract, caller: Caller.ValueType, code: grpc.StatusCode, seconds: float
) -> None:
    """One line a call where its trace is recorded, or where everything is logged."""
    place = telemetry.current()
    is_recorded = place is not None and place.span is not None
    if not (is_recorded or log.is_enabled_for(logging.DEBUG)):
        return
    say = log.info if is_recorded else log.debug
    say(
        "rpc_served",
        method=contract.path.removeprefix("/"),
        caller=caller_label(caller),
        code=code.name,
        duration_s=round(seconds, 6),
    )


def _time_limit_s(contract: MethodContract, time_remaining_s: float | None) -> float:
    longest = contract.stream.max_life_s if contract.stream else contract.deadline_s
    asked = longest if time_remaining_s is None else min(longest, time_remaining_s)
    return max(0.0, asked - min(asked * SHAVE_SHARE, SHAVE_MOST_S))


@contextlib.asynccontextmanager
async def _deadline(contract: MethodContract, limit_s: float) -> AsyncIterator[None]:
    timeout = asyncio.timeout(limit_s)
    try:
        async with timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
            f"{contract.path.removeprefix('/')} did not end within {limit_s:.3g} s",
        ) from error


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """Turns whatever a method raises into a RemitError; a bug is logged under an error id."""
    try:
        yield
    except RemitError:
        raise
    except grpc.aio.AioRpcError as error:
        raise RemitError.from_rpc(error) from error
    except Exception as error:
        error_id = secrets.token_hex(8)
        log.exception("rpc_failed", method=path, error_id=error_id)
        raise RemitError(
            error_reason_pb2.ERROR_REASON_INTERNAL,
            f"an unexpected error occurred; its id is {error_id}",
            metadata={"error_id": error_id},
        ) from error


def _overloaded(path: str, why: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_OVERLOADED, f"{path.removeprefix('/')}: {why}, its limit"
    )
