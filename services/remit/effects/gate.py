"""`EffectGate.perform`: the one way in which an effect happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.rpc import status_pb2

from remit import names, telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.effects import metrics
from remit.effects.acknowledging import acknowledged, claim_ids
from remit.effects.attempts import AttemptReader
from remit.effects.claims import Admission, Attempt, Ended, Outcome
from remit.effects.closing import Closer
from remit.effects.effect import (
    Callers,
    Effect,
    EffectOutcome,
    EffectRequest,
    EffectResult,
    Permit,
)
from remit.effects.endings import (
    Closing,
    ended_of,
    key_reused,
    known_outcome,
    recorded_outcome,
    result_of,
)
from remit.effects.holds import RollingHold
from remit.effects.permits import Permits, PermitSource
from remit.effects.repeating import check_doubt
from remit.effects.sealing import refusal
from remit.effects.settings import EffectSettings
from remit.effects.steps import Begin, Begun, Finish, Renew, Start
from remit.effects.store import ClaimStore
from remit.rpc.calls import current_call, spawn
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.rpc.parties import caller_label
from remit.telemetry import table
from remit.telemetry.spans import in_span

HOLDER_SHARE: Final = 0.8
"""A holder stops at this share of its lease, counted from before it asked."""
_RENEW_SHARE: Final = 1 / 3
_FIRST_RETRY_S: Final = 0.05
_LONGEST_RETRY_S: Final = 2.0

log = telemetry.logger(__name__)


@dataclass
class _Performance:
    """An effect that is performed here, and who waits for it."""

    body_digest: bytes
    fencing_token: int
    """Of the remit that it was begun under; 0 outside runs."""
    callers: Callers
    task: asyncio.Task[EffectOutcome] | None = None
    waiting: int = 0


class EffectGate:
    """Performs effects of one enforcement service."""

    def __init__(
        self,
        store: ClaimStore,
        permits: PermitSource,
        closer: Closer,
        *,
        clock: Clock,
        ids: IdSource,
        settings: EffectSettings,
    ) -> None:
        self._store = store
        self.attempts = AttemptReader(store.database, settings)
        self._permits = permits
        self._closer = closer
        self._sealing = permits.sealing
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._performing: dict[tuple[str, str, str, str], _Performance] = {}
        self._held_until: dict[tuple[str, int], float] = {}

    async def perform(self, request: EffectRequest, effect: Effect) -> EffectOutcome:
        """Performs the effect once, or returns what was recorded under its key.

        `effect` runs in a task of its own, at most once an attempt, and only after decision,
        reservation and intent are durable. If every caller leaves, it is asked to stop, and what it
        used is still recorded and billed. Raises the effect's own error, also when it is replayed;
        PERMISSION_DENIED, BUDGET_EXHAUSTED and the like when it may not start; KEY_REUSED,
        EFFECT_IN_PROGRESS or EFFECT_IN_DOUBT for what the key stands for already.
        """
        while True:
            performance = self._performance(request, effect)
            try:
                return await self._wait(performance)
            except RemitError as error:
                if not _is_of_an_old_worker(error, performance, request):
                    raise

    async def recorded(self, request: EffectRequest, refusal: RemitError) -> EffectOutcome:
        """What stands under the key of an effect that may not begin now: it may have before.

        Else whoever asks again for what was done would be told that it was not. Raises what
        `perform` does of a known key, and `refusal` where no effect is under way or has ended.
        """
        while self._identity(request) in self._performing:
            performance = self._joined(request)
            try:
                return await self._wait(performance)
            except RemitError as error:
                if not _is_of_an_old_worker(error, performance, request):
                    raise
        known = await self._store.known(_begin(request, self._ids.uuid7(), ""))
        if known is None or known.admission is Admission.REPEAT:
            raise refusal
        return await self._known(request, known)

    def _performance(self, request: EffectRequest, effect: Effect) -> _Performance:
        """The performance to wait for: the one under way under this key, or a new one."""
        identity = self._identity(request)
        if identity in self._performing:
            return self._joined(request)
        token, fencing_token = request.remit_token, request.remit.fencing_token
        callers = Callers(token, fencing_token, current_call().deadline)
        performance = _Performance(request.body_digest, fencing_token, callers)
        work = self._perform(request, effect, callers, current_call().trace_id)
        traced = in_span(f"effect {request.action}", work)
        performance.task = spawn(traced, name=f"effect-{request.key}")
        self._performing[identity] = performance
        performance.task.add_done_callback(lambda task: self._performed(identity, task))
        return performance

    def _joined(self, request: EffectRequest) -> _Performance:
        """The performance under way under this key, with one more who waits for it."""
        performance = self._performing[self._identity(request)]
        if performance.body_digest != request.body_digest:
            raise key_reused(request)
        if performance.callers.stopping.is_set():
            raise RemitError(
                error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS,
                f"{request.resource} is being stopped under this key",
                retry_after_s=_LONGEST_RETRY_S / 4,
            )
        performance.callers.join(
            request.remit_token, request.remit.fencing_token, current_call().deadline
        )
        return performance

    def _identity(self, request: EffectRequest) -> tuple[str, str, str, str]:
        return request.remit.org, request.principal, request.method, request.key

    def _performed(
        self, identity: tuple[str, str, str, str], task: asyncio.Task[EffectOutcome]
    ) -> None:
        self._performing.pop(identity, None)
        if not task.cancelled():
            task.exception()  # it is recorded; a caller that left must not make a warning

    async def acknowledge(
        self, claims: Sequence[str], presenter: Caller.ValueType
    ) -> list[status_pb2.Status]:
        """Keeps the results of these claims no more: who asked for them has recorded them.

        One answer a claim, each on its own: OK also where the result was dropped before,
        RESOURCE_NOT_FOUND for a claim of another presenter as for one that there is not,
        INVALID_STATE for one that has not succeeded. Raises INVALID_REQUEST for what is no batch of
        claims.
        """
        ids = claim_ids(claims)
        outcomes = await self._store.acknowledge(ids, caller_label(presenter))
        return [acknowledged(claim, outcomes) for claim in ids]

    async def run(self) -> None:
        """Renews the leases of what is performed here, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.effect_lease_s * _RENEW_SHARE)
            await asyncio.gather(*(self._renew(*attempt) for attempt in self._store.live()))

    async def drain(self) -> None:
        """Waits for effects in progress and for what they leave to close."""
        while tasks := [p.task for p in self._performing.values() if p.task is not None]:
            await asyncio.wait(tasks)
        await self._closer.drain()

    # ------------------------------------------------------------------------------ one effect

    async def _wait(self, performance: _Performance) -> EffectOutcome:
        assert performance.task is not None  # noqa: S101 - set before anybody can wait
        performance.waiting += 1
        try:
            return await asyncio.shield(performance.task)
        finally:
            performance.waiting -= 1
            if performance.waiting == 0:
                performance.callers.stopping.set()

    async def _perform(
        self, request: EffectRequest, effect: Effect, callers: Callers, trace_id: str
    ) -> EffectOutcome:
        asked = self._clock.monotonic()
        begun = await self._store.begin(_begin(request, self._ids.uuid7(), trace_id))
        if begun.admission is not None:
            return await self._known(request, begun)
        attempt = begun.attempt
        self._held_until[attempt.claim, attempt.attempt] = self._held_from(asked)
        try:
            return await self._perform_attempt(request, effect, attempt, callers, trace_id)
        finally:
            self._store.forget(attempt.claim, attempt.attempt)
            self._held_until.pop((attempt.claim, attempt.attempt), None)

    async def _known(self, request: EffectRequest, begun: Begun) -> EffectOutcome:
        """Answers a call whose key is known already."""
        assert begun.admission is not None  # noqa: S101 - its attempt is not ours
        metrics.KNOWN.labels(request.action, begun.admission.name).inc()
        is_replay = begun.admission is Admission.REPLAY
        telemetry.annotate(table.REPLAYED, is_replay)
        ended = await self._sealing.recorded(begun.attempt) if is_replay else None
        return known_outcome(request, begun, ended)

    async def _perform_attempt(
        self,
        request: EffectRequest,
        effect: Effect,
        attempt: Attempt,
        callers: Callers,
        trace_id: str,
    ) -> EffectOutcome:
        telemetry.annotate(table.CLAIM, names.claim_name(attempt.claim))
        telemetry.annotate(table.ATTEMPT, attempt.attempt)
        closing = Closing(request, attempt, trace_id)
        opened = self._clock.monotonic()
        try:
            await check_doubt(self._store.database, request)
            permits = await self._permits.ask(request, attempt.claim, attempt.attempt, trace_id)
            await self._start(attempt, permits, callers)
            self._check_still_in_time(attempt, permits)
            self._check_still_wanted(callers)
        except RemitError as error:
            await self._refuse(closing, error)
            # Whoever records the refusal can say which attempt it was.
            error.metadata.setdefault("claim", names.claim_name(attempt.claim))
            raise
        hold = RollingHold(
            self._permits, self._store, request, attempt, permits.reservation, callers
        )
        permit = Permit(
            key=f"{attempt.claim}-{attempt.attempt}" if not request.idempotent else attempt.claim,
            claim=names.claim_name(attempt.claim),
            attempt=attempt.attempt,
            callers=callers,
            hold=hold,
        )
        metrics.opening_seconds(request.action).observe(self._clock.monotonic() - opened)
        result = await self._io(request, effect, permit)
        await hold.make_certain(result.used)
        ended = ended_of(result, hold.reservation, hold.bound)
        await self._finish(Finish(attempt.claim, attempt.attempt, permits.seal.end(ended)))
        metrics.ended(request.action, ended.outcome).inc()
        telemetry.annotate(table.OUTCOME, ended.outcome)
        telemetry.annotate(table.COST_NANOS, ended.cost_nanos)
        self._closer.close_soon(closing.ended(ended, permits.decision_id))
        return recorded_outcome(attempt, permits.intent_leaf, ended, replayed=False)

    async def _start(self, attempt: Attempt, permits: Permits, callers: Callers) -> None:
        self._check_still_wanted(callers)
        asked = self._clock.monotonic()
        started = await self._store.change(
            Start(
                attempt.claim,
                attempt.attempt,
                permits.decision_id,
                permits.reservation.name,
                permits.intent_leaf,
                permits.reservation.hold_nanos,
            )
        )
        if not started:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS,
                "the claim lapsed before the effect could start",
            )
        self._held_until[attempt.claim, attempt.attempt] = self._held_from(asked)

    def _check_still_wanted(self, callers: Callers) -> None:
        if callers.stopping.is_set():
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CANCELLED, "the caller left before the effect began"
            )

    def _check_still_in_time(self, attempt: Attempt, permits: Permits) -> None:
        """The last look before the I/O, by a clock that never jumps."""
        now = self._clock.monotonic()
        held_until = self._held_until[attempt.claim, attempt.attempt]
        if now >= min(held_until, permits.valid_until):
            raise RemitError(
                error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS,
                "the claim or its permission ran out before the effect could start",
            )

    async def _refuse(self, closing: Closing, error: RemitError) -> None:
        """Ends an attempt that did no I/O; if the database is away, the sweeper will."""
        status = error.to_status().SerializeToString()
        place = (closing.attempt.claim, closing.attempt.attempt)
        seal = self._sealing.at_hand(closing.request.remit.subject, *place)
        with contextlib.suppress(RemitError):
            if await self._store.change(refusal(*place, error, seal)):
                ended = Ended(Outcome.REFUSED, b"", status, b"", 0, repeatable=False)
                metrics.ended(closing.request.action, ended.outcome).inc()
                self._closer.close_soon(closing.ended(ended, ""))

    async def _io(self, request: EffectRequest, effect: Effect, permit: Permit) -> EffectResult:
        """Runs the effect; asks it to stop when nobody waits, and ends it if it does not."""
        task = asyncio.ensure_future(effect(permit))
        stop = asyncio.ensure_future(permit.stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=self._settings.effect_stop_grace_s)
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=self._settings.effect_stop_grace_s)
        finally:
            stop.cancel()
            task.cancel()
        return result_of(task, request, permit.hold.bound)

    async def _finish(self, finish: Finish) -> None:
        """Commits the result. An outage is waited out: the effect has happened."""
        pause_s = _FIRST_RETRY_S
        while True:
            try:
                # A commit whose end was not told may have taken place all the same.
                recorded = await self._store.change(finish) or await self._store.holds(finish)
            except RemitError as error:
                log.warning("result_not_recorded_yet", claim=finish.claim, text=error.message)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
            else:
                if not recorded:
                    log.error("result_had_no_claim", claim=finish.claim)
                return

    # ---------------------------------------------------------------------------------- leases

    def _held_from(self, asked: float) -> float:
        return asked + HOLDER_SHARE * self._settings.effect_lease_s

    async def _renew(self, claim: str, attempt: int) -> None:
        asked = self._clock.monotonic()
        try:
            renewed = await self._store.change(Renew(claim, attempt))
        except RemitError as error:
            log.warning("lease_not_renewed", claim=claim, text=error.message)
            return
        if renewed and (claim, attempt) in self._held_until:
            self._held_until[claim, attempt] = self._held_from(asked)


def _is_of_an_old_worker(
    error: RemitError, performance: _Performance, request: EffectRequest
) -> bool:
    """A run's new worker may join the call of its old one: only that one is fenced off."""
    fenced = error.reason == error_reason_pb2.ERROR_REASON_FENCED
    return fenced and performance.fencing_token < request.remit.fencing_token


def _begin(request: EffectRequest, claim: str, trace_id: str) -> Begin:
    return Begin(
        claim=claim,
        org=request.remit.org,
        principal=request.principal,
        method=request.method,
        key=request.key,
        body_digest=request.body_digest,
        presenter=caller_label(request.remit.presenter),
        idempotent=request.idempotent,
        subject=request.remit.subject,
        run=request.remit.run,
        action=request.action,
        resource=request.resource,
        trace_id=trace_id,
    )
