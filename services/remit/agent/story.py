"""A run's story: its journal, the claims, the ledger and the log, joined by claim and attempt.

Plain data in, plain data out. Nothing that any of them knows is left out: what the journal names
stands where it stands in the journal, and an effect or a record that the journal does not name has
an entry of its own, in its place in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf import timestamp_pb2
from google.rpc import status_pb2

from remit.agent import telling
from remit.agent.billing import bill_of
from remit.agent.effect_records import EffectRecords, Effects, effects_of
from remit.agent.journal import AGENT_PREFIX, header_of
from remit.api.agent.v1 import explanation_pb2, run_pb2
from remit.api.audit.v1 import audit_query_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

Entry = explanation_pb2.ExplainedEntry
LoggedEvent = audit_query_service_pb2.LoggedEvent
Timestamp = timestamp_pb2.Timestamp
_IN_DOUBT: Final = RemitError(reasons.ERROR_REASON_EFFECT_IN_DOUBT, "").reason_name
UNTOLD: Final = frozenset({"text_delta", "stage_started"})
"""Events that say how far something is, and not that something happened."""


@dataclass(frozen=True)
class Known:
    """What each part says of a run."""

    run: run_pb2.Run
    journal: Sequence[run_pb2.RunEvent]
    """Up to `run.last_sequence`, as `told` leaves it."""
    records: EffectRecords


@dataclass(frozen=True)
class Story:
    """The whole explanation."""

    entries: list[Entry]
    bill: explanation_pb2.ExplainedBill
    trace_ids: list[str]


def told(event: run_pb2.RunEvent) -> run_pb2.RunEvent | None:
    """An event without what may be large; None for one that the story does not tell."""
    kind = event.WhichOneof("event")
    if kind in UNTOLD:
        return None
    slim = run_pb2.RunEvent()
    slim.CopyFrom(event)
    if kind == "tool_call_started":
        slim.tool_call_started.ClearField("arguments")
    elif kind == "tool_call_ended":
        slim.tool_call_ended.ClearField("result")
    elif kind in {"created", "ended"}:
        getattr(slim, kind).run.CopyFrom(without_content(getattr(event, kind).run))
    return slim


def without_content(run: run_pb2.Run) -> run_pb2.Run:
    """A run without its task, context and result."""
    slim = header_of(run)
    slim.ClearField("result")
    return slim


def story_of(known: Known) -> Story:
    """Joins everything."""
    effects = effects_of(known.records)
    teller = _Teller()
    for event in known.journal:
        teller.take(event)
    named = _attached(teller, effects)
    unnamed = [
        *(_effect_entry(claim, effects) for claim in effects.by_claim if claim not in named),
        *(_record_entry(logged) for logged in effects.others),
    ]
    entries = list(_in_time(teller.entries, unnamed))
    for number, entry in enumerate(entries, 1):
        entry.number = number
    return Story(
        entries=entries,
        bill=bill_of(known.run, teller.costs, teller.sub_runs_nanos, effects),
        trace_ids=_trace_ids(known.records.logged),
    )


@dataclass
class _Teller:
    """Makes entries of the journal's events: one for a call, from its start to its end."""

    entries: list[Entry] = field(default_factory=list)
    claims: dict[str, Entry] = field(default_factory=dict)
    """The entry that named each claim first."""
    costs: dict[str, int] = field(default_factory=dict)
    """What the journal says that each claim cost, in nano-USD; without a claim under ''."""
    sub_runs_nanos: int = 0
    _open: dict[tuple[int, str], Entry] = field(default_factory=dict)
    """Calls that have not ended, by step and id; a model's by its step alone."""

    def take(self, event: run_pb2.RunEvent) -> None:
        """Adds the next event."""
        kind = event.WhichOneof("event") or ""
        if kind in UNTOLD:
            return
        if kind in _BEGINS:
            self._leave_in_doubt(event)
            self._begin(event, *_BEGINS[kind](event))
        elif kind == "sub_run_started":
            self._name_sub_run(event)
        elif kind == "model_call_ended":
            self._end_model_call(event)
        elif kind == "tool_call_ended":
            self._end_tool_call(event)
        else:
            self._add(event, _MOMENTS.get(kind, Entry.KIND_RECORD), telling.moment(event))

    def _add(self, event: run_pb2.RunEvent, kind: Entry.Kind.ValueType, text: str) -> Entry:
        entry = Entry(kind=kind, text=text, start_time=event.event_time, sequence=event.sequence)
        if event.HasField("waiting"):
            entry.reason = _reason(event.waiting.reason)
        elif event.HasField("model_fallback"):
            entry.step, entry.resource = event.model_fallback.step, event.model_fallback.to_model
        elif event.HasField("ended") and event.ended.run.HasField("error"):
            entry.reason = _reason(event.ended.run.error)
        self.entries.append(entry)
        return entry

    def _begin(
        self, event: run_pb2.RunEvent, place: tuple[int, str], resource: str, text: str
    ) -> Entry:
        entry = self._add(event, _kind_of_call(resource), text)
        entry.step, entry.resource = place[0], resource
        self._open[place] = entry
        return entry

    def _leave_in_doubt(self, event: run_pb2.RunEvent) -> None:
        """Says of the call that this one repeats that nobody knows its end."""
        started = event.tool_call_started
        before = self._open.get((started.step, started.call_id))
        if started.repeats_claim and before is not None:
            before.text = telling.in_doubt(started.tool)
            before.reason = _IN_DOUBT
            self.claims.setdefault(started.repeats_claim, before)

    def _ended(
        self, event: run_pb2.RunEvent, place: tuple[int, str], resource: str, text: str
    ) -> Entry:
        """The entry of the call that ended; one of its own where its start is not known."""
        entry = self._open.pop(place, None)
        if entry is None:
            entry = self._begin(event, place, resource, text)
            del self._open[place]
        entry.text, entry.end_sequence = text, event.sequence
        entry.end_time.CopyFrom(event.event_time)
        return entry

    def _name_sub_run(self, event: run_pb2.RunEvent) -> None:
        started = event.sub_run_started
        entry = self._open.get((started.step, started.call_id))
        if entry is None:
            entry = self._add(event, Entry.KIND_SUB_RUN, telling.sub_run(started))
            entry.step = started.step
            self._open[started.step, started.call_id] = entry
        entry.run = started.run

    def _end_model_call(self, event: run_pb2.RunEvent) -> None:
        ended = event.model_call_ended
        entry = self._ended(event, (ended.step, ""), ended.model, telling.model_call(ended))
        self._account(entry, ended)

    def _end_tool_call(self, event: run_pb2.RunEvent) -> None:
        ended = event.tool_call_ended
        place = (ended.step, ended.call_id)
        entry = self._ended(event, place, ended.tool, telling.tool_call(ended))
        if ended.run:
            entry.run, entry.cost_nanos = ended.run, ended.cost_nanos
            self.sub_runs_nanos += ended.cost_nanos
        else:
            self._account(entry, ended)

    def _account(self, entry: Entry, ended: run_pb2.ModelCallEnded | run_pb2.ToolCallEnded) -> None:
        claim = ended.claim
        if ended.HasField("error"):
            error = RemitError.from_status(ended.error)
            entry.reason = error.reason_name
            claim = claim or error.metadata.get("claim", "")
        entry.cost_nanos = ended.cost_nanos
        self.costs[claim] = self.costs.get(claim, 0) + ended.cost_nanos
        if claim:
            self.claims.setdefault(claim, entry)


