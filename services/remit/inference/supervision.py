"""Sees to it that a generation goes on only with money, permission and time.

Beside each generation one task asks for more money before the lease ends, asks policy again before
its last answer is too old, and looks at the deadline. It asks one thing at a time. What is refused,
or not answered in time, ends the generation inside what is held.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1.usage_pb2 import Usage
from remit.effects import Hold, Permit
from remit.inference.cuts import Cause, Cut
from remit.inference.engine import Engine
from remit.inference.lease import Lease
from remit.pricing import affordable_output_tokens
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

ANSWER_MARGIN_S: Final = 1.0
"""Before its deadline a caller must have the answer, and the claim its result."""
_MARGIN_SHARE: Final = 0.25
"""Of the caller's time, where that is short."""
_RECHECK_SHARE: Final = 2 / 3
"""Policy is asked again before its last answer is too old, so that an outage may pass."""
_PAUSE_AFTER_OUTAGE_S: Final = 0.25
_PAUSE_AFTER_REFUSAL_S: Final = 1.0
_MOST_LEASES: Final = 1_000
"""Of one generation: each is a transfer or two in the ledger."""
_REFUSED: Final = frozenset(
    {reasons.ERROR_REASON_PERMISSION_DENIED, reasons.ERROR_REASON_REMIT_INVALID}
)


@dataclass(frozen=True)
class Terms:
    """What settings say of generations that go on."""

    lease_tokens: int
    lease_s: float
    lease_wait_s: float
    recheck_s: float


