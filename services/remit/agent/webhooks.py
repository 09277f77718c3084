"""What is told when a run ends, and what comes of a try to tell it.

Pure. The message names the run and says how it ended; it holds no task, no result and no text of an
error, since it leaves Remit for an address that anybody may have typed. Whoever may read the run
gets the rest by GetRun.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from google.protobuf import json_format, struct_pb2

from remit import names, webhooks
from remit.agent.failures import backoff_s
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_service_pb2
from remit.rpc.errors import RemitError

EVENT_TYPE: Final = "run.ended"
_TOLD: Final = ("name", "agent", "agent_version", "subject", "cost_nanos", "last_sequence")
_TOLD_MESSAGES: Final = ("usage", "create_time", "start_time", "end_time")


class Fate(Enum):
    """What comes of a try."""

    DELIVERED = auto()
    """The receiver confirmed it."""
    AGAIN = auto()
    """It failed, or nobody knows; the next try is another call."""
    SAME_AGAIN = auto()
    """The mesh could not make the call, or not say how it ended: the same call, later."""
    GIVEN_UP = auto()
    """No other try can mend it."""


_FATES: Final = {
    reasons.ERROR_REASON_TOO_LARGE: Fate.GIVEN_UP,
    reasons.ERROR_REASON_INVALID_TOOL_ARGUMENTS: Fate.GIVEN_UP,
    reasons.ERROR_REASON_INVALID_REQUEST: Fate.GIVEN_UP,
    reasons.ERROR_REASON_TOOL_NOT_FOUND: Fate.GIVEN_UP,
    reasons.ERROR_REASON_PERMISSION_DENIED: Fate.GIVEN_UP,
    reasons.ERROR_REASON_PRINCIPAL_DISABLED: Fate.GIVEN_UP,
    reasons.ERROR_REASON_KEY_REUSED: Fate.GIVEN_UP,
    reasons.ERROR_REASON_RUN_NOT_FOUND: Fate.GIVEN_UP,
    reasons.ERROR_REASON_FENCED: Fate.GIVEN_UP,
    reasons.ERROR_REASON_DATA_CORRUPT: Fate.GIVEN_UP,
    reasons.ERROR_REASON_SUBJECT_ERASED: Fate.GIVEN_UP,
    # A draining service cancels; the remit is asked for anew each time.
    reasons.ERROR_REASON_CANCELLED: Fate.SAME_AGAIN,
    reasons.ERROR_REASON_REMIT_INVALID: Fate.SAME_AGAIN,
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a delivery is tried."""

    max_tries: int
    max_age_s: float
    base_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is recorded of a try."""

    state: run_pb2.WebhookState.ValueType
    tries: int
    wait_s: float = 0.0
    """Until the next try, while PENDING."""
    error: RemitError | None = None


def waiting(url: str, run: str) -> run_pb2.Webhook:
    """The webhook of a run that begins."""
    return run_pb2.Webhook(url=url, id=identifier(run), state=run_pb2.WEBHOOK_STATE_WAITING)


def identifier(run: str) -> str:
    """The id of the message that tells a run's end: the same for ever."""
    return f"run_ended_{names.parse('run', run)[0]}"


def event_of(run: run_pb2.Run) -> dict[str, Any]:
    """The message that tells a run's end: its fields as in REST, without what people wrote."""
    told = run_pb2.Run(state=run.state, **{field: getattr(run, field) for field in _TOLD})
    for field in _TOLD_MESSAGES:
        if run.HasField(field):
            getattr(told, field).CopyFrom(getattr(run, field))
    data = json_format.MessageToDict(told, preserving_proto_field_name=True)
    if run.HasField("error"):
        data["error_reason"] = RemitError.from_status(run.error).reason_name
    return {"type": EVENT_TYPE, "timestamp": run.end_time.ToJsonString(), "data": data}


def call_of(run: run_pb2.Run, number: int) -> tool_service_pb2.CallToolRequest:
    """The call that is try `number`, from 1. The same number is the same call."""
    arguments = struct_pb2.Struct()
    arguments.update(
        {"url": run.webhook.url, "identifier": identifier(run.name), "event": event_of(run)}
    )
    return tool_service_pb2.CallToolRequest(
        tool=webhooks.TOOL,
        arguments=arguments,
        request_id=webhooks.call_key(run.name, number),
    )


def fate_of(error: RemitError | None) -> Fate:
    """What comes of a call that ended so; None: it succeeded."""
    if error is None:
        return Fate.DELIVERED
    if error.metadata.get(webhooks.FINAL) == "true":
        return Fate.GIVEN_UP
    known = _FATES.get(error.reason)
    return known or (Fate.SAME_AGAIN if error.retryable else Fate.AGAIN)


def judge(
    error: RemitError | None, *, tries: int, age_s: float, patience: Patience, chance: float
) -> Verdict:
    """What is recorded of a try that ended so, after `tries` others, `age_s` after the run's end.

    `chance` is a number in [0, 1).
    """
    fate = fate_of(error)
    tries += fate is not Fate.SAME_AGAIN
    if fate is Fate.DELIVERED:
        return Verdict(run_pb2.WEBHOOK_STATE_DELIVERED, tries)
    failed = Verdict(run_pb2.WEBHOOK_STATE_FAILED, tries, error=error)
    if fate is Fate.GIVEN_UP or tries >= patience.max_tries:
        return failed
    wait_s = backoff_s(
        max(tries, 1),
        error.retry_after_s if error is not None and fate is Fate.SAME_AGAIN else None,
        base_s=patience.base_s,
        cap_s=patience.cap_s,
        chance=lambda: chance,
    )
    if age_s + wait_s > patience.max_age_s:
        return failed
    return Verdict(run_pb2.WEBHOOK_STATE_PENDING, tries, wait_s, error)
