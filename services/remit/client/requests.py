"""What is asked for, as plain values: field by field what the contracts' requests hold.

A field that a request gains is one line here; what it may hold is the service's to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.rpc.ids import SystemIds


def new_request_id() -> str:
    """An id for one mutation."""
    return SystemIds().uuid7()


@dataclass(frozen=True)
class Limits:
    """Limits of a run below its agent's own; None means the agent's."""

    max_steps: int | None = None
    """Most model turns."""
    max_duration: timedelta | None = None
    """Most time, pauses left out."""
    max_cost_nanos: int | None = None
    """Most money in nano-USD."""


@dataclass(frozen=True)
class NewRun:
    """A run to start. One value is one run, however often it is sent: it has its request id."""

    task: str
    agent: str = "assistant"
    """Its name, with or without `agents/`."""
    _: dataclasses.KW_ONLY
    context: Mapping[str, str] = field(default_factory=dict)
    """Facts given with the task; the model sees them."""
    limits: Limits | None = None
    priority: int = 0
    """Which of its org's waiting runs go first: 1 before 5; 0 means 3."""
    schedule_time: datetime | None = None
    """When it may start, with a time zone; None: at once."""
    conversation: str = ""
    """The conversation that it continues, with or without `conversations/`; empty: none."""
    webhook: str = ""
    """https URL that is told when the run ends."""
    request_id: str = field(default_factory=new_request_id)
    """Names this request: the same id and body get the same run."""

    def to_request(self) -> agent_service_pb2.CreateRunRequest:
        """The request of the contracts."""
        return agent_service_pb2.CreateRunRequest(
            **_fields(self)
            | {
                "agent": full_name("agents", self.agent),
                "conversation": full_name("conversations", self.conversation),
            }
        )


@dataclass(frozen=True, kw_only=True)
class ListedRuns:
    """Which runs to list; an empty field does not filter."""

    agent: str = ""
    """Its name, with or without `agents/`."""
    state: run_pb2.RunState.ValueType = run_pb2.RUN_STATE_UNSPECIFIED
    parent: str = ""
    """The run whose sub-runs are listed."""
    conversation: str = ""
    """The conversation whose runs are listed."""

    def to_request(self) -> agent_service_pb2.ListRunsRequest:
        """The request of the contracts, without its page."""
        return agent_service_pb2.ListRunsRequest(
            **_fields(self)
            | {
                "agent": full_name("agents", self.agent),
                "parent": full_name("runs", self.parent),
                "conversation": full_name("conversations", self.conversation),
            }
        )


def full_name(collection: str, text: str) -> str:
    """`runs/0198...` of either `0198...` or the full name; of nothing, nothing."""
    return text if "/" in text or not text else f"{collection}/{text}"


def _fields(request: NewRun | ListedRuns) -> dict[str, Any]:
    return dataclasses.asdict(request)
