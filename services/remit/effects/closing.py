"""Closing what ended: money settled or released, and the outcome in the log.

The gate closes its own attempts right after the caller is answered. Whatever a crash or an outage
leaves behind, the sweeper of any replica finds and closes; both ends are idempotent by
(claim, attempt), so that closing twice changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

from google.rpc import status_pb2

from remit import names, telemetry
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.cost.v1 import cost_service_pb2, cost_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects.batching import Batcher, closing_limits
from remit.effects.claims import Outcome
from remit.effects.metrics import DELAYED, LAPSED, SWEPT
from remit.effects.sealing import Sealing
from remit.effects.settings import EffectSettings
from remit.effects.steps import Close, Unclosed
from remit.effects.store import ClaimStore
from remit.rpc.calls import spawn
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_SETTLE: Final = "/remit.api.cost.v1.CostService/BatchSettleReservations"
_RELEASE: Final = "/remit.api.cost.v1.CostService/BatchReleaseReservations"
_APPEND: Final = "/remit.api.audit.v1.AuditService/AppendOutcomes"
_OUTCOMES: Final = {
    Outcome.SUCCEEDED: event_pb2.OUTCOME_SUCCEEDED,
    Outcome.FAILED: event_pb2.OUTCOME_FAILED,
    Outcome.REFUSED: event_pb2.OUTCOME_REFUSED,
    Outcome.CANCELLED: event_pb2.OUTCOME_CANCELLED,
    Outcome.IN_DOUBT: event_pb2.OUTCOME_IN_DOUBT,
}
# The reservation or the event is final already: an earlier closing got that far.
_ALREADY_CLOSED: Final = frozenset(
    {
        error_reason_pb2.ERROR_REASON_RESERVATION_CLOSED,
        error_reason_pb2.ERROR_REASON_KEY_REUSED,
    }
)

log = telemetry.logger(__name__)


class Closer:
    """Settles or releases holds and appends outcomes, many in one RPC."""

    def __init__(
        self,
        store: ClaimStore,
        cost: cost_service_pb2_grpc.CostServiceStub,
        audit: audit_service_pb2_grpc.AuditServiceStub,
        sealing: Sealing,
        clock: Clock,
        settings: EffectSettings,
    ) -> None:
        self._store = store
        self._cost = cost
        self._audit = audit
        self._sealing = sealing
        self._clock = clock
        self._settings = settings
        self._tasks: set[asyncio.Task[None]] = set()
        self._settlements = Batcher(
            self._settle, name="settlements", **closing_limits(settings, _SETTLE)
        )
        self._releases = Batcher(
            self._release, name="releases", **closing_limits(settings, _RELEASE)
        )
        self._outcomes = Batcher(self._append, name="outcomes", **closing_limits(settings, _APPEND))

    def close_soon(self, ended: Unclosed) -> None:
        """Closes in the background; what fails is left to the sweeper."""
        if len(self._tasks) >= self._settings.effect_max_queue:
            return
        task = spawn(self._close_or_leave(ended), name=f"close-{ended.claim}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Waits until what is being closed is closed."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def sweep(self) -> None:
        """One round: ends lapsed attempts and closes what is ended and not closed."""
        for state, count in (await self._store.lapse()).items():
            if count:
                log.warning("claims_lapsed", state=state, count=count)
                LAPSED.labels(state).inc(count)
        unclosed = await self._store.unclosed(older_than_s=2 * self._settings.effect_sweep_s)
        SWEPT.inc(len(unclosed))
        await asyncio.gather(*(self._close_or_leave(ended) for ended in unclosed))

    async def run(self) -> None:
        """Sweeps until cancelled; an outage of any part only delays it."""
        while True:
            await asyncio.sleep(self._settings.effect_sweep_s)
            try:
                await self.sweep()
            except RemitError as error:
                log.warning("sweep_failed", reason=error.reason_name, message=error.message)

    async def _close_or_leave(self, ended: Unclosed) -> None:
        if telemetry.current() is None:  # the sweeper's: the spans of its trace have ended
            telemetry.enter(telemetry.resumed(ended.trace_id, ended.run))
        try:
            await self.close(ended)
        except RemitError as error:
            DELAYED.labels(error.reason_name).inc()
            log.warning(
                "closing_delayed", claim=ended.claim, reason=error.reason_name, text=error.message
            )

    async def close(self, ended: Unclosed) -> None:
        """Closes one attempt. Raises RemitError if a part of it must be tried again."""
        results = await asyncio.gather(
            self._close_money(ended), self._close_record(ended), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        await self._store.change(Close(ended.claim, ended.attempt, ended.outcome))

    async def _close_money(self, ended: Unclosed) -> None:
        claim = names.claim_name(ended.claim)
        try:
            if ended.outcome is Outcome.REFUSED:
                await self._releases.ask(
                    cost_service_pb2.ReleaseReservationRequest(claim=claim, attempt=ended.attempt)
                )
            else:
                await self._settlements.ask(
                    cost_service_pb2.SettleReservationRequest(
                        claim=claim,
                        attempt=ended.attempt,
                        used=usage_pb2.Usage.FromString(ended.used),
                        whole_hold=ended.outcome is Outcome.IN_DOUBT,
                    )
                )
        except RemitError as error:
            if error.reason not in _ALREADY_CLOSED:
                raise

    async def _close_record(self, ended: Unclosed) -> None:
        told = await self._sealing.unclosed(ended)
        entry = audit_service_pb2.Entry(event=outcome_event(told, self._clock))
        try:
            await self._outcomes.ask(entry)
        except RemitError as error:
            if error.reason not in _ALREADY_CLOSED:
                raise

    async def _settle(
        self, requests: Sequence[cost_service_pb2.SettleReservationRequest]
    ) -> Sequence[RemitError | None]:
        response = await self._cost.BatchSettleReservations(
            cost_service_pb2.BatchSettleReservationsRequest(requests=requests)
        )
        return [_error_or_none(result) for result in response.results]

    async def _release(
        self, requests: Sequence[cost_service_pb2.ReleaseReservationRequest]
    ) -> Sequence[RemitError | None]:
        response = await self._cost.BatchReleaseReservations(
            cost_service_pb2.BatchReleaseReservationsRequest(requests=requests)
        )
        return [_error_or_none(result) for result in response.results]

    async def _append(
        self, entries: Sequence[audit_service_pb2.Entry]
    ) -> Sequence[RemitError | None]:
        response = await self._audit.AppendOutcomes(
            audit_service_pb2.AppendOutcomesRequest(entries=entries)
        )
        return [_error_or_none(result) for result in response.results]


def outcome_event(ended: Unclosed, clock: Clock) -> event_pb2.Event:
    """The log's entry for an end; its id names claim, attempt and outcome.

    An attempt has one outcome, or two where a late result resolves a doubt.
    """
    event = event_pb2.Event(
        event_id=f"{ended.claim}-{ended.attempt}-{ended.outcome.lower()}",
        kind=event_pb2.EVENT_KIND_OUTCOME,
        org=ended.org,
        subject=ended.subject,
        action=ended.action,
        resource=ended.resource,
        run=ended.run,
        claim=names.claim_name(ended.claim),
        attempt=ended.attempt,
        outcome=_OUTCOMES[ended.outcome],
        trace_id=ended.trace_id,
        detail_json=json.dumps(_detail(ended), separators=(",", ":"), sort_keys=True),
    )
    event.event_time.FromDatetime(ended.end_time or clock.now())
    return event


def _detail(ended: Unclosed) -> dict[str, Any]:
    used = usage_pb2.Usage.FromString(ended.used)
    detail: dict[str, Any] = {
        "cost_nanos": ended.cost_nanos,
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "calls": used.calls,
        "decision": ended.decision_id,
        "result_sha256": ended.result_digest.hex(),
    }
    if ended.is_unreadable:
        detail["erased"] = True
    if ended.error:
        error = RemitError.from_status(status_pb2.Status.FromString(ended.error))
        detail |= {"reason": error.reason_name, "message": error.message}
    return detail


def _error_or_none(result: Any) -> RemitError | None:  # noqa: ANN401 - any batch's result
    return RemitError.from_status(result.error) if result.WhichOneof("result") == "error" else None
