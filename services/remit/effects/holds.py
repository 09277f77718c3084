"""What an effect holds while it goes on, and how it asks for more.

An effect whose cost grows with what it does may begin with the money for its first part. Each time
it asks for more, policy is asked first whether it still may go on. Nothing here decides when: the
effect knows how far it came.
"""

from __future__ import annotations

import contextlib

from remit import names, telemetry
from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects import metrics
from remit.effects.approval import exact_action
from remit.effects.claims import Attempt
from remit.effects.effect import Callers, EffectRequest
from remit.effects.permits import PermitSource
from remit.effects.steps import Extend
from remit.effects.store import ClaimStore
from remit.pricing import cost_nanos
from remit.rpc.errors import RemitError

log = telemetry.logger(__name__)


class RollingHold:
    """The hold of one attempt. It extends one request at a time."""

    def __init__(
        self,
        permits: PermitSource,
        store: ClaimStore,
        request: EffectRequest,
        attempt: Attempt,
        reservation: reservation_pb2.Reservation,
        callers: Callers,
    ) -> None:
        self._permits = permits
        self._store = store
        self._request = request
        self._attempt = attempt
        self._callers = callers
        self._began_with = reservation
        self._unanswered: usage_pb2.Usage | None = None
        """Asked for, and whether it is held is not known."""
        self.reservation = reservation
        self.bound = request.bound

    @property
    def price(self) -> reservation_pb2.Price:
        """The price that was pinned when the hold began."""
        return self.reservation.price

    @property
    def nanos(self) -> int:
        """Money held, in nano-USD."""
        return self.reservation.hold_nanos

    async def recheck(self) -> None:
        """Asks policy whether the effect may go on.

        Raises PERMISSION_DENIED or FENCED if not, or why there is no answer.
        """
        action = exact_action(self._request, self._attempt.claim, self._began_with)
        await self._permits.recheck(
            self._request, self._attempt.attempt, self._callers.remit_token, action
        )

    async def extend(self, bound: usage_pb2.Usage) -> None:
        """Asks for permission and then for money: the cost of `bound`, which covers the old one.

        Raises what either of the two refuses it with, BUDGET_EXHAUSTED if there is no money for
        it; what is held then stays.
        """
        try:
            await self.recheck()
            await self._ask(bound)
        except RemitError as error:
            metrics.extensions(self._request.action, error.reason_name).inc()
            raise
        metrics.extensions(self._request.action, "HELD").inc()
        await self._note()

    async def make_certain(self, used: usage_pb2.Usage) -> None:
        """Learns what is held, where `used` costs more than is known and a request had no answer.

        Cost may have extended without our hearing of it. What the caller is told must be what is
        posted.
        """
        with contextlib.suppress(RemitError):
            if self._unanswered is not None and cost_nanos(self.price, used) > self.nanos:
                await self._ask(self._unanswered)

    async def _ask(self, bound: usage_pb2.Usage) -> None:
        self._unanswered = bound
        try:
            reservation = await self._permits.extend(
                self._attempt.claim, self._attempt.attempt, bound
            )
        except RemitError as error:
            if error.reason == error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED:
                self._unanswered = None
            if error.reason == error_reason_pb2.ERROR_REASON_RESERVATION_CLOSED:
                raise self._lapsed() from error
            raise
        self._unanswered = None
        self.reservation, self.bound = reservation, bound

    async def _note(self) -> None:
        """Writes to the claim what the ledger holds for it.

        Raises EFFECT_IN_PROGRESS if the claim is ours no more. An outage costs the note alone: the
        ledger knows what it holds, and the next note is about all of it.
        """
        claim, attempt = self._attempt.claim, self._attempt.attempt
        try:
            ours = await self._store.change(Extend(claim, attempt, self.nanos))
        except RemitError as error:
            log.warning(
                "hold_not_recorded", claim=claim, reason=error.reason_name, text=error.message
            )
            return
        if not ours:
            raise self._lapsed()

    def _lapsed(self) -> RemitError:
        return RemitError(
            error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS,
            f"{names.claim_name(self._attempt.claim)} lapsed while its effect went on",
        )
