"""Sub-runs: what a model asks of another agent, and what comes of it.

A model is offered agents as it is offered tools. Its call of one becomes a run of that agent, with
a journal, a bill and an end of its own; the call ends with what the run ended with. Pure: who
creates the run and waits for it is elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, Final

from google.protobuf import json_format, struct_pb2

from remit.agent.conversation import tool_key
from remit.agent.definitions import AgentDefinition, did_you_mean
from remit.agent.journal import ToolCall
from remit.agent.validation import MAX_TASK_CHARS, check_create, resolve_limits
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.tools.v1 import tool_pb2
from remit.guardrails import Rules
from remit.rpc.errors import RemitError, Violation, invalid_request

MAX_LINE: Final = 5
"""Runs in one line, the outermost included."""

_SCHEMA: Final = json.dumps(
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["task"],
        "properties": {
            "task": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_TASK_CHARS,
                "description": "What the agent shall do, in words that need no other context.",
            },
            "context": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "Facts that it is given with the task.",
            },
        },
    }
)


def offered(definition: AgentDefinition) -> tool_pb2.Tool:
    """An agent as a model is offered it."""
    return tool_pb2.Tool(
        name=definition.full_name,
        description=f"Hands a part of the task to the agent {definition.display_name}:"
        f" {definition.description} Returns its answer.",
        input_schema_json=_SCHEMA,
    )


def request_of(
    parent: run_pb2.Run,
    definition: AgentDefinition,
    step: int,
    call: ToolCall,
    now: datetime,
    rules: Rules,
) -> agent_service_pb2.CreateRunRequest:
    """What a call of an agent asks for, checked and screened as a client's request is.

    Raises INVALID_REQUEST for an agent that the definition does not name and for arguments that
    are no task, SUSPICIOUS_INPUT as for any task.
    """
    if call.tool not in definition.agent_names:
        near = did_you_mean(call.tool, definition.agent_names)
        raise invalid_request([Violation("agent", f"{call.tool} is not offered{near}")])
    arguments = _checked_arguments(call.arguments)
    request = agent_service_pb2.CreateRunRequest(
        agent=call.tool,
        task=arguments["task"],
        context=arguments.get("context", {}),
        request_id=hashlib.sha256(tool_key(parent.name, step, call).encode()).hexdigest(),
        priority=parent.priority,
    )
    return check_create(request, now, rules=rules)


def sub_run(
    parent: run_pb2.Run,
    name: str,
    definition: AgentDefinition,
    request: agent_service_pb2.CreateRunRequest,
    *,
    left_s: float,
) -> run_pb2.Run:
    """The run that a request of a run asks for: for the same subject, within what is left of it."""
    limits = resolve_limits(run_pb2.RunLimits(), definition)
    limits.max_cost_nanos = min(limits.max_cost_nanos, parent.limits.max_cost_nanos)
    own_s = limits.max_duration.ToNanoseconds() / 1e9
    limits.max_duration.FromNanoseconds(int(max(min(own_s, left_s), 0.001) * 1e9))
    return run_pb2.Run(
        name=name,
        agent=definition.full_name,
        agent_version=definition.version,
        subject=parent.subject,
        task=request.task,
        context=request.context,
        state=run_pb2.RUN_STATE_QUEUED,
        limits=limits,
        last_sequence=1,
        priority=parent.priority,
        parent=parent.name,
    )


def check_line(agent: str, lineage: list[str]) -> None:
    """Raises INVALID_REQUEST for an agent that stands above, and for too long a line.

    `lineage` holds the agents of the starting run and of those above it, its own first.
    """
    if agent in lineage:
        circle = " -> ".join([*reversed(lineage[: lineage.index(agent) + 1]), agent])
        raise invalid_request([Violation("agent", f"would go round in a circle: {circle}")])
    if len(lineage) >= MAX_LINE:
        fault = f"would be run {MAX_LINE + 1} in one line; a line has at most {MAX_LINE}"
        raise invalid_request([Violation("agent", fault)])


def ended_call(step: int, call: ToolCall, run: run_pb2.Run) -> run_pb2.ToolCallEnded:
    """How a call ended that became a run: with its answer or its error, and with its whole bill."""
    ended = run_pb2.ToolCallEnded(
        step=step,
        call_id=call.call_id,
        tool=call.tool,
        artifacts=run.artifacts,
        cost_nanos=run.cost_nanos,
        usage=run.usage,
        run=run.name,
    )
    if run.state == run_pb2.RUN_STATE_SUCCEEDED:
        ended.result.update({"answer": run.result})
    else:
        ended.error.CopyFrom(run.error)
    return ended


def refused_call(step: int, call: ToolCall, error: RemitError) -> run_pb2.ToolCallEnded:
    """How a call ended that became no run."""
    return run_pb2.ToolCallEnded(
        step=step, call_id=call.call_id, tool=call.tool, error=error.to_status()
    )


def _checked_arguments(given: struct_pb2.Struct) -> dict[str, Any]:
    arguments = json_format.MessageToDict(given)
    faults = [
        Violation(key, "is not an argument; there are `task` and `context`")
        for key in sorted(arguments.keys() - {"task", "context"})
    ]
    if not isinstance(arguments.get("task"), str):
        faults.append(Violation("task", "must be a text"))
    context = arguments.get("context", {})
    if not isinstance(context, dict) or not all(isinstance(v, str) for v in context.values()):
        faults.append(Violation("context", "must be an object of texts"))
    if faults:
        raise invalid_request(faults)
    return arguments