def lease_of(engine: Engine, whole: Usage, terms: Terms) -> Lease:
    """The lease of a generation that `whole` bounds.

    All of it from the start, where stopping the engine would not stop its bill.
    """
    most = whole.output_tokens
    if not engine.stop_stops_bill:
        return Lease(most, step=most, unsent=0)
    # What waits for its reader cannot run away from the ledger.
    ahead_s = terms.lease_s if engine.unsent_tokens else 0.0
    step = max(terms.lease_tokens, -(-most // _MOST_LEASES))
    return Lease(most, step, engine.unsent_tokens, ahead_s)


def with_output(whole: Usage, output_tokens: int) -> Usage:
    """A bound with so many output tokens."""
    bound = Usage()
    bound.CopyFrom(whole)
    bound.output_tokens = output_tokens
    return bound


@dataclass
class Permission:
    """How old policy's last answer is; plain arithmetic over monotonic seconds."""

    asked: float
    """When the question was asked that it allowed."""
    recheck_s: float

    @property
    def due(self) -> float:
        """When policy is asked again."""
        return self.asked + _RECHECK_SHARE * self.recheck_s

    @property
    def lapse(self) -> float:
        """When the answer is too old to act on."""
        return self.asked + self.recheck_s


class Supervision:
    """Over one generation."""

    def __init__(
        self, permit: Permit, lease: Lease, whole: Usage, *, clock: Clock, terms: Terms
    ) -> None:
        """`whole` is the bound of the generation with all of its output tokens."""
        self._permit = permit
        self._hold: Hold = permit.hold
        self._lease = lease
        self._whole = whole
        self._clock = clock
        self._terms = terms
        began = clock.monotonic()
        self._permission = Permission(began, terms.recheck_s)
        self._margin_s = min(ANSWER_MARGIN_S, _MARGIN_SHARE * max(permit.deadline - began, 0.0))
        self._not_before = began
        self._failure: RemitError | None = None
        """Why the last question had no good answer."""
        self._news = asyncio.Event()
        self._answered = asyncio.Event()
        lease.grant(permit.hold.bound.output_tokens)

    async def cover(self, came: int) -> None:
        """Told that so many tokens came, or are about to: returns when they are paid for.

        A stream that outran its lease is not read on meanwhile. Raises Cut.
        """
        is_first = not self._lease.came
        self._lease.grow(came, self._clock.monotonic())
        if is_first or self._lease.wants_more:
            self._news.set()
        if self._lease.is_spent:
            await self._await_money()

    async def watch(self) -> Cut:
        """Why the generation must end; asks and waits until it must."""
        while True:
            self._news.clear()
            now = self._clock.monotonic()
            cut = self._overdue(now)
            if cut is not None:
                return cut
            try:
                await self._ask_if_due(now)
            except Cut as refused:
                return refused
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_next_s()):
                    await self._news.wait()

    # ------------------------------------------------------------------------------------ asking

    async def _ask_if_due(self, now: float) -> None:
        wants_money = self._lease.wants_more
        if now < self._not_before or not (wants_money or now >= self._permission.due):
            return
        try:
            async with asyncio.timeout(self._end(now) - now):
                await (self._extend() if wants_money else self._hold.recheck())
        except TimeoutError:
            self._failed(_unanswered("policy and cost did not answer in time"))
        except RemitError as error:
            self._failed(error)
        else:
            self._failure = None
            self._permission.asked = now
        self._answered.set()

    async def _extend(self) -> None:
        try:
            await self._hold.extend(with_output(self._whole, self._lease.next()))
        except RemitError as error:
            if error.reason != reasons.ERROR_REASON_BUDGET_EXHAUSTED:
                raise
            await self._settle_for_less(error)
        self._lease.grant(self._hold.bound.output_tokens)

    async def _settle_for_less(self, refusal: RemitError) -> None:
        """Asks for as many tokens as there is money for. Raises the refusal where there is none."""
        money_nanos = self._hold.nanos + int(refusal.metadata.get("left_nanos", "0"))
        affordable = affordable_output_tokens(self._hold.price, self._whole, money_nanos)
        less = self._lease.settle_for(affordable) if affordable is not None else None
        if less is None:
            raise refusal
        await self._hold.extend(with_output(self._whole, less))

    def _failed(self, error: RemitError) -> None:
        """Notes a bad answer. Raises Cut where it is final."""
        if error.reason in _REFUSED:
            raise Cut(Cause.PERMISSION, error)
        if error.reason == reasons.ERROR_REASON_FENCED:
            raise Cut(Cause.FENCED, error)
        is_answer = error.retryable or error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
        # What another service did not do in time is no end of this call: it may be asked for again.
        self._failure = error if is_answer else _unanswered(error.message)
        pause_s = _PAUSE_AFTER_REFUSAL_S if self._is_refused else _PAUSE_AFTER_OUTAGE_S
        self._not_before = self._clock.monotonic() + pause_s

    @property
    def _is_refused(self) -> bool:
        return (
            self._failure is not None
            and self._failure.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
        )

    async def _await_money(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._terms.lease_wait_s):
                while self._lease.is_spent and not self._is_refused:
                    self._answered.clear()
                    await self._answered.wait()
        if self._lease.is_spent:
            error = self._failure or _unanswered("the ledger did not answer in time")
            raise Cut(Cause.BUDGET if self._is_refused else Cause.UNANSWERED, error)

    # ------------------------------------------------------------------------------------- time

    def _overdue(self, now: float) -> Cut | None:
        if self._lease.came and now >= self._answer_by:
            text = "the deadline of the call came before the end of the turn"
            return Cut(Cause.DEADLINE, RemitError(reasons.ERROR_REASON_DEADLINE_EXCEEDED, text))
        if now >= self._permission.lapse:
            error = self._failure or _unanswered("policy did not answer in time")
            return Cut(Cause.UNANSWERED, error)
        return None

    @property
    def _answer_by(self) -> float:
        return self._permit.deadline - self._margin_s

    def _end(self, now: float) -> float:
        """Until when the generation may go on without another answer of policy."""
        end = self._permission.lapse
        return min(end, self._answer_by) if self._lease.came else max(end, now)

    def _until_next_s(self) -> float:
        """Seconds until there is something to look at, if nothing comes before."""
        now = self._clock.monotonic()
        asks = now if self._lease.wants_more else self._permission.due
        return max(min(max(asks, self._not_before), self._end(now)) - now, 0.0)


def _unanswered(text: str) -> RemitError:
    return RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, text)
