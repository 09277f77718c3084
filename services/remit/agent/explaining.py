"""Explaining a run: every part is asked for what it knows, and one that is away is named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from remit.agent.effect_records import EffectRecords, LoggedEvent, Place, Record
from remit.agent.reading import StoredRun
from remit.agent.standing import Standing
from remit.agent.story import Known, Story, story_of, told, without_content
from remit.api.agent.v1 import agent_service_pb2, explanation_pb2, run_pb2
from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    event_pb2,
)
from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from remit.api.effects.v1 import attempt_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.subject_keys import is_erased

DEFAULT_PAGE: Final = 200
MAX_PAGE: Final = 500
MOST_RECORDS: Final = 20_000
"""Events of a journal that are told, and records of each part: far more than 100 steps make."""
_LOG_PAGE: Final = 200
_LEDGER_PAGE: Final = 1000
_KEYS: Final = 256
"""Attempts asked for at once, by the contract."""

T = TypeVar("T")
Response = agent_service_pb2.ExplainRunResponse
Attempts = Sequence[attempt_pb2.Attempt]


@dataclass(frozen=True)
class Neighbours:
    """Who knows more of a run's effects."""

    audit: audit_query_service_pb2_grpc.AuditQueryServiceStub
    cost: cost_report_service_pb2_grpc.CostReportServiceStub
    inference: inference_service_pb2_grpc.InferenceServiceStub
    tools: tool_service_pb2_grpc.ToolServiceStub


class _Missing:
    """Collects the parts that did not answer."""

    def __init__(self) -> None:
        self.parts: list[explanation_pb2.MissingPart] = []

    async def asked(self, part: str, answer: Awaitable[T], without: T) -> T:
        """The answer, or `without`, and the part is named."""
        try:
            return await answer
        except RemitError as error:
            if error.reason == reasons.ERROR_REASON_TOO_LARGE:
                raise
            self.add(part, error)
            return without

    def add(self, part: str, error: RemitError) -> None:
        """Names a part and why it is missing."""
        self.parts.append(
            explanation_pb2.MissingPart(part=part, reason=error.reason_name, message=error.message)
        )


@dataclass
class _Log:
    """What the log has of a run, oldest first, and the months, by name, of which it has no more."""

    events: list[LoggedEvent] = field(default_factory=list)
    archived: dict[str, event_pb2.ArchivedMonth] = field(default_factory=dict)