_Begun = tuple[tuple[int, str], str, str]


def _model_begins(event: run_pb2.RunEvent) -> _Begun:
    started = event.model_call_started
    return (started.step, ""), started.model, telling.asked(started.model)


def _tool_begins(event: run_pb2.RunEvent) -> _Begun:
    started = event.tool_call_started
    return (started.step, started.call_id), started.tool, telling.called(started.tool)


_BEGINS: Final = {"model_call_started": _model_begins, "tool_call_started": _tool_begins}
_MOMENTS: Final[Mapping[str, Entry.Kind.ValueType]] = {
    "created": Entry.KIND_CREATED,
    "started": Entry.KIND_STARTED,
    "model_fallback": Entry.KIND_FALLBACK,
    "waiting": Entry.KIND_WAITING,
    "paused": Entry.KIND_PAUSED,
    "resumed": Entry.KIND_RESUMED,
    "cancel_requested": Entry.KIND_CANCEL_REQUESTED,
    "ended": Entry.KIND_ENDED,
}


def _kind_of_call(resource: str) -> Entry.Kind.ValueType:
    if resource.startswith("models/"):
        return Entry.KIND_MODEL_CALL
    return Entry.KIND_SUB_RUN if resource.startswith(AGENT_PREFIX) else Entry.KIND_TOOL_CALL


def _attached(teller: _Teller, effects: Effects) -> set[str]:
    """Gives the entries of the journal their effects; returns the claims that it names."""
    for claim, entry in teller.claims.items():
        entry.attempts.extend(effects.by_claim.get(claim, ()))
    return set(teller.claims)


def _effect_entry(claim: str, effects: Effects) -> Entry:
    attempts = effects.by_claim[claim]
    resource = effects.resources.get(claim, "")
    entry = Entry(
        kind=Entry.KIND_EFFECT,
        text=telling.unnamed_effect(resource, attempts),
        resource=resource,
        attempts=attempts,
    )
    if claim in effects.times:
        entry.start_time.CopyFrom(effects.times[claim])
    return entry


def _record_entry(logged: LoggedEvent) -> Entry:
    return Entry(
        kind=Entry.KIND_RECORD,
        text=telling.record(logged),
        resource=logged.event.resource,
        start_time=logged.event.event_time,
    )


def _in_time(entries: Sequence[Entry], unnamed: Sequence[Entry]) -> Iterator[Entry]:
    """The journal in its own order, and the rest before what began later."""
    waiting = sorted(unnamed, key=lambda entry: _moment(entry.start_time))
    for entry in entries:
        while waiting and _moment(waiting[0].start_time) < _moment(entry.start_time):
            yield waiting.pop(0)
        yield entry
    yield from waiting


def _moment(time: Timestamp) -> tuple[int, int]:
    return time.seconds, time.nanos


def _reason(status: status_pb2.Status) -> str:
    return RemitError.from_status(status).reason_name


def _trace_ids(logged: Iterable[LoggedEvent]) -> list[str]:
    return list(dict.fromkeys(each.event.trace_id for each in logged if each.event.trace_id))
