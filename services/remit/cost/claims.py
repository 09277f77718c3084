"""Asks the enforcement services where their attempts stand. They only read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final, Protocol

from google.protobuf.duration_pb2 import Duration

from remit import names
from remit.api.audit.v1 import event_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.cost.messages import usage_of
from remit.cost.reconciliation import Attempt, AttemptState, Place
from remit.cost.reservations import ReservationKey

MAX_KEYS: Final = 256
"""Keys of one question, by the contract."""
SPAN_SIZE: Final = 500
"""Attempts of one page of a span."""

Key = attempt_pb2.AttemptKey


class Batch(Protocol):
    """What both services answer."""

    @property
    def attempts(self) -> Sequence[attempt_pb2.Attempt]:
        """Where they stand."""
        ...

    @property
    def closing_bound(self) -> Duration:
        """After which what ended is closed."""
        ...


class Span(Batch, Protocol):
    """A page of attempts."""

    @property
    def has_more(self) -> bool:
        """Whether the span goes on."""
        ...


class Enforcer(Protocol):
    """One enforcement service."""

    @property
    def name(self) -> str:
        """As reservations name it."""
        ...

    async def these(self, keys: Sequence[Key]) -> Batch:
        """Where attempts stand."""
        ...

    async def between(self, after: Key, through: Key, size: int) -> Span:
        """The next attempts of a span."""
        ...


class InferenceClaims:
    """The claims of model calls."""

    name = "inference"

    def __init__(self, stub: inference_service_pb2_grpc.InferenceServiceStub) -> None:
        self._stub = stub

    async def these(self, keys: Sequence[Key]) -> Batch:
        """See Enforcer."""
        return await self._stub.BatchGetAttempts(
            inference_service_pb2.BatchGetAttemptsRequest(keys=keys)
        )

    async def between(self, after: Key, through: Key, size: int) -> Span:
        """See Enforcer."""
        return await self._stub.ListAttempts(
            inference_service_pb2.ListAttemptsRequest(after=after, through=through, page_size=size)
        )


class ToolClaims:
    """The claims of tool calls."""

    name = "tools"

    def __init__(self, stub: tool_service_pb2_grpc.ToolServiceStub) -> None:
        self._stub = stub

    async def these(self, keys: Sequence[Key]) -> Batch:
        """See Enforcer."""
        return await self._stub.BatchGetAttempts(
            tool_service_pb2.BatchGetAttemptsRequest(keys=keys)
        )

    async def between(self, after: Key, through: Key, size: int) -> Span:
        """See Enforcer."""
        return await self._stub.ListAttempts(
            tool_service_pb2.ListAttemptsRequest(after=after, through=through, page_size=size)
        )


class Claims:
    """The claims of all enforcement services."""

    def __init__(self, *enforcers: Enforcer) -> None:
        self._enforcers = {enforcer.name: enforcer for enforcer in enforcers}

    @property
    def services(self) -> tuple[str, ...]:
        """Who has claims."""
        return tuple(self._enforcers)

    async def these(self, places: Iterable[Place]) -> dict[Place, Attempt]:
        """Those of these attempts that exist. Raises RemitError when a service does not answer."""
        found: dict[Place, Attempt] = {}
        wanted = sorted(place for place in set(places) if is_possible(place.key))
        for name, enforcer in self._enforcers.items():
            keys = [_key(place.key) for place in wanted if place.service == name]
            for first in range(0, len(keys), MAX_KEYS):
                answer = await enforcer.these(keys[first : first + MAX_KEYS])
                found |= _attempts(name, answer)
        return found

    async def between(
        self, service: str, after: ReservationKey | None, through: ReservationKey | None
    ) -> AsyncIterator[dict[Place, Attempt]]:
        """The attempts of a service from one key, not included, to another, page by page."""
        enforcer, place, last = self._enforcers[service], _key(after), _key(through)
        while True:
            page = await enforcer.between(place, last, SPAN_SIZE)
            yield _attempts(service, page)
            if not page.has_more:
                return
            place = page.attempts[-1].key


def is_possible(key: ReservationKey) -> bool:
    """Whether there can be such an attempt."""
    return names.is_name("claim", key.claim)


def attempt_of(service: str, told: attempt_pb2.Attempt, closing_bound_s: float) -> Attempt:
    """What a service told, as plain data."""
    return Attempt(
        place=Place(service, ReservationKey(told.key.claim, told.key.attempt)),
        org=told.org,
        state=AttemptState[attempt_pb2.Attempt.State.Name(told.state).removeprefix("STATE_")],
        is_in_doubt=told.outcome == event_pb2.OUTCOME_IN_DOUBT,
        hold_nanos=told.hold_nanos if told.HasField("hold_nanos") else None,
        cost_nanos=told.cost_nanos,
        used=usage_of(told.used) if told.HasField("used") else None,
        age_s=_seconds(told.age),
        lapsed_s=_seconds(told.lapsed_for) if told.HasField("lapsed_for") else None,
        ended_s=_seconds(told.ended_for) if told.HasField("ended_for") else None,
        is_closed=told.HasField("closed_for"),
        closing_bound_s=closing_bound_s,
    )


def _attempts(service: str, answer: Batch) -> dict[Place, Attempt]:
    bound_s = _seconds(answer.closing_bound)
    attempts = (
        attempt_of(service, told, bound_s)
        for told in answer.attempts
        if told.state != attempt_pb2.Attempt.STATE_UNKNOWN
    )
    return {attempt.place: attempt for attempt in attempts}


def _key(key: ReservationKey | None) -> Key:
    return Key() if key is None else Key(claim=key.claim, attempt=key.attempt)


def _seconds(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()
