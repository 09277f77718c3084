"""How attempts end: what is recorded of them, what closes them, and what their key answers."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from google.rpc import status_pb2

from remit import names, telemetry
from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects.claims import Admission, Attempt, Ended, Outcome
from remit.effects.effect import EffectOutcome, EffectRequest, EffectResult
from remit.effects.steps import Begun, Unclosed
from remit.pricing import cost_nanos
from remit.rpc.errors import RemitError

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class Closing:
    """What closing an attempt needs to know."""

    request: EffectRequest
    attempt: Attempt
    trace_id: str

    def ended(self, ended: Ended, decision_id: str) -> Unclosed:
        """The attempt as it is to be closed."""
        return Unclosed(
            org=self.request.remit.org,
            claim=self.attempt.claim,
            attempt=self.attempt.attempt,
            outcome=ended.outcome,
            subject=self.request.remit.subject,
            run=self.request.remit.run,
            action=self.request.action,
            resource=self.request.resource,
            trace_id=self.trace_id,
            decision_id=decision_id,
            used=ended.used,
            error=ended.error,
            cost_nanos=ended.cost_nanos,
            result_digest=hashlib.sha256(ended.result).digest() if ended.result else b"",
        )


def known_outcome(request: EffectRequest, begun: Begun, ended: Ended | None) -> EffectOutcome:
    """Answers a call whose key is known already; `ended` is what is replayed."""
    known = begun.attempt
    if begun.admission is Admission.REPLAY and ended is not None:
        if ended.result_digest:
            raise not_kept(request, known, ended)
        return recorded_outcome(known, known.intent_leaf or 0, ended, replayed=True)
    if begun.admission is Admission.KEY_REUSED:
        raise key_reused(request)
    if begun.admission is Admission.IN_DOUBT:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT,
            f"{request.resource} was started under this key and its outcome is unknown",
            metadata={"claim": names.claim_name(known.claim)},
        )
    raise RemitError(
        error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS,
        f"{request.resource} is being performed under this key by another replica",
        retry_after_s=max(known.lease_left_s, 0.1),
        metadata={"claim": names.claim_name(known.claim)},
    )


def recorded_outcome(
    attempt: Attempt, intent_leaf: int, ended: Ended, *, replayed: bool
) -> EffectOutcome:
    """The recorded answer. Raises the recorded error."""
    if ended.error:
        error = RemitError.from_status(status_pb2.Status.FromString(ended.error))
        error.metadata |= {
            "claim": names.claim_name(attempt.claim),
            "intent_leaf_index": str(intent_leaf),
            "cost_nanos": str(ended.cost_nanos),
        }
        raise error
    return EffectOutcome(
        payload=ended.result,
        used=usage_pb2.Usage.FromString(ended.used),
        cost_nanos=ended.cost_nanos,
        claim=names.claim_name(attempt.claim),
        attempt=attempt.attempt,
        intent_leaf_index=intent_leaf,
        replayed=replayed,
    )


def ended_of(
    result: EffectResult, reservation: reservation_pb2.Reservation, bound: usage_pb2.Usage
) -> Ended:
    """What is recorded; what exceeds the hold is not the caller's to pay."""
    used = result.used
    try:
        cost = min(cost_nanos(reservation.price, used), reservation.hold_nanos)
    except RemitError as impossible:
        # A negative count, say. What was done is recorded all the same.
        log.exception("usage_impossible", resource=reservation.item, text=impossible.message)
        used, cost = bound, reservation.hold_nanos
    error = result.error
    return Ended(
        outcome=result.outcome,
        result=result.payload,
        error=error.to_status().SerializeToString() if error else b"",
        used=used.SerializeToString(),
        cost_nanos=cost,
        repeatable=_repeatable(result.outcome, error),
    )


def result_of(
    task: asyncio.Future[EffectResult], request: EffectRequest, bound: usage_pb2.Usage
) -> EffectResult:
    """What the effect reported; what it used is taken as the bound where it says nothing."""
    if not task.done() or task.cancelled():
        error = RemitError(
            error_reason_pb2.ERROR_REASON_CANCELLED, f"{request.resource} was stopped"
        )
        return _unreported(request, bound, Outcome.CANCELLED, error)
    failure = task.exception()
    if failure is None:
        return task.result()
    if isinstance(failure, RemitError):
        return _unreported(request, bound, Outcome.FAILED, failure)
    log.error("effect_failed", resource=request.resource, exc_info=failure)
    error = RemitError(
        error_reason_pb2.ERROR_REASON_INTERNAL, f"{request.resource} failed unexpectedly"
    )
    return EffectResult(Outcome.FAILED, bound, error=error)


def _unreported(
    request: EffectRequest, bound: usage_pb2.Usage, outcome: Outcome, error: RemitError
) -> EffectResult:
    """The end of an effect that did not say how far it came.

    Where another attempt could follow, one that must not happen twice is in doubt instead.
    """
    if request.idempotent or not _repeatable(outcome, error):
        return EffectResult(outcome, bound, error=error)
    doubt = RemitError(
        error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT,
        f"{error.message}; whether it took effect is unknown",
    )
    return EffectResult(Outcome.IN_DOUBT, bound, error=doubt)


def _repeatable(outcome: Outcome, error: RemitError | None) -> bool:
    return outcome is Outcome.CANCELLED or bool(error and error.retryable)


def not_kept(request: EffectRequest, known: Attempt, ended: Ended) -> RemitError:
    """The error of a key whose result its caller has recorded."""
    digest = ended.result_digest.hex()
    return RemitError(
        error_reason_pb2.ERROR_REASON_RESULT_NOT_KEPT,
        f"{request.resource} was performed under this key; its result was recorded by who asked"
        " for it, and is kept there alone",
        metadata={"claim": names.claim_name(known.claim), "result_sha256": digest},
    )


def key_reused(request: EffectRequest) -> RemitError:
    """The error of a key that stands for another request."""
    return RemitError(
        error_reason_pb2.ERROR_REASON_KEY_REUSED,
        f"request_id {request.key} was used before for another request",
    )
