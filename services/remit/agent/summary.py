"""The run as clients see it, derived from its progress: state, files, use, cost."""

from __future__ import annotations

from datetime import datetime

from remit.agent.decisions import End
from remit.agent.journal import Progress, Tally, header_of
from remit.api.agent.v1 import run_pb2
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
    if end.confidence is not None:
        run.confidence.CopyFrom(end.confidence)
    run.ClearField("approvals")
    run.percent = 100
    run.end_time.FromDatetime(now)
    run.last_sequence = progress.sequence + 1
    if run.HasField("webhook"):
        run.webhook.state = run_pb2.WEBHOOK_STATE_PENDING
    return run


def _add_progress(run: run_pb2.Run, progress: Progress) -> None:
    tally = progress.tally
    run.state = progress.state
    run.percent = progress.percent
    run.stage = progress.stage
    run.approvals.extend(progress.approvals)
    run.artifacts.extend(tally.artifacts)
    run.usage.CopyFrom(usage(tally))
    run.cost_nanos = tally.cost_nanos
    if tally.last_leaf_index is not None:
        run.last_leaf_index = tally.last_leaf_index
    if progress.start_time is not None:
        run.start_time.FromDatetime(progress.start_time)


def usage(tally: Tally) -> usage_pb2.Usage:
    """What the run's effects used so far."""
    return usage_pb2.Usage(
        input_tokens=tally.input_tokens,
        cached_input_tokens=tally.cached_input_tokens,
        output_tokens=tally.output_tokens,
        calls=tally.calls,
        estimated=tally.estimated,
    )


def _copy(run: run_pb2.Run) -> run_pb2.Run:
    copy = run_pb2.Run()
    copy.CopyFrom(run)
    return copy
