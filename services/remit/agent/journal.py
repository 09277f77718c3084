"""The journal of a run: events in, progress out.

A run is a fold over its events, so a replica that adopts a run goes on exactly where the journal
ends. The text of a turn is the join of its deltas since the turn was last asked for: asking again
begins the text anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

from google.protobuf import struct_pb2
from google.rpc import status_pb2

from remit.agent.failures import is_told_to_model
from remit.agent.fallback import Rules
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_pb2
from remit.approvals import APPROVAL
from remit.rpc.errors import RemitError

_AFTER_CANCELLATION: Final = frozenset({"started", "tool_call_ended", "cancel_requested", "ended"})
"""A call that ended then is billed: sub-runs are stopped before the run itself ends."""

TERMINAL: Final = frozenset(
    {run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED}
)


AGENT_PREFIX: Final = "agents/"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a turn asks for."""

    call_id: str
    tool: str
    arguments: struct_pb2.Struct
    attempt: int = 1
    """Grows only where a call in doubt is made again under a new key."""
    repeats_claim: str = ""
    """The claim of the attempt before, where a person must approve that it is repeated."""
    ended: run_pb2.ToolCallEnded | None = None
    run: str = ""
    """The sub-run that the call of an agent became."""
    inherited: bool = False
    """Whether it ended in the run that this one was forked from."""

    @property
    def is_delegation(self) -> bool:
        """Whether an agent is called, and no tool."""
        return self.tool.startswith(AGENT_PREFIX)


@dataclass(frozen=True, slots=True)
class Aside:
    """A turn of a step that is not the one that the step keeps, or not yet."""

    text: str
    ended: run_pb2.ModelCallEnded


@dataclass(frozen=True, slots=True)
class Turn:
    """One model turn and the tool calls that it asks for."""

    step: int
    asked_by: int
    """Fencing token of the worker that asked for it last."""
    text: str = ""
    ended: run_pb2.ModelCallEnded | None = None
    calls: tuple[ToolCall, ...] = ()
    inherited: bool = False
    """Whether the run that this one was forked from asked for it."""
    refusals: int = 0
    """Waits for the provider of the model that is asked now."""
    fallback: run_pb2.ModelFallback | None = None
    """Why the step asked a second model; None while it did not."""
    aside: Aside | None = None
    """Of two turns the one that is not kept; the first one's while the second is asked for."""

    @property
    def second_model(self) -> str:
        """The model that is asked in place of the agent's own; empty while none is."""
        return self.fallback.to_model if self.fallback is not None else ""

    @property
    def model_calls(self) -> int:
        """Models that the run asked."""
        if self.inherited:
            return 0
        return 1 if self.fallback is None else 2

    @property
    def is_recorded(self) -> bool:
        """Whether the turn ended and every call that it asks for is in the journal."""
        return self.ended is not None and len(self.calls) == self.ended.tool_calls

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """Calls that have not ended."""
        return tuple(call for call in self.calls if call.ended is None)

    @property
    def effects(self) -> Iterator[run_pb2.ModelCallEnded | run_pb2.ToolCallEnded]:
        """How its effects ended, those that did."""
        if self.aside is not None:
            yield self.aside.ended
        if self.ended is not None:
            yield self.ended
        yield from (call.ended for call in self.calls if call.ended is not None)

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the turn is left to do."""
        return self.is_recorded and not self.pending

    @property
    def fatal_error(self) -> status_pb2.Status | None:
        """The error that ends the run, if one of the turn's effects failed so."""
        if self.ended is not None and self.ended.HasField("error"):
            return self.ended.error
        for call in self.calls:
            ended = call.ended
            if ended is None or not ended.HasField("error"):
                continue
            # A sub-run has its own end; what comes of it is the model's to know.
            if not (call.is_delegation or is_told_to_model(ended.error)):
                return ended.error
        return None


