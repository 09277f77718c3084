"""The run as clients see it, derived from its progress: state, files, use, cost."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from remit.agent.decisions import End
from remit.agent.journal import Progress, header_of
from remit.api.agent.v1 import run_pb2
from remit.api.tools.v1 import tool_pb2
from remit.api.usage.v1 import usage_pb2


def run_of(progress: Progress) -> run_pb2.Run:
    """The run as clients see it."""
    run = summary_of(progress)
    run.task = progress.accepted.task
    run.context.update(progress.accepted.context)
    return run


def summary_of(progress: Progress) -> run_pb2.Run:
    """The run without its task and context: what its row keeps, anew with every entry."""
    if progress.ended is not None:
        run = header_of(progress.ended)
    else:
        run = _copy(progress.header)
        _add_progress(run, progress)
    run.last_sequence = progress.sequence
    return run


def ended_run(progress: Progress, end: End, now: datetime) -> run_pb2.Run:
    """The run as its last event, the next in sequence, will record it."""
    run = run_of(progress)
    run.state = end.state
    run.result = end.result
    if end.error is not None:
        run.error.CopyFrom(end.error)
    run.end_time.FromDatetime(now)
    run.last_sequence = progress.sequence + 1
    return run


def _add_progress(run: run_pb2.Run, progress: Progress) -> None:
    run.state = progress.state
    run.artifacts.extend(artifacts(progress))
    run.usage.CopyFrom(usage(progress))
    run.cost_nanos = cost_nanos(progress)
    leaf_index = last_leaf_index(progress)
    if leaf_index is not None:
        run.last_leaf_index = leaf_index
    if progress.start_time is not None:
        run.start_time.FromDatetime(progress.start_time)


def artifacts(progress: Progress) -> tuple[tool_pb2.Artifact, ...]:
    """Files that the run made, by name; a later file of the same name replaces the earlier."""
    by_name: dict[str, tool_pb2.Artifact] = {}
    for turn in progress.turns:
        for call in turn.calls:
            if call.ended is not None:
                by_name |= {artifact.name: artifact for artifact in call.ended.artifacts}
    return tuple(by_name[name] for name in sorted(by_name))


def usage(progress: Progress) -> usage_pb2.Usage:
    """What the run's effects used so far."""
    total = usage_pb2.Usage()
    for effect in _effects(progress):
        total.input_tokens += effect.usage.input_tokens
        total.cached_input_tokens += effect.usage.cached_input_tokens
        total.output_tokens += effect.usage.output_tokens
        total.calls += effect.usage.calls
        total.estimated |= effect.usage.estimated
    return total


def cost_nanos(progress: Progress) -> int:
    """What the run's effects cost so far, in nano-USD."""
    return sum(effect.cost_nanos for effect in _effects(progress))


def last_leaf_index(progress: Progress) -> int | None:
    """Index of the newest intent of the run's effects; None while it has none."""
    return max((e.intent_leaf_index for e in _effects(progress) if e.claim), default=None)


def _effects(
    progress: Progress,
) -> Iterable[run_pb2.ModelCallEnded | run_pb2.ToolCallEnded]:
    for turn in progress.turns:
        if turn.ended is not None:
            yield turn.ended
        yield from (call.ended for call in turn.calls if call.ended is not None)


def _copy(run: run_pb2.Run) -> run_pb2.Run:
    copy = run_pb2.Run()
    copy.CopyFrom(run)
    return copy
