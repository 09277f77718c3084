"""Histories of runs for property tests: what a worker could journal, by its own rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf import struct_pb2
from hypothesis import strategies as st

from remit.agent.confidence import ConfidenceRule
from remit.agent.conversation import Offer, model_request, request_digest
from remit.agent.decisions import (
    AskModel,
    AwaitSubRuns,
    CallTools,
    End,
    FallBack,
    Rest,
    next_action,
)
from remit.agent.definitions import AgentDefinition, OnDoubt
from remit.agent.fallback import FallbackRule, Rules
from remit.agent.journal import Progress, ToolCall
from remit.agent.logbook import ANSWERING, THINKING, USING_TOOLS, Draft
from remit.agent.sub_runs import ended_call
from remit.agent.turn_ends import add_end
from remit.api.agent.v1 import confidence_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_pb2
from remit.api.usage.v1 import usage_pb2
from remit.rpc.errors import RemitError

RUN = "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
SUB_RUN = "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5c"
MODEL = "models/m"
SECOND = "models/n"
RULES = Rules(FallbackRule(model="n", canned_answer="Nobody knows."), ConfidenceRule())
DEFINITION = AgentDefinition(
    name="a",
    display_name="A",
    description="Plays.",
    instructions="Play.",
    model="m",
    tools=("t",),
    agents=("b",),
    on_doubt=OnDoubt.RETRY_IDEMPOTENT,
)
OFFER = Offer((tool_pb2.Tool(name="tools/t", idempotent=True),))


def definition_of(rules: Rules) -> AgentDefinition:
    """The agent that is played, with rules."""
    return DEFINITION.model_copy(
        update={"fallback": rules.fallback, "confidence": rules.confidence}
    )


class FixedClock:
    def now(self) -> datetime:
        return datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


def accepted(max_steps: int) -> run_pb2.Run:
    run = run_pb2.Run(
        name=RUN,
        agent="agents/a",
        task="t",
        context={"k": "v"},
        state=run_pb2.RUN_STATE_QUEUED,
        limits=run_pb2.RunLimits(max_steps=max_steps),
    )
    run.create_time.FromDatetime(FixedClock().now())
    return run


def begin(max_steps: int = 3, rules: Rules | None = None) -> Draft:
    """A draft that holds an accepted run."""
    draft = Draft(RUN, Progress(rules=rules or Rules()), FixedClock())
    draft.add(run_pb2.RunCreated(run=accepted(max_steps)))
    return draft


def error_of(reason: reasons.ErrorReason.ValueType) -> run_pb2.ToolCallEnded:
    return run_pb2.ToolCallEnded(error=RemitError(reason, "no").to_status())


class Player:
    """Plays a worker against a world that hypothesis draws."""

    def __init__(self, draw: Callable[..., Any], draft: Draft) -> None:
        self._draw = draw
        self.draft = draft
        self._token = 0

    def adopt(self) -> None:
        self._token = self.draft.progress.fencing_token + 1
        self.draft.add(run_pb2.RunStarted(fencing_token=self._token, replica="r"))

    def play(self) -> None:
        """Goes on until the run ends."""
        self.adopt()
        while not isinstance(next_action(self.draft.progress), Rest):
            self._disturb()
            action = next_action(self.draft.progress)
            if isinstance(action, End):
                for call in self.draft.progress.sub_runs:
                    self._end_sub_run(len(self.draft.progress.turns), call)
                self.draft.end(action)
            elif isinstance(action, AskModel):
                self._ask(action)
            elif isinstance(action, FallBack):
                self.draft.add(action.event)
            elif isinstance(action, CallTools):
                self._call(action)
            elif isinstance(action, AwaitSubRuns):
                self._end_sub_run(action.step, self._draw(st.sampled_from(action.calls)))

    def _pause(self) -> None:
        """Somebody pauses the run and lets it go on, and another worker takes it."""
        self.draft.add(run_pb2.RunPaused(subject="orgs/acme/users/alice"))
        assert isinstance(next_action(self.draft.progress), Rest)
        if self._draw(st.booleans()):
            self.draft.add(run_pb2.RunResumed(subject="orgs/acme/users/alice"))
            self.adopt()
        else:
            self.draft.add(run_pb2.CancelRequested(subject="orgs/acme/users/alice"))

    def _disturb(self) -> None:
        what = self._draw(st.sampled_from(["", "", "", "adopt", "wait", "pause", "cancel"]))
        if what == "adopt":
            self.adopt()
        elif self.draft.progress.cancelled_by:
            return
        elif what == "wait":
            self.draft.add(run_pb2.RunWaiting())
        elif what == "pause":
            self._pause()
        elif what == "cancel" and self._draw(st.booleans()):
            self.draft.add(run_pb2.CancelRequested(subject="orgs/a/users/b"))

    def _ask(self, action: AskModel) -> None:
        model = self.draft.progress.second_model(action.step) or MODEL
        if not action.is_journalled:
            self.draft.enter(THINKING)
            self.draft.add(run_pb2.ModelCallStarted(step=action.step, model=model))
        definition = definition_of(self.draft.progress.rules)
        asked = model_request(self.draft.progress, definition, OFFER, action.step)
        for text in self._draw(st.lists(st.text(max_size=5), max_size=3)):
            self.draft.enter(ANSWERING)
            self.draft.add(run_pb2.TextDelta(step=action.step, text=text))
        calls = self._draw(st.integers(min_value=0, max_value=3))
        ended = run_pb2.ModelCallEnded(
            step=action.step,
            model=model,
            tool_calls=calls,
            usage=usage_pb2.Usage(input_tokens=1, output_tokens=2, calls=1),
            cost_nanos=5,
            claim="claims/x",
            intent_leaf_index=self.draft.progress.sequence,
            request_digest=request_digest(asked),
        )
        if self._draw(st.integers(min_value=0, max_value=9)) == 0:
            ended.tool_calls = calls = 0
            ended.error.CopyFrom(RemitError(reasons.ERROR_REASON_INTERNAL, "no").to_status())
        elif not calls:
            ended.confidence.value = self._draw(st.sampled_from([0.1, 0.5, 0.75, 1.0]))
            ended.confidence.source = confidence_pb2.CONFIDENCE_SOURCE_MEASURED
        if add_end(self.draft, ended) and action.step < self.draft.progress.max_steps:
            self._start_calls(action.step, calls)

    def _start_calls(self, step: int, calls: int) -> None:
        for number in range(calls):
            self.draft.enter(USING_TOOLS)
            size = self._draw(st.sampled_from([1, 2_000]))
            tool = self._draw(st.sampled_from(["tools/t", "tools/t", "agents/b"]))
            self.draft.add(
                run_pb2.ToolCallStarted(
                    step=step, call_id=f"c{number}", tool=tool, arguments=struct(size)
                )
            )

    def _call(self, action: CallTools) -> None:
        call = self._draw(st.sampled_from(action.calls))
        if call.is_delegation and self._draw(st.booleans()):
            self.draft.add(
                run_pb2.SubRunStarted(step=action.step, call_id=call.call_id, run=SUB_RUN)
            )
            return
        ended = run_pb2.ToolCallEnded(
            step=action.step,
            call_id=call.call_id,
            tool=call.tool,
            result=struct(self._draw(st.sampled_from([1, 2_000]))),
            artifacts=[tool_pb2.Artifact(name=self._draw(st.sampled_from(["a", "b"])))],
            cost_nanos=3,
            claim="claims/y",
            intent_leaf_index=self.draft.progress.sequence,
        )
        fate = self._draw(st.sampled_from(["ok", "ok", "told", "again", "fatal"]))
        if fate == "told":
            ended.error.CopyFrom(error_of(reasons.ERROR_REASON_TOOL_FAILED).error)
        elif fate == "fatal":
            ended.error.CopyFrom(error_of(reasons.ERROR_REASON_BUDGET_EXHAUSTED).error)
        elif fate == "again" and not call.is_delegation:
            self.draft.add(
                run_pb2.ToolCallStarted(
                    step=action.step, call_id=call.call_id, tool=call.tool, arguments=call.arguments
                )
            )
        self.draft.add(ended)

    def _end_sub_run(self, step: int, call: ToolCall) -> None:
        below = run_pb2.Run(name=call.run, cost_nanos=11, usage=usage_pb2.Usage(input_tokens=4))
        below.state = self._draw(
            st.sampled_from([run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED])
        )
        if below.state == run_pb2.RUN_STATE_FAILED:
            error = RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "no")
            below.error.CopyFrom(error.to_status())
        self.draft.add(ended_call(step, call, below))


def struct(size: int) -> struct_pb2.Struct:
    value = struct_pb2.Struct()
    value.update({"text": "x" * size, "n": 1.5})
    return value


@st.composite
def histories(draw: st.DrawFn) -> list[run_pb2.RunEvent]:
    """The journal of a run from its beginning to its end."""
    return draw(ruled_histories())[1]


@st.composite
def ruled_histories(
    draw: st.DrawFn, of: Sequence[Rules] = (Rules(), RULES, Rules(FallbackRule(model="n")))
) -> tuple[Rules, list[run_pb2.RunEvent]]:
    """The same, and the rules of its agent."""
    rules = draw(st.sampled_from(of))
    player = Player(draw, begin(draw(st.integers(min_value=1, max_value=4)), rules))
    player.play()
    return rules, player.draft.events
