"""The stores that the log is compared with, asked over contracts. They only answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from remit import names
from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from remit.api.audit.v1 import event_pb2
from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from remit.api.effects.v1 import attempt_pb2
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.audit.completeness import Attempt, Call, Key, Paid
from remit.rpc.mesh import Mesh

MOST_KEYS: Final = 256
"""Attempts asked for at once, by the contract."""

Claims: TypeAlias = dict[Key, Attempt]
EventKey: TypeAlias = tuple[str, int]
"""Run and sequence of an event of a journal."""


class Span(Protocol):
    """A page of attempts, of either enforcement service."""

    @property
    def attempts(self) -> Sequence[attempt_pb2.Attempt]:
        """Where they stand."""
        ...

    @property
    def closing_bound(self) -> Duration:
        """After which what ended is closed."""
        ...

    @property
    def has_more(self) -> bool:
        """Whether the span goes on."""
        ...

    @property
    def read_time(self) -> Timestamp:
        """By the service's database."""
        ...


class Enforcer(Protocol):
    """One enforcement service."""

    @property
    def name(self) -> str:
        """As the ledger names it."""
        ...

    async def span(self, after: Key | None, through: Key | None, size: int) -> Span:
        """The next attempts of a span."""
        ...

    async def known(self, keys: Sequence[Key]) -> set[Key]:
        """Those of at most MOST_KEYS attempts that exist."""
        ...


class ModelCalls:
    """The claims of model calls."""

    name = "inference"

    def __init__(self, stub: inference_service_pb2_grpc.InferenceServiceStub) -> None:
        self._stub = stub

    async def span(self, after: Key | None, through: Key | None, size: int) -> Span:
        """See Enforcer."""
        return await self._stub.ListAttempts(
            inference_service_pb2.ListAttemptsRequest(
                after=_message(after), through=_message(through), page_size=size
            )
        )

    async def known(self, keys: Sequence[Key]) -> set[Key]:
        """See Enforcer."""
        asked = [_message(key) for key in keys]
        answer = await self._stub.BatchGetAttempts(
            inference_service_pb2.BatchGetAttemptsRequest(keys=asked)
        )
        return _existing(answer.attempts)


class ToolCalls:
    """The claims of tool calls."""

    name = "tools"

    def __init__(self, stub: tool_service_pb2_grpc.ToolServiceStub) -> None:
        self._stub = stub

    async def span(self, after: Key | None, through: Key | None, size: int) -> Span:
        """See Enforcer."""
        return await self._stub.ListAttempts(
            tool_service_pb2.ListAttemptsRequest(
                after=_message(after), through=_message(through), page_size=size
            )
        )

    async def known(self, keys: Sequence[Key]) -> set[Key]:
        """See Enforcer."""
        asked = [_message(key) for key in keys]
        answer = await self._stub.BatchGetAttempts(
            tool_service_pb2.BatchGetAttemptsRequest(keys=asked)
        )
        return _existing(answer.attempts)


class LedgerPage(NamedTuple):
    """What the ledger says of a span, and its last key where there is more."""

    paid: dict[Key, Paid]
    last: Key | None


class ClaimsPage(NamedTuple):
    """What a service says of a span, and its last key where there is more."""

    attempts: Claims
    last: Key | None


class CallsPage(NamedTuple):
    """Calls of journals, and where to go on if there is more."""

    calls: list[Call]
    next: EventKey | None


