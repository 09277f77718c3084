"""Forks: a run that goes on from where another one stood.

What the source did up to a point is the fork's beginning: model turns and the results of their tool
calls, without what they cost and without whatever said who worked on them. Nothing is copied: the
fork names its source and the point, and this beginning is derived from the source's journal
whenever the fork is taken up. Pure: who reads the journals and creates the run is elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from remit.agent.decisions import End, next_action
from remit.agent.definitions import AgentDefinition
from remit.agent.journal import Progress, Tally, ToolCall, Turn, header_of
from remit.agent.validation import (
    SHIPPED_RULES,
    check_create,
    override_violations,
    resolve_limits,
)
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.guardrails import Rules
from remit.rpc.errors import RemitError, Violation, invalid_request

MAX_CHAIN: Final = 16
"""Runs in one chain of forks, the first source included."""
CURRENT: Final = "current"
"""Value of `agent_version` in overrides that takes the definition as it is now."""

_UNNAMED: Final = "r"
"""Stands for the request id where only what is asked for is checked."""
_LIMITS: Final = tuple(run_pb2.RunLimits.DESCRIPTOR.fields_by_name)


@dataclass(frozen=True, slots=True)
class Point:
    """Where a fork leaves its source."""

    sequence: int
    """Newest event of the source that counts."""
    turns: int
    """Model turns that are taken over."""


def base_of(source: Progress, turns: int) -> Progress:
    """The progress with which a fork begins that takes over so many turns of its source.

    Calls that had not ended are the fork's to make, from their first attempt and as sub-runs of its
    own.
    """
    kept = tuple(_inherited(turn) for turn in source.turns[:turns])
    before = Tally()
    for turn in kept[:-1]:
        before = before.with_turn(turn)
    return Progress(turns=kept, tally_before=before)


def after_sequence(source: Progress) -> Point:
    """The point after the newest event of a progress, which the fold of a part of a journal is."""
    turn = source.turn
    is_whole = turn is None or turn.is_recorded
    return Point(source.sequence, len(source.turns) - (not is_whole))


def before_step(source: Progress, began: dict[int, int], step: int) -> Point:
    """The point just before a step. `began`: the sequence at which each step of the source began.

    A step that the source itself took over has none: then its whole beginning counts, without that
    step. Raises INVALID_REQUEST for a step that the source did not begin.
    """
    newest = max(len(source.turns), 1)
    if not 1 <= step <= newest:
        raise invalid_request(
            [Violation("from_step", f"must be from 1 to {newest}, the newest step that began")]
        )
    return Point(max(began.get(step, 2) - 1, 1), step - 1)


def check_goes_on(source: str, point: Point, begun: Progress, *, field: str) -> None:
    """Raises INVALID_REQUEST where a fork would have nothing to do. `begun`: its first progress."""
    turn = begun.turn
    if turn is None or not isinstance(next_action(begun), End):
        return
    fatal = turn.fatal_error
    if fatal is None and turn.calls:
        fault = f"the fork begins with {turn.step} steps used; give it more than that"
        raise invalid_request([Violation("overrides.limits.max_steps", fault)])
    how = "gave the answer" if fatal is None else "failed"
    fault = (
        f"nothing is left to do after event {point.sequence} of {source}: step {turn.step} {how};"
        f" fork from an earlier event, or with from_step {turn.step}"
    )
    raise invalid_request([Violation(field, fault)])


def check_overrides(overrides: agent_service_pb2.RunOverrides) -> None:
    """Raises INVALID_REQUEST with what no run could have, and for a version but `current`."""
    found = override_violations(overrides)
    if overrides.agent_version not in {"", CURRENT}:
        fault = f"must be `{CURRENT}`, or empty to keep that of the source"
        found.append(Violation("overrides.agent_version", fault))
    if found:
        raise invalid_request(found)


def request_of(
    source: run_pb2.Run,
    own: AgentDefinition,
    overrides: agent_service_pb2.RunOverrides,
    request_id: str,
) -> agent_service_pb2.CreateRunRequest:
    """What a client would ask for who wanted the source with its overrides.

    Limits of the source that are its agent's own follow the agent; `own` is the source's version.
    """
    has_context = overrides.HasField("context")
    return agent_service_pb2.CreateRunRequest(
        agent=source.agent,
        task=overrides.task if overrides.HasField("task") else source.task,
        context=overrides.context.entries if has_context else source.context,
        limits=_asked_limits(source.limits, own.limits(), overrides.limits),
        request_id=request_id,
        priority=overrides.priority or source.priority,
    )


def overridden(
    source: run_pb2.Run,
    own: AgentDefinition,
    definition: AgentDefinition,
    overrides: agent_service_pb2.RunOverrides,
    now: datetime,
    rules: Rules = SHIPPED_RULES,
) -> run_pb2.Run:
    """The source as it would be accepted with its overrides, under a definition.

    `own` is the source's. Raises INVALID_REQUEST or SUSPICIOUS_INPUT about the overrides.
    """
    asked = request_of(source, own, overrides, _UNNAMED)
    with within_overrides():
        asked = check_create(asked, now, rules=rules)
        limits = resolve_limits(asked.limits, definition)
    run = run_pb2.Run()
    run.CopyFrom(source)
    run.agent_version = definition.version
    run.task = asked.task
    run.context.clear()
    run.context.update(asked.context)
    run.limits.CopyFrom(limits)
    run.priority = asked.priority
    return run


@contextlib.contextmanager
def within_overrides() -> Iterator[None]:
    """Names the fields at fault as they stand in the request for a fork."""
    try:
        yield
    except RemitError as error:
        faults = [Violation(f"overrides.{v.field}", v.description) for v in error.violations]
        if not faults:
            raise
        named = invalid_request(faults)
        raise RemitError(
            error.reason, named.message, violations=faults, metadata=error.metadata
        ) from error


def differences(source: run_pb2.Run, fork: run_pb2.Run) -> list[str]:
    """Fields of a fork that are other than its source's, sorted."""
    found = [
        field
        for field in ("agent_version", "context", "priority", "task")
        if getattr(source, field) != getattr(fork, field)
    ]
    found += [
        f"limits.{field}"
        for field in _LIMITS
        if getattr(source.limits, field) != getattr(fork.limits, field)
    ]
    return sorted(found)