@dataclass(frozen=True)
class Explainer:
    """Explains runs."""

    standing: Standing
    neighbours: Neighbours

    async def explain(
        self, request: agent_service_pb2.ExplainRunRequest, stored: StoredRun, remit_token: str
    ) -> Response:
        """A page of the story of a run that its caller may see.

        Raises INVALID_REQUEST for a page that there is not, TOO_LARGE for a run with more records
        than MOST_RECORDS, DATA_CORRUPT for a journal that was changed.
        """
        first, size = page_of(request)
        missing = _Missing()
        journal = await self._journal(stored.run, missing)
        log = _Log()
        records = await self._records(stored, journal, remit_token, missing, log)
        story = story_of(Known(stored.run, journal, records))
        response = _response(stored.run, story, missing, first, size)
        response.archived_months.extend(log.archived[name] for name in sorted(log.archived))
        return response

    async def _journal(self, run: run_pb2.Run, missing: _Missing) -> list[run_pb2.RunEvent]:
        """What the journal tells; nothing of a run whose subject was erased."""
        try:
            return await self._told(run)
        except RemitError as error:
            if not is_erased(error):
                raise
            missing.add("journal", error)
            return []

    async def _told(self, run: run_pb2.Run) -> list[run_pb2.RunEvent]:
        events: list[run_pb2.RunEvent] = []
        async for event in self.standing.events(run.name, run.last_sequence):
            slim = told(event)
            if slim is not None:
                events.append(slim)
                _check_size(run.name, len(events))
        return events

    async def _records(
        self,
        stored: StoredRun,
        journal: Sequence[run_pb2.RunEvent],
        remit_token: str,
        missing: _Missing,
        log: _Log,
    ) -> EffectRecords:
        name = stored.run.name
        _, ledger = await asyncio.gather(
            missing.asked("audit", self._read(log, name, remit_token), None),
            missing.asked("cost", self._ledger(name, stored.org), None),
        )
        logged = log.events
        known = EffectRecords(logged, ledger)
        claims = await self.standing.reader.named_claims(name) if not journal else []
        places = sorted(known.places | _named(journal) | {(claim, 1) for claim in claims})
        none: list[attempt_pb2.Attempt] = []
        inference, tools = await asyncio.gather(
            missing.asked("inference", self._model_calls(places), none),
            missing.asked("tools", self._tool_calls(places), none),
        )
        return EffectRecords(logged, ledger, {"inference": inference, "tools": tools})

    async def _read(self, log: _Log, run: str, remit_token: str) -> None:
        """Read what the log has of a run; the read is in the log itself."""
        request = audit_query_service_pb2.ListRunEventsRequest(
            remit=remit_token, run=run, page_size=_LOG_PAGE
        )
        found: list[LoggedEvent] = []
        while True:
            page = await self.neighbours.audit.ListRunEvents(request)
            log.archived.update({month.month: month for month in page.archived_months})
            found += page.events
            _check_size(run, len(found))
            if not page.has_more:
                log.events = found[::-1]
                return
            request.before_leaf_index = found[-1].leaf_index

    async def _ledger(self, run: str, org: str) -> list[Record] | None:
        request = cost_report_service_pb2.ListReservationsRequest(
            run=run, org=org, page_size=_LEDGER_PAGE
        )
        found: list[Record] = []
        while True:
            page = await self.neighbours.cost.ListReservations(request)
            found += page.records
            _check_size(run, len(found))
            if not page.has_more:
                return found
            request.after.CopyFrom(found[-1].key)

    async def _model_calls(self, places: Sequence[Place]) -> list[attempt_pb2.Attempt]:
        ask, make = self.neighbours.inference.BatchGetAttempts, inference_service_pb2
        return await _in_batches(places, lambda keys: ask(make.BatchGetAttemptsRequest(keys=keys)))

    async def _tool_calls(self, places: Sequence[Place]) -> list[attempt_pb2.Attempt]:
        ask, make = self.neighbours.tools.BatchGetAttempts, tool_service_pb2
        return await _in_batches(places, lambda keys: ask(make.BatchGetAttemptsRequest(keys=keys)))


async def _in_batches(
    places: Sequence[Place],
    ask: Callable[[Sequence[attempt_pb2.AttemptKey]], Awaitable[Any]],
) -> list[attempt_pb2.Attempt]:
    found: list[attempt_pb2.Attempt] = []
    for first in range(0, len(places), _KEYS):
        keys = [
            attempt_pb2.AttemptKey(claim=claim, attempt=attempt)
            for claim, attempt in places[first : first + _KEYS]
        ]
        found += (await ask(keys)).attempts
    return found


def _named(journal: Sequence[run_pb2.RunEvent]) -> set[Place]:
    """The first attempts of the claims that a journal names: there is always one."""
    ended = [getattr(event, event.WhichOneof("event") or "ended") for event in journal]
    return {
        (each.claim, 1)
        for each in ended
        if isinstance(each, run_pb2.ModelCallEnded | run_pb2.ToolCallEnded) and each.claim
    }


def _check_size(run: str, count: int) -> None:
    if count > MOST_RECORDS:
        raise RemitError(
            reasons.ERROR_REASON_TOO_LARGE,
            f"{run} has more than {MOST_RECORDS} records of one kind to explain",
        )


def page_of(request: agent_service_pb2.ExplainRunRequest) -> tuple[int, int]:
    """Entries to skip, and how many follow. Raises INVALID_REQUEST."""
    violations = []
    if request.page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
    token = request.page_token
    if token and not (token.isascii() and token.isdecimal() and 0 < int(token) <= 2**31):
        violations.append(Violation("page_token", "is not a token that this run gave out"))
    if violations:
        raise invalid_request(violations)
    return int(token or 0), min(request.page_size or DEFAULT_PAGE, MAX_PAGE)


def _response(run: run_pb2.Run, story: Story, missing: _Missing, first: int, size: int) -> Response:
    last = first + size
    return Response(
        run=without_content(run),
        entries=story.entries[first:last],
        next_page_token=str(last) if last < len(story.entries) else "",
        bill=story.bill,
        trace_ids=story.trace_ids,
        missing=missing.parts,
        total_entries=len(story.entries),
    )