@dataclass(frozen=True)
class StoresBeside:
    """All of them. Every method raises RemitError when a service does not answer."""

    enforcers: Sequence[Enforcer]
    cost: cost_report_service_pb2_grpc.CostReportServiceStub
    agent: agent_service_pb2_grpc.AgentServiceStub

    @classmethod
    def of(cls, mesh: Mesh) -> StoresBeside:
        """Those of a mesh."""
        return cls(
            enforcers=(
                ModelCalls(mesh.stub(inference_service_pb2_grpc.InferenceServiceStub)),
                ToolCalls(mesh.stub(tool_service_pb2_grpc.ToolServiceStub)),
            ),
            cost=mesh.stub(cost_report_service_pb2_grpc.CostReportServiceStub),
            agent=mesh.stub(agent_service_pb2_grpc.AgentServiceStub),
        )

    async def times(self) -> list[datetime]:
        """What the clock of each store's database says."""
        ledger = await self.cost.ListReservations(_reservations(None, None, 1))
        journal = await self.agent.ListRunCalls(agent_service_pb2.ListRunCallsRequest(page_size=1))
        claims = [(await each.span(None, None, 1)).read_time for each in self.enforcers]
        return [_moment(each) for each in (ledger.read_time, journal.read_time, *claims)]

    async def ledger(self, after: Key | None, through: Key | None, size: int) -> LedgerPage:
        """The next reservations of a span."""
        page = await self.cost.ListReservations(_reservations(after, through, size))
        paid = {Key(record.key.claim, record.key.attempt): _paid(record) for record in page.records}
        return LedgerPage(paid, _last(paid, has_more=page.has_more))

    async def claims(
        self, after: Key | None, through: Key | None, size: int
    ) -> AsyncIterator[ClaimsPage]:
        """The next attempts of a span, of each service in turn."""
        for enforcer in self.enforcers:
            page = await enforcer.span(after, through, size)
            attempts = {
                Key(told.key.claim, told.key.attempt): attempt_of(enforcer.name, told, page)
                for told in page.attempts
            }
            yield ClaimsPage(attempts, _last(attempts, has_more=page.has_more))

    async def calls(self, after: EventKey | None, size: int) -> CallsPage:
        """The next calls of journals: those among `size` events."""
        request = agent_service_pb2.ListRunCallsRequest(page_size=size)
        if after is not None:
            request.after.run, request.after.sequence = after
        page = await self.agent.ListRunCalls(request)
        following = (page.last.run, page.last.sequence) if page.has_more else None
        return CallsPage([_call(call) for call in page.calls], following)

    async def known(self, keys: Mapping[Key, str]) -> set[Key]:
        """Those of these attempts, by service, that exist."""
        found: set[Key] = set()
        for enforcer in self.enforcers:
            own = sorted(key for key, service in keys.items() if service == enforcer.name)
            for first in range(0, len(own), MOST_KEYS):
                found |= await enforcer.known(own[first : first + MOST_KEYS])
        return found


def attempt_of(service: str, told: attempt_pb2.Attempt, page: Span) -> Attempt:
    """What a service told, as plain data."""
    outcome = event_pb2.Outcome.Name(told.outcome).removeprefix("OUTCOME_")
    return Attempt(
        service=service,
        org=told.org,
        run=told.run,
        state=attempt_pb2.Attempt.State.Name(told.state).removeprefix("STATE_"),
        outcome="" if told.outcome == event_pb2.OUTCOME_UNSPECIFIED else outcome,
        intent_leaf=told.intent_leaf_index if told.HasField("intent_leaf_index") else None,
        began=_moment(told.create_time),
        age_s=_seconds(told.age),
        lapsed_s=_seconds(told.lapsed_for) if told.HasField("lapsed_for") else None,
        ended_s=_seconds(told.ended_for) if told.HasField("ended_for") else None,
        is_closed=told.HasField("closed_for"),
        closing_bound_s=_seconds(page.closing_bound),
    )


def _reservations(
    after: Key | None, through: Key | None, size: int
) -> cost_report_service_pb2.ListReservationsRequest:
    return cost_report_service_pb2.ListReservationsRequest(
        after=_message(after), through=_message(through), page_size=size
    )


def _paid(record: cost_report_service_pb2.ReservationRecord) -> Paid:
    reservation = record.reservation
    return Paid(
        service=record.service,
        org="/".join(reservation.account.split("/")[:2]),
        posted_nanos=reservation.posted_nanos,
        began=_moment(reservation.create_time),
    )


def _call(call: agent_service_pb2.RunCall) -> Call:
    is_model = names.is_name("model", call.resource)
    return Call(
        run=call.key.run,
        sequence=call.key.sequence,
        org=call.org,
        service=ModelCalls.name if is_model else ToolCalls.name,
        claim=call.claim,
        intent_leaf=call.intent_leaf_index if call.HasField("intent_leaf_index") else None,
        began=_moment(call.event_time),
    )


def _last(page: Mapping[Key, object], *, has_more: bool) -> Key | None:
    return max(page) if has_more else None


def _message(key: Key | None) -> attempt_pb2.AttemptKey:
    return attempt_pb2.AttemptKey(claim=key.claim, attempt=key.attempt) if key else _NO_KEY


_NO_KEY: Final = attempt_pb2.AttemptKey()


def _existing(attempts: Sequence[attempt_pb2.Attempt]) -> set[Key]:
    return {
        Key(each.key.claim, each.key.attempt)
        for each in attempts
        if each.state != attempt_pb2.Attempt.STATE_UNKNOWN
    }


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(UTC)


def _seconds(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()