def chain_too_long(run: str) -> RemitError:
    """INVALID_REQUEST about a run that is the last of too long a chain of forks."""
    fault = f"{run} ends a chain of {MAX_CHAIN} forks, the longest allowed; fork one of its sources"
    return invalid_request([Violation("name", fault)])


def check_last_step_failed(source: run_pb2.Run) -> None:
    """Raises INVALID_STATE unless a run failed, so that its last step can be tried again."""
    if source.state != run_pb2.RUN_STATE_FAILED:
        state = run_pb2.RunState.Name(source.state).removeprefix("RUN_STATE_")
        raise RemitError(
            reasons.ERROR_REASON_INVALID_STATE,
            f"{source.name} is {state} and has no step that failed; say from_step or from_sequence",
        )


def begun(base: Progress, run: run_pb2.Run) -> Progress:
    """The progress of a fork whose journal holds nothing but its creation."""
    return replace(base, accepted=run, header=header_of(run))


def _inherited(turn: Turn) -> Turn:
    ended = None
    if turn.ended is not None:
        ended = run_pb2.ModelCallEnded()
        ended.CopyFrom(turn.ended)
        _forget_bill(ended)
    return replace(
        turn,
        asked_by=0,
        ended=ended,
        calls=tuple(_inherited_call(call) for call in turn.calls),
        inherited=True,
        # Of two models only the turn that was kept is taken over.
        fallback=None,
        aside=None,
    )


def _inherited_call(call: ToolCall) -> ToolCall:
    if call.ended is None:
        return ToolCall(call.call_id, call.tool, call.arguments)
    ended = run_pb2.ToolCallEnded()
    ended.CopyFrom(call.ended)
    _forget_bill(ended)
    return replace(call, ended=ended, inherited=True)


def _forget_bill(ended: run_pb2.ModelCallEnded | run_pb2.ToolCallEnded) -> None:
    """The source paid, and its effects are in the log under its name."""
    for field in ("usage", "cost_nanos", "claim", "intent_leaf_index"):
        ended.ClearField(field)


def _asked_limits(
    source: run_pb2.RunLimits, own: run_pb2.RunLimits, overrides: run_pb2.RunLimits
) -> run_pb2.RunLimits:
    asked = run_pb2.RunLimits()
    for field in _LIMITS:
        given = overrides if overrides.HasField(field) else source  # type: ignore[arg-type]
        if given is source and getattr(source, field) == getattr(own, field):
            continue
        if field == "max_duration":
            asked.max_duration.CopyFrom(given.max_duration)
        else:
            setattr(asked, field, getattr(given, field))
    return asked
