"""The spans of a run: the run itself, and its stages.

A run outlives the request that created it and may pass through several replicas. So its own span is
recorded once, by whoever writes its end, over its whole time; its id follows from the run's name,
and what is done for the run stands below it wherever it is done. A replica that dies loses the
spans that it had not ended, and no other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from remit.agent.journal import Progress
from remit.agent.records import run_id
from remit.api.agent.v1 import run_pb2
from remit.rpc.errors import RemitError
from remit.telemetry import Span, Trace, current, fresh, parse, span, table
from remit.telemetry.spans import Kind, Value, error_type_of, recording, start
from remit.telemetry.trace import for_runs


def traceparent_of_call() -> str:
    """The traceparent of the call being served, to be kept with the run that it creates.

    That of the caller where there is one: its span ends even if this replica dies.
    """
    place = current() or fresh()
    return (parse(place.remote) or place).traceparent


def place_of(run: str, traceparent: str) -> Trace:
    """Where the work on a run stands: below the run's own span, if one will be recorded."""
    origin = parse(traceparent)
    if recording(origin) is None:
        return for_runs(origin, [run])
    return replace(for_runs(origin, [run]), span_id=span_id_of(run), remote="")


def span_id_of(run: str) -> str:
    """The id of a run's span: the half of its UUID that is random."""
    return run_id(run).hex[16:]


@contextlib.contextmanager
def stage(name: str, step: int, facts: Mapping[str, Value]) -> Iterator[Span]:
    """The span of one stage."""
    with span(f"stage {name}", attributes={table.STAGE: name, table.STEP: step, **facts}) as opened:
        yield opened


@contextlib.contextmanager
def answering(facts: Mapping[str, Value]) -> Iterator[Callable[[], None]]:
    """The span of an answer on its way, which begins when the function that this gives is called.

    What ends the body ends it, and fails it if the answer breaks off.
    """
    opened: Span | None = None

    def begin() -> None:
        nonlocal opened
        opened = opened or start(f"stage {facts[table.STAGE]}", attributes=facts)

    try:
        yield begin
    except BaseException as error:
        if opened is not None:
            opened.failed(error_type_of(error))
        raise
    finally:
        if opened is not None:
            opened.end()


def record_run(progress: Progress, traceparent: str) -> None:
    """Records the span of a run that has ended, if its trace is recorded."""
    ended, origin = progress.ended, parse(traceparent)
    tracer = recording(origin)
    if ended is None or tracer is None or origin is None:
        return
    agent = ended.agent.removeprefix("agents/")
    made = tracer.start(
        f"{table.INVOKE_AGENT} {agent}",
        kind=Kind.INTERNAL,
        parent=origin,
        attributes=_facts(progress, ended, agent),
        start_time_ns=ended.create_time.ToNanoseconds(),
        span_id=span_id_of(ended.name),
    )
    if ended.state == run_pb2.RUN_STATE_FAILED:
        made.failed(RemitError.from_status(ended.error).reason_name)
    made.end(ended.end_time.ToNanoseconds())


def _facts(progress: Progress, ended: run_pb2.Run, agent: str) -> dict[str, Value]:
    given = progress.accepted
    return {
        table.GEN_AI_OPERATION: table.INVOKE_AGENT,
        table.GEN_AI_AGENT_NAME: agent,
        table.GEN_AI_AGENT_VERSION: ended.agent_version,
        table.RUN: ended.name,
        table.RUN_STATE: run_pb2.RunState.Name(ended.state).removeprefix("RUN_STATE_"),
        table.MODEL_CALLS: sum(turn.model_calls for turn in progress.turns),
        table.TOOL_CALLS: sum(not c.inherited for turn in progress.turns for c in turn.calls),
        table.TASK_BYTES: len(given.task.encode()),
        table.RESULT_BYTES: len(ended.result.encode()),
        table.INPUT_TOKENS: ended.usage.input_tokens,
        table.OUTPUT_TOKENS: ended.usage.output_tokens,
        table.COST_NANOS: ended.cost_nanos,
        table.FENCING_TOKEN: progress.fencing_token,
    }
