"""The journal of one run as a service sends it: a tool call between two turns of the model."""

from __future__ import annotations

from google.protobuf import timestamp_pb2

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.usage.v1 import usage_pb2
from remit.rpc.errors import RemitError

RUN = "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
CREATED_S = 1_795_446_000
"""2026-11-23 15:00:00 UTC."""
COST_NANOS = 76_800


def accepted_run(created_s: int = CREATED_S) -> run_pb2.Run:
    """The run when it was accepted."""
    run = run_pb2.Run(
        name=RUN,
        agent="agents/assistant",
        subject="orgs/local/users/admin",
        task="What is 17 * 23?",
        state=run_pb2.RUN_STATE_QUEUED,
    )
    run.create_time.seconds = created_s
    run.limits.max_steps = 8
    run.limits.max_duration.seconds = 300
    run.limits.max_cost_nanos = 500_000_000
    return run


def ended_run(
    state: run_pb2.RunState.ValueType = run_pb2.RUN_STATE_SUCCEEDED,
    error: RemitError | None = None,
) -> run_pb2.Run:
    """The run as it ended."""
    run = accepted_run()
    run.state = state
    run.end_time.seconds = CREATED_S + 1
    run.end_time.nanos = 420_000_000
    run.usage.CopyFrom(usage_pb2.Usage(input_tokens=1_460, output_tokens=14, calls=3))
    run.cost_nanos = COST_NANOS
    run.last_leaf_index = 5
    if error is not None:
        run.error.CopyFrom(error.to_status())
    else:
        run.result = "17 * 23 = 391"
    return run


def journal(end: run_pb2.Run | None = None) -> list[run_pb2.RunEvent]:
    """Every event, in order."""
    events = [
        run_pb2.RunEvent(created=run_pb2.RunCreated(run=accepted_run())),
        run_pb2.RunEvent(started=run_pb2.RunStarted(fencing_token=1, replica="0")),
        run_pb2.RunEvent(stage_started=run_pb2.StageStarted(stage="thinking")),
        run_pb2.RunEvent(
            model_call_started=run_pb2.ModelCallStarted(step=1, model="models/builtin-rules")
        ),
        run_pb2.RunEvent(text_delta=run_pb2.TextDelta(step=1, text="I shall ")),
        run_pb2.RunEvent(text_delta=run_pb2.TextDelta(step=1, text="calculate.")),
        _model_ended(1, tool_calls=1),
        run_pb2.RunEvent(stage_started=run_pb2.StageStarted(stage="using tools"), percent=12),
        _tool_started(),
        _tool_ended(),
        run_pb2.RunEvent(text_delta=run_pb2.TextDelta(step=2, text="17 * 23 = 391"), percent=12),
        _model_ended(2, tool_calls=0),
        run_pb2.RunEvent(ended=run_pb2.RunEnded(run=end or ended_run()), percent=100),
    ]
    for sequence, event in enumerate(events, start=1):
        event.run = RUN
        event.sequence = sequence
        event.event_time.CopyFrom(timestamp_pb2.Timestamp(seconds=CREATED_S + sequence))
    return events


def responses(
    events: list[run_pb2.RunEvent], after_sequence: int = 0
) -> list[agent_service_pb2.StreamRunResponse]:
    """What StreamRun sends of a journal, a heartbeat among it."""
    heartbeat = agent_service_pb2.StreamRunResponse(sequence=after_sequence)
    return [
        heartbeat,
        *(
            agent_service_pb2.StreamRunResponse(event=event, sequence=event.sequence)
            for event in events
            if event.sequence > after_sequence
        ),
    ]


def _model_ended(step: int, tool_calls: int) -> run_pb2.RunEvent:
    return run_pb2.RunEvent(
        percent=12 if step > 1 else 0,
        model_call_ended=run_pb2.ModelCallEnded(
            step=step,
            model="models/builtin-rules",
            tool_calls=tool_calls,
            usage=usage_pb2.Usage(input_tokens=730, output_tokens=7, calls=1),
            cost_nanos=37_900,
            claim="claims/1",
            intent_leaf_index=2 * step - 1,
        ),
    )


def _tool_started() -> run_pb2.RunEvent:
    call = run_pb2.ToolCallStarted(step=1, call_id="1", tool="tools/calculator")
    call.arguments.update({"expression": "17 * 23"})
    return run_pb2.RunEvent(tool_call_started=call, percent=12)


def _tool_ended() -> run_pb2.RunEvent:
    call = run_pb2.ToolCallEnded(
        step=1, call_id="1", tool="tools/calculator", cost_nanos=1_000, intent_leaf_index=3
    )
    call.result.update({"result": "391"})
    return run_pb2.RunEvent(tool_call_ended=call, percent=12)