@dataclass(frozen=True, slots=True)
class Tally:
    """What effects of a run used, cost and made."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    estimated: bool = False
    cost_nanos: int = 0
    last_leaf_index: int | None = None
    """Index of the newest intent of an effect; None while there is none."""
    artifacts: tuple[tool_pb2.Artifact, ...] = ()
    """By name; a later file of the same name replaces the earlier."""

    def with_turn(self, turn: Turn | None) -> Tally:
        """The tally with what ended in a turn."""
        tally = self
        for effect in turn.effects if turn is not None else ():
            tally = tally.with_effect(effect)
        return tally

    def with_effect(self, ended: run_pb2.ModelCallEnded | run_pb2.ToolCallEnded) -> Tally:
        """The tally with one more effect."""
        used, artifacts = ended.usage, self.artifacts
        if isinstance(ended, run_pb2.ToolCallEnded) and ended.artifacts:
            by_name = {artifact.name: artifact for artifact in (*artifacts, *ended.artifacts)}
            artifacts = tuple(by_name[name] for name in sorted(by_name))
        leaves = (self.last_leaf_index, ended.intent_leaf_index if ended.claim else None)
        return Tally(
            self.input_tokens + used.input_tokens,
            self.cached_input_tokens + used.cached_input_tokens,
            self.output_tokens + used.output_tokens,
            self.calls + used.calls,
            self.estimated or used.estimated,
            self.cost_nanos + ended.cost_nanos,
            max((leaf for leaf in leaves if leaf is not None), default=None),
            artifacts,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: the fold of its journal."""

    sequence: int = 0
    accepted: run_pb2.Run = field(default_factory=run_pb2.Run)
    header: run_pb2.Run = field(default_factory=run_pb2.Run)
    """`accepted` without task and context, which may be large and never change."""
    fencing_token: int = 0
    """Token of the newest worker; 0 before the first."""
    stage: str = ""
    turns: tuple[Turn, ...] = ()
    tally_before: Tally = field(default_factory=Tally)
    """Of all turns but the newest, which may be asked for again. With it the summary that every
    entry of the journal stores takes the same time at step 1 and at step 100."""
    retry_time: datetime | None = None
    """When the step that waits may be tried again; None if none waits."""
    waits_for: str = ""
    """Reason of the newest wait."""
    approvals: tuple[str, ...] = ()
    """What people were asked to approve since a step went on last."""
    cancelled_by: str = ""
    paused_by: str = ""
    """Who halted the run; empty while it may go on."""
    start_time: datetime | None = None
    ended: run_pb2.Run | None = None
    rules: Rules = field(default_factory=Rules)
    """Of the agent's definition, which a run keeps; no event tells them."""

    @property
    def turn(self) -> Turn | None:
        """The newest turn."""
        return self.turns[-1] if self.turns else None

    def second_model(self, step: int) -> str:
        """The model that a step asks in place of the agent's own; empty: the agent's own."""
        turn = self.turn
        return turn.second_model if turn is not None and turn.step == step else ""

    @property
    def reserve(self) -> Aside | None:
        """The surest answer that gave way to another model's wish for tools."""
        given_way = [
            turn.aside
            for turn in self.turns
            if turn.aside is not None and turn.ended is not None and turn.ended.tool_calls
        ]
        answers = [a for a in given_way if not (a.ended.HasField("error") or a.ended.tool_calls)]
        return max(answers, key=lambda a: a.ended.confidence.value, default=None)

    @property
    def tally(self) -> Tally:
        """What the run's effects used, cost and made so far."""
        return self.tally_before.with_turn(self.turn)

    @property
    def sub_runs(self) -> tuple[ToolCall, ...]:
        """Calls that became sub-runs whose end is not recorded."""
        turn = self.turn
        return tuple(call for call in turn.pending if call.run) if turn is not None else ()

    @property
    def max_steps(self) -> int:
        """Most model turns."""
        return self.accepted.limits.max_steps

    @property
    def state(self) -> run_pb2.RunState.ValueType:
        """The run's state as clients see it."""
        if self.ended is not None:
            return self.ended.state
        if self.paused_by:
            return run_pb2.RUN_STATE_PAUSED
        if self.fencing_token:
            return run_pb2.RUN_STATE_RUNNING
        return run_pb2.RUN_STATE_QUEUED

    @property
    def percent(self) -> int:
        """Completed turns in percent of the step limit; 100 exactly at the end."""
        if self.ended is not None:
            return 100
        # Only the newest turn may be open: the next one begins when it is complete.
        turn = self.turn
        done = len(self.turns) - 1 + turn.is_complete if turn is not None else 0
        return min(99, 100 * done // max(self.max_steps, 1))


def fold(events: Iterable[run_pb2.RunEvent], start: Progress | None = None) -> Progress:
    """The progress after `events`, from `start` or the beginning. Raises DATA_CORRUPT."""
    progress = start or Progress()
    for event in events:
        progress = apply(progress, event)
    return progress


def apply(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    """The progress after one more event. Raises DATA_CORRUPT if the event cannot come next."""
    kind = event.WhichOneof("event")
    _require(event.sequence == progress.sequence + 1, event, "is not the next in sequence")
    _require(progress.ended is None, event, "follows the end of the run")
    _require((kind == "created") == (progress.sequence == 0), event, "must be `created`, once")
    _require(
        progress.sequence == 0 or event.run == progress.accepted.name, event, "is of another run"
    )
    if progress.cancelled_by:
        _require(kind in _AFTER_CANCELLATION, event, "follows a cancellation")
    elif progress.paused_by:
        _require(kind in {"resumed", "cancel_requested", "ended"}, event, "follows a pause")
    _require(kind in _APPLY, event, "has no content")
    return _APPLY[kind or ""](progress, event)


def header_of(run: run_pb2.Run) -> run_pb2.Run:
    """A copy of a run without its task and context."""
    header = run_pb2.Run()
    header.CopyFrom(run)
    header.ClearField("task")
    header.ClearField("context")
    return header


def _after(progress: Progress, event: run_pb2.RunEvent, **changes: Any) -> Progress:  # noqa: ANN401 - fields of Progress
    """The progress with these fields changed, and the event counted."""
    return replace(progress, sequence=event.sequence, **changes)


def _created(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    run = event.created.run
    _require(event.run == run.name, event, "is of another run")
    return _after(progress, event, accepted=run, header=header_of(run))


def _started(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    token = event.started.fencing_token
    _require(token > progress.fencing_token, event, "does not raise the fencing token")
    start_time = progress.start_time or event.event_time.ToDatetime(UTC)
    return _after(progress, event, fencing_token=token, start_time=start_time)


def _stage_started(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    return _after(progress, event, stage=event.stage_started.stage)


def _model_call_started(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    step = event.model_call_started.step
    turn = progress.turn
    asked = Turn(step, progress.fencing_token)
    if turn is None or turn.is_complete:
        _require(step == len(progress.turns) + 1, event, "skips a step")
        return _after(
            progress,
            event,
            turns=(*progress.turns, asked),
            tally_before=progress.tally,
            retry_time=None,
            approvals=(),
        )
    _require(step == turn.step and not turn.is_recorded, event, "asks for another step")
    begun = replace(asked, refusals=turn.refusals, fallback=turn.fallback, aside=turn.aside)
    return _with_turn(progress, event, begun)


def _text_delta(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    turn = _open_turn(progress, event, event.text_delta.step)
    return _with_turn(progress, event, replace(turn, text=turn.text + event.text_delta.text))


def _model_call_ended(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    ended = event.model_call_ended
    turn = replace(_open_turn(progress, event, ended.step), ended=ended)
    aside = turn.aside
    if aside is not None and ended.kept_model == aside.ended.model:
        turn = replace(turn, text=aside.text, ended=aside.ended, aside=Aside(turn.text, ended))
    return _with_turn(progress, event, turn)


def _model_fallback(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    fallback, turn = event.model_fallback, progress.turn
    _require(turn is not None and turn.step == fallback.step, event, "is of another step")
    turn = cast("Turn", turn)
    _require(turn.ended is not None and not turn.calls, event, "follows no turn without calls")
    _require(turn.fallback is None, event, "asks for a third model")
    aside = Aside(turn.text, cast("run_pb2.ModelCallEnded", turn.ended))
    asked = Turn(turn.step, asked_by=0, fallback=fallback, aside=aside)
    return _with_turn(progress, event, asked)


def _tool_call_started(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    started = event.tool_call_started
    turn = progress.turn
    _require(turn is not None and turn.step == started.step, event, "is of another step")
    turn = cast("Turn", turn)
    call = ToolCall(
        started.call_id, started.tool, started.arguments, repeats_claim=started.repeats_claim
    )
    earlier = next((c for c in turn.calls if c.call_id == started.call_id), None)
    if earlier is None:
        _require(turn.ended is not None and not turn.is_recorded, event, "was not asked for")
        return _with_turn(progress, event, replace(turn, calls=(*turn.calls, call)))
    _require(earlier.ended is None, event, "starts a call that has ended")
    _require(not earlier.run, event, "starts a call that became a sub-run")
    return _with_call(progress, event, turn, replace(call, attempt=earlier.attempt + 1))


def _tool_call_ended(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    ended = event.tool_call_ended
    turn = progress.turn
    _require(turn is not None and turn.step == ended.step, event, "is of another step")
    turn = cast("Turn", turn)
    call = next((c for c in turn.pending if c.call_id == ended.call_id), None)
    _require(call is not None, event, "ends a call that is not open")
    return _with_call(progress, event, turn, replace(cast("ToolCall", call), ended=ended))


def _sub_run_started(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    named = event.sub_run_started
    turn = progress.turn
    _require(turn is not None and turn.step == named.step, event, "is of another step")
    turn = cast("Turn", turn)
    call = next((c for c in turn.pending if c.call_id == named.call_id), None)
    _require(
        call is not None and call.is_delegation and not call.run, event, "names no call of an agent"
    )
    return _with_call(progress, event, turn, replace(cast("ToolCall", call), run=named.run))


def _waiting(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    waiting, turn = event.waiting, progress.turn
    reason = RemitError.from_status(waiting.reason)
    turns = progress.turns
    is_refusal = reason.reason == reasons.ERROR_REASON_PROVIDER_UNAVAILABLE
    if is_refusal and turn is not None and turn.ended is None:
        turns = (*turns[:-1], replace(turn, refusals=turn.refusals + 1))
    return _after(
        progress,
        event,
        turns=turns,
        approvals=_approvals(progress, reason),
        retry_time=waiting.retry_time.ToDatetime(UTC),
        waits_for=reason.reason_name,
    )


def _approvals(progress: Progress, reason: RemitError) -> tuple[str, ...]:
    asked = reason.metadata.get(APPROVAL, "")
    known = progress.approvals
    return (*known, asked) if asked and asked not in known else known


def _cancel_requested(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    return _after(progress, event, cancelled_by=event.cancel_requested.subject, paused_by="")


def _paused(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    return _after(progress, event, paused_by=event.paused.subject)


def _resumed(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    _require(progress.paused_by, event, "resumes a run that is not paused")
    return _after(progress, event, paused_by="")


def _ended(progress: Progress, event: run_pb2.RunEvent) -> Progress:
    _require(event.ended.run.state in TERMINAL, event, "ends the run in a state that is not final")
    return _after(progress, event, ended=event.ended.run, retry_time=None, approvals=())


_APPLY: Final[dict[str, Callable[[Progress, run_pb2.RunEvent], Progress]]] = {
    "created": _created,
    "started": _started,
    "stage_started": _stage_started,
    "text_delta": _text_delta,
    "model_call_started": _model_call_started,
    "model_call_ended": _model_call_ended,
    "model_fallback": _model_fallback,
    "tool_call_started": _tool_call_started,
    "tool_call_ended": _tool_call_ended,
    "waiting": _waiting,
    "cancel_requested": _cancel_requested,
    "paused": _paused,
    "resumed": _resumed,
    "sub_run_started": _sub_run_started,
    "ended": _ended,
}


def _open_turn(progress: Progress, event: run_pb2.RunEvent, step: int) -> Turn:
    turn = progress.turn
    _require(
        turn is not None and turn.ended is None and turn.step == step, event, "is of no open turn"
    )
    return cast("Turn", turn)


def _with_turn(progress: Progress, event: run_pb2.RunEvent, turn: Turn) -> Progress:
    return _after(
        progress, event, turns=(*progress.turns[:-1], turn), retry_time=None, approvals=()
    )


def _with_call(progress: Progress, event: run_pb2.RunEvent, turn: Turn, call: ToolCall) -> Progress:
    calls = tuple(call if c.call_id == call.call_id else c for c in turn.calls)
    return _with_turn(progress, event, replace(turn, calls=calls))


def _require(condition: object, event: run_pb2.RunEvent, fault: str) -> None:
    if not condition:
        kind = event.WhichOneof("event")
        raise RemitError(
            reasons.ERROR_REASON_DATA_CORRUPT,
            f"{event.run}: event {event.sequence} ({kind}) {fault}",
        )
