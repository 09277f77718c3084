"""Replaying a run: what its steps would be with the present code, against what the journal says.

What came from outside (the model's words, tools' results, waits, pauses, who worked on it) is taken
from the journal. What the run made of it is computed anew: which action comes next, what the model
is asked, stages, end and bill. The first difference ends the replay, since whatever follows would
answer another question. Pure: nothing is called, spent or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Final, TypeAlias

from google.protobuf.message import Message

from remit.agent.conversation import Offer, model_request, request_digest
from remit.agent.decisions import Action as NextAction
from remit.agent.decisions import (
    AskModel,
    AwaitSubRuns,
    CallTools,
    End,
    FallBack,
    next_action,
)
from remit.agent.definitions import AgentDefinition
from remit.agent.differences import parts_that_differ, shown, text_of
from remit.agent.doubts import Again, again
from remit.agent.history import Exchange
from remit.agent.journal import Progress, ToolCall, apply, header_of
from remit.agent.logbook import ANSWERING, THINKING, USING_TOOLS
from remit.agent.summary import ended_run
from remit.agent.turn_ends import kept_model
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2
from remit.rpc.errors import RemitError

_BILL: Final = ("state", "result", "artifacts", "usage", "cost_nanos", "last_leaf_index")
"""Fields of a run that follow from its journal, compared at its end."""
_CAUSES: Final = {
    THINKING: "model_call_started",
    USING_TOOLS: "tool_call_started",
    ANSWERING: "text_delta",
}
"""The event that each stage is entered for, in the same commit."""
_FROM_OUTSIDE: Final = frozenset(
    {
        reasons.ERROR_REASON_INTERNAL,
        reasons.ERROR_REASON_DATA_CORRUPT,
        reasons.ERROR_REASON_CONFIGURATION_INVALID,
    }
)
"""With which a run ends whatever its journal says would come next."""


@dataclass(frozen=True)
class Script:
    """With what a run is replayed."""

    definition: AgentDefinition
    offer: Offer
    history: tuple[Exchange, ...]
    max_doubt_attempts: int
    accepted: run_pb2.Run | None = None
    """The run as it would have been accepted with other wishes; None: as it was."""
    recorded: tuple[AgentDefinition, Offer] | None = None
    """Definition and tools of the run itself, where those above are others."""


_Check: TypeAlias = Callable[[run_pb2.RunEvent], Iterator[agent_service_pb2.Divergence]]


@dataclass
class Replay:
    """One run, gone through event by event."""

    script: Script
    progress: Progress
    """At first what a fork took over, or nothing."""
    requests_compared: int = 0
    requests_unrecorded: int = 0
    _recorded: run_pb2.Run = field(default_factory=run_pb2.Run)
    """The run as it was accepted."""
    _announced: run_pb2.RunEvent | None = None
    """The stage that was entered with the event before."""
    _stage_at_ask: str = ""
    _checks: Mapping[str, _Check] = field(init=False)

    def __post_init__(self) -> None:
        self.progress = replace(self.progress, rules=self.script.definition.rules)
        self._checks = {
            "model_call_started": self._check_model_call_started,
            "text_delta": self._check_text_delta,
            "model_call_ended": self._check_model_call_ended,
            "model_fallback": self._check_model_fallback,
            "tool_call_started": self._check_tool_call_started,
            "tool_call_ended": self._check_tool_call_ended,
            "sub_run_started": self._check_sub_run_started,
            "ended": self._check_ended,
        }

    def take(self, event: run_pb2.RunEvent) -> agent_service_pb2.Divergence | None:
        """Goes on by one event; how it differs, or None. Raises DATA_CORRUPT, as `apply` does."""
        for found in self._differences(event):
            return found
        self.progress = apply(self.progress, event)
        if event.HasField("created"):
            self._begin(event.created.run)
        self._announced = event if event.HasField("stage_started") else None
        return None

    def _begin(self, run: run_pb2.Run) -> None:
        self._recorded = run
        wished = self.script.accepted
        if wished is not None:
            self.progress = replace(self.progress, accepted=wished, header=header_of(wished))

    def _differences(self, event: run_pb2.RunEvent) -> Iterator[agent_service_pb2.Divergence]:
        kind = event.WhichOneof("event") or ""
        if self._announced is not None:
            yield from self._check_stage_cause(self._announced, kind)
        check = self._checks.get(kind)
        if check is not None and self.progress.ended is None:
            yield from check(event)

    def _check_stage_cause(
        self, announced: run_pb2.RunEvent, kind: str
    ) -> Iterator[agent_service_pb2.Divergence]:
        stage = announced.stage_started.stage
        # A fork may begin with calls that its source asked for, and no event starts them again.
        is_for_calls = stage == USING_TOOLS and isinstance(next_action(self.progress), CallTools)
        if _CAUSES.get(stage) != kind and not is_for_calls:
            entered = next((s for s, cause in _CAUSES.items() if cause == kind), "")
            yield self._differs(announced, "stage_started.stage", stage, entered)

    def _check_model_call_started(
        self, event: run_pb2.RunEvent
    ) -> Iterator[agent_service_pb2.Divergence]:
        started, action = event.model_call_started, next_action(self.progress)
        if not isinstance(action, AskModel) or action.step != started.step:
            yield self._other_event(event, action)
            return
        if not action.is_journalled:
            self._stage_at_ask = self.progress.stage
        yield from self._unequal(
            event, "model_call_started.model", started.model, self._request(started.step).model
        )

    def _check_text_delta(self, event: run_pb2.RunEvent) -> Iterator[agent_service_pb2.Divergence]:
        yield from self._unequal(event, "stage", self.progress.stage, ANSWERING)

    def _check_model_call_ended(
        self, event: run_pb2.RunEvent
    ) -> Iterator[agent_service_pb2.Divergence]:
        ended, turn = event.model_call_ended, self.progress.turn
        if turn is None or turn.ended is not None:
            return  # the fold says what is wrong
        kept = kept_model(self.progress, ended)
        yield from self._unequal(event, "model_call_ended.kept_model", ended.kept_model, kept)
        if not ended.request_digest:
            self.requests_unrecorded += not ended.HasField("error")
            return
        self.requests_compared += 1
        yield from self._unequal(event, "stage", self._stage_at_ask, THINKING)
        request = self._request(ended.step)
        if request_digest(request) != ended.request_digest:
            yield self._other_request(event, request)
        yield from self._unequal(event, "model_call_ended.model", ended.model, request.model)

    def _check_model_fallback(
        self, event: run_pb2.RunEvent
    ) -> Iterator[agent_service_pb2.Divergence]:
        action = next_action(self.progress)
        if not isinstance(action, FallBack):
            yield self._other_event(event, action)
            return
        yield from self._first_part(event, "model_fallback", event.model_fallback, action.event)

    def _check_tool_call_started(
        self, event: run_pb2.RunEvent
    ) -> Iterator[agent_service_pb2.Divergence]:
        started, action = event.tool_call_started, next_action(self.progress)
        if isinstance(action, CallTools):
            call = _call_of(action, started.call_id)
            verdict = self._again(call)
            if call is None or verdict is Again.NO:
                yield self._differs(
                    event, "event", "call again what is in doubt", "fail: EFFECT_IN_DOUBT"
                )
                return
            yield from self._unequal(event, "tool_call_started.tool", started.tool, call.tool)
            asks, asked = verdict is Again.IF_APPROVED, bool(started.repeats_claim)
            yield from self._unequal(event, "tool_call_started.repeats_claim", asked, asks)
            yield from self._first_part(
                event, "tool_call_started.arguments", started.arguments, call.arguments
            )
        elif not isinstance(action, AskModel):
            yield self._other_event(event, action)
        else:
            yield from self._unequal(event, "stage", self.progress.stage, USING_TOOLS)

    def _check_tool_call_ended(
        self, event: run_pb2.RunEvent
    ) -> Iterator[agent_service_pb2.Divergence]:
        ended, action = event.tool_call_ended, next_action(self.progress)
        in_doubt = RemitError.from_status(ended.error).reason if ended.HasField("error") else None
        if in_doubt != reasons.ERROR_REASON_EFFECT_IN_DOUBT or not isinstance(action, CallTools):
            return
        call = _call_of(action, ended.call_id)
        # A repetition that nobody approved is recorded as in doubt itself.
        if call is not None and not call.repeats_claim and self._again(call) is not Again.NO:
            yield self._differs(
                event, "event", "fail: EFFECT_IN_DOUBT", "call again what is in doubt"
            )

    def _check_sub_run_started(
        self, event: run_pb2.RunEvent
    ) -> Iterator[agent_service_pb2.Divergence]:
        action = next_action(self.progress)
        if not isinstance(action, CallTools | AwaitSubRuns):
            yield self._other_event(event, action)
            return
        call = _call_of(action, event.sub_run_started.call_id)
        if call is not None and call.tool not in self.script.definition.agent_names:
            yield self._differs(
                event, "event", f"start a run of {call.tool}", f"{call.tool} is not offered"
            )

    def _check_ended(self, event: run_pb2.RunEvent) -> Iterator[agent_service_pb2.Divergence]:
        recorded, action = event.ended.run, next_action(self.progress)
        if _came_from_outside(recorded, self.progress):
            action = End(recorded.state, error=recorded.error)
        if not isinstance(action, End):
            yield self._other_event(event, action)
            return
        time = recorded.end_time.ToDatetime(UTC)
        replayed = ended_run(self.progress, action, time)
        yield from self._unequal(event, "ended.run.error", _why(recorded), _why(replayed))
        if recorded.HasField("confidence"):  # else it is from before there was any
            yield from self._first_part(
                event, "ended.run.confidence", recorded.confidence, replayed.confidence
            )
        for name in _BILL:
            yield from self._unequal(
                event, f"ended.run.{name}", _value(recorded, name), _value(replayed, name)
            )

    def _request(self, step: int) -> inference_service_pb2.GenerateTextRequest:
        script = self.script
        return model_request(self.progress, script.definition, script.offer, step, script.history)

    def _other_request(
        self, event: run_pb2.RunEvent, replayed: inference_service_pb2.GenerateTextRequest
    ) -> agent_service_pb2.Divergence:
        """Names the field, where what was asked can be made again; else the digests are all."""
        digest = event.model_call_ended.request_digest
        definition, offer = self.script.recorded or (self.script.definition, self.script.offer)
        recorded = model_request(
            replace(self.progress, accepted=self._recorded),
            definition,
            offer,
            event.model_call_ended.step,
            self.script.history,
        )
        if request_digest(recorded) == digest:
            recorded.ClearField("request_id")
            replayed.ClearField("request_id")
            for found in self._first_part(event, "request", recorded, replayed):
                return found
        return self._differs(
            event,
            "model_call_ended.request_digest",
            digest.hex(),
            request_digest(replayed).hex(),
        )

    def _again(self, call: ToolCall | None) -> Again:
        """Whether a call in doubt would be made again."""
        if call is None:
            return Again.NO
        return again(
            self.script.definition.on_doubt,
            call,
            is_idempotent=self.script.offer.is_idempotent(call.tool),
            max_attempts=self.script.max_doubt_attempts,
        )

    def _other_event(
        self, event: run_pb2.RunEvent, action: NextAction
    ) -> agent_service_pb2.Divergence:
        kind = event.WhichOneof("event") or ""
        recorded = f"end: {_why(event.ended.run)}" if kind == "ended" else kind
        return self._differs(event, "event", recorded, _words_of(action))

    def _first_part(
        self, event: run_pb2.RunEvent, path: str, recorded: Message, replayed: Message
    ) -> Iterator[agent_service_pb2.Divergence]:
        for where, left, right in parts_that_differ(path, recorded, replayed):
            yield self._differs(event, where, left, right)
            return

    def _unequal(
        self, event: run_pb2.RunEvent, name: str, recorded: object, replayed: object
    ) -> Iterator[agent_service_pb2.Divergence]:
        if recorded != replayed:
            yield self._differs(event, name, str(recorded), str(replayed))

    def _differs(
        self, event: run_pb2.RunEvent, name: str, recorded: str, replayed: str
    ) -> agent_service_pb2.Divergence:
        one, other = shown(recorded, replayed)
        return agent_service_pb2.Divergence(
            sequence=event.sequence,
            step=len(self.progress.turns),
            field=name,
            recorded=one,
            replayed=other,
        )


def _came_from_outside(recorded: run_pb2.Run, progress: Progress) -> bool:
    """Whether a run ended by its time limit, a defect or a damaged record."""
    if recorded.state != run_pb2.RUN_STATE_FAILED or progress.cancelled_by:
        return False
    error = RemitError.from_status(recorded.error)
    is_out_of_time = (
        error.reason == reasons.ERROR_REASON_RUN_LIMIT_REACHED
        and "did not end within" in error.message
    )
    return is_out_of_time or error.reason in _FROM_OUTSIDE


def _call_of(action: CallTools | AwaitSubRuns, call_id: str) -> ToolCall | None:
    return next((call for call in action.calls if call.call_id == call_id), None)


def _words_of(action: NextAction) -> str:
    if isinstance(action, AskModel):
        return f"model_call_started of step {action.step}"
    if isinstance(action, CallTools | AwaitSubRuns):
        return f"{len(action.calls)} tool calls of step {action.step} are to end"
    if isinstance(action, FallBack):
        return f"model_fallback to {action.event.to_model}"
    if isinstance(action, End):
        state = run_pb2.RunState.Name(action.state).removeprefix("RUN_STATE_")
        reason = f" {RemitError.from_status(action.error).reason_name}" if action.error else ""
        return f"end: {state}{reason}"
    return "nothing"


def _why(run: run_pb2.Run) -> str:
    """How a run ended: its state, and the reason of its error. Words may be put better later."""
    state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    if not run.HasField("error"):
        return state
    return f"{state} {RemitError.from_status(run.error).reason_name}"


def _value(run: run_pb2.Run, name: str) -> str:
    """A field in one form: what is unset reads as nothing."""
    descriptor = run.DESCRIPTOR.fields_by_name[name]
    if descriptor.has_presence and not run.HasField(name):  # type: ignore[arg-type]
        return ""
    value = getattr(run, name)
    if descriptor.is_repeated:
        return ", ".join(text_of(item) for item in value)
    return text_of(value)
