"""What a request for a run must fulfil, checked in full before anything is stored.

Every violation is reported at once, so that a person corrects a request in one go. Task and context
are screened by the guardrails: markup that a browser would run is refused if nothing else is said,
because results are shown in consoles and web pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

from google.protobuf import timestamp_pb2

from remit import names
from remit.addresses import Network
from remit.agent.definitions import AgentDefinition
from remit.api.agent.v1 import agent_service_pb2, conversation_service_pb2, run_pb2
from remit.guardrails import Direction, Names, Rules, Screening
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.webhooks import parse_url

MAX_TASK_CHARS: Final = 10_000
MAX_CONTEXT_ENTRIES: Final = 50
MAX_CONTEXT_KEY_CHARS: Final = 100
MAX_CONTEXT_VALUE_CHARS: Final = 10_000
MAX_REQUEST_ID_CHARS: Final = 64
MAX_DISPLAY_NAME_CHARS: Final = 100
MAX_STEPS: Final = 100
MAX_DURATION_S: Final = 86_400
FIRST_PRIORITY: Final = 1
DEFAULT_PRIORITY: Final = 3
LAST_PRIORITY: Final = 5
MAX_SCHEDULE_AHEAD: Final = timedelta(days=30)

_NANOS: Final = 1_000_000_000
_EARLIEST_S: Final = -62_135_596_800
"""0001-01-01T00:00:00Z, the least that a Timestamp may say."""

SHIPPED_GUARDRAILS: Final = "suspicious_patterns.input=refuse, secrets.input=flag"
SHIPPED_RULES: Final = Rules.of("", SHIPPED_GUARDRAILS)

_Texts = TypeVar("_Texts", agent_service_pb2.CreateRunRequest, run_pb2.Run)
"""What has a task and a context."""


def check_create(
    request: agent_service_pb2.CreateRunRequest,
    now: datetime,
    webhook_networks: Sequence[Network] = (),
    rules: Rules = SHIPPED_RULES,
) -> agent_service_pb2.CreateRunRequest:
    """The request that came at `now`, its shape checked and its texts screened by `rules`.

    What they replace is replaced in what is returned. A webhook may lead to public addresses and to
    `webhook_networks`.

    Raises INVALID_REQUEST or SUSPICIOUS_INPUT with every violation found; INVALID_REQUEST goes
    first because a malformed request is malformed whatever its text says.
    """
    shape = [
        *_names(request),
        *_task(request.task),
        *_context(request),
        *_limits(request.limits),
        *_place_in_queue(request, now),
        *_webhook(request.webhook, webhook_networks),
    ]
    screening = Screening(rules, Direction.INPUT)
    screened = _screened(screening, request)
    refused = _refusal(shape, screening)
    screening.count("run")
    if refused is not None:
        raise refused
    return screened


def screened_run(run: run_pb2.Run, rules: Rules) -> run_pb2.Run:
    """A run that was accepted, with its texts screened by rules that are known only now.

    Raises SUSPICIOUS_INPUT with every violation found.
    """
    screening = Screening(rules, Direction.INPUT)
    if screening.is_off:
        return run
    screened = _screened(screening, run)
    screening.count("run")
    refused = screening.refusal()
    if refused is not None:
        raise refused
    return screened


def check_conversation(
    request: conversation_service_pb2.CreateConversationRequest, rules: Rules = SHIPPED_RULES
) -> str:
    """The name of a conversation, screened.

    Raises INVALID_REQUEST or SUSPICIOUS_INPUT with every violation found.
    """
    name = request.display_name
    shape = list(_request_id(request.request_id))
    if len(name) > MAX_DISPLAY_NAME_CHARS or not name.isprintable():
        fault = f"must have up to {MAX_DISPLAY_NAME_CHARS} printable characters"
        shape.append(Violation("display_name", fault))
    screening = Screening(rules, Direction.INPUT)
    screened = screening.text("display_name", name[:MAX_DISPLAY_NAME_CHARS])
    screening.count("conversation")
    refused = _refusal(shape, screening)
    if refused is not None:
        raise refused
    return screened


def override_violations(overrides: agent_service_pb2.RunOverrides) -> list[Violation]:
    """What no run could have, whatever its source."""
    found = [*_limits(overrides.limits), *_priority(overrides.priority)]
    if overrides.HasField("task"):
        found += _task(overrides.task)
    return [Violation(f"overrides.{each.field}", each.description) for each in found]


def check_request_id(request_id: str) -> None:
    """Raises INVALID_REQUEST unless the id has 1 to 64 printable characters."""
    _raise_if(list(_request_id(request_id)))


def check_name(kind: str, field: str, name: str) -> None:
    """Raises INVALID_REQUEST unless `name` is a full name of that kind."""
    _raise_if(list(_full_name(kind, field, name)))


def resolve_limits(asked: run_pb2.RunLimits, definition: AgentDefinition) -> run_pb2.RunLimits:
    """The limits of a run: what was asked for, else the agent's own.

    Raises INVALID_REQUEST where a limit asked for is above the agent's own: nothing is cut in
    silence.
    """
    _raise_if(list(_above_own(asked, definition)))
    limits = definition.limits()
    if asked.HasField("max_duration"):
        # Merging would add the nanoseconds of one to the seconds of the other.
        limits.ClearField("max_duration")
    limits.MergeFrom(asked)
    return limits


def _raise_if(violations: list[Violation]) -> None:
    if violations:
        raise invalid_request(violations)


def _names(request: agent_service_pb2.CreateRunRequest) -> Iterator[Violation]:
    yield from _full_name("agent", "agent", request.agent)
    if request.conversation:
        yield from _full_name("conversation", "conversation", request.conversation)
    yield from _request_id(request.request_id)


def _full_name(kind: str, field: str, name: str) -> Iterator[Violation]:
    if not names.is_name(kind, name):
        yield Violation(field, f"must be the full name of a {kind}, such as {_EXAMPLES[kind]}")


_EXAMPLES: Final = {
    "agent": "agents/assistant",
    "run": "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
    "conversation": "conversations/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
}


def _request_id(request_id: str) -> Iterator[Violation]:
    if not (1 <= len(request_id) <= MAX_REQUEST_ID_CHARS and request_id.isprintable()):
        yield Violation("request_id", f"must have 1 to {MAX_REQUEST_ID_CHARS} printable characters")


def _task(task: str) -> Iterator[Violation]:
    if not task.strip():
        yield Violation("task", "must not be empty")
    elif len(task) > MAX_TASK_CHARS:
        yield Violation("task", f"has {len(task)} characters; at most {MAX_TASK_CHARS} are allowed")
    if "\x00" in task:
        yield Violation("task", "contains a NUL character")


def _context(request: agent_service_pb2.CreateRunRequest) -> Iterator[Violation]:
    if len(request.context) > MAX_CONTEXT_ENTRIES:
        yield Violation(
            "context",
            f"has {len(request.context)} entries; at most {MAX_CONTEXT_ENTRIES} are allowed",
        )
        return  # nobody reads of each of thousands
    for key, value in sorted(request.context.items()):
        yield from _context_entry(key, value)


def _context_entry(key: str, value: str) -> Iterator[Violation]:
    field = _context_field(key)
    if not 1 <= len(key) <= MAX_CONTEXT_KEY_CHARS:
        yield Violation(field, f"the key must have 1 to {MAX_CONTEXT_KEY_CHARS} characters")
    if len(value) > MAX_CONTEXT_VALUE_CHARS:
        yield Violation(
            field, f"has {len(value)} characters; at most {MAX_CONTEXT_VALUE_CHARS} are allowed"
        )


def _context_field(key: str) -> str:
    # The key is the client's own text: cut, so that an error stays readable.
    return f"context[{key[:40]}]"


def _limits(limits: run_pb2.RunLimits) -> Iterator[Violation]:
    if limits.HasField("max_steps") and not 1 <= limits.max_steps <= MAX_STEPS:
        yield Violation("limits.max_steps", f"must be from 1 to {MAX_STEPS}")
    if limits.HasField("max_duration"):
        seconds = limits.max_duration.ToNanoseconds() / 1e9
        if not 0 < seconds <= MAX_DURATION_S:
            yield Violation("limits.max_duration", "must be more than 0 s and at most 24 h")
    if limits.HasField("max_cost_nanos") and limits.max_cost_nanos < 0:
        yield Violation("limits.max_cost_nanos", "must not be negative")


def _priority(priority: int) -> Iterator[Violation]:
    if priority and not FIRST_PRIORITY <= priority <= LAST_PRIORITY:
        yield Violation("priority", f"must be from {FIRST_PRIORITY} to {LAST_PRIORITY}, or 0")


def _place_in_queue(
    request: agent_service_pb2.CreateRunRequest, now: datetime
) -> Iterator[Violation]:
    yield from _priority(request.priority)
    if not request.HasField("schedule_time"):
        return
    latest = timestamp_pb2.Timestamp()
    latest.FromDatetime(now + MAX_SCHEDULE_AHEAD)
    asked = request.schedule_time
    # Compared as they came: a time beyond what a datetime holds is refused and crashes nothing.
    if not 0 <= asked.nanos < _NANOS or asked.seconds < _EARLIEST_S:
        yield Violation("schedule_time", "is not a time")
    elif (asked.seconds, asked.nanos) > (latest.seconds, latest.nanos):
        yield Violation("schedule_time", f"must be within {MAX_SCHEDULE_AHEAD.days} days")


def _webhook(url: str, networks: Sequence[Network]) -> Iterator[Violation]:
    if not url:
        return
    try:
        parse_url(url, networks)
    except ValueError as error:
        yield Violation("webhook", str(error))


def _above_own(asked: run_pb2.RunLimits, definition: AgentDefinition) -> Iterator[Violation]:
    own = definition.limits()
    if asked.HasField("max_steps") and asked.max_steps > own.max_steps:
        yield _above("max_steps", str(own.max_steps))
    if asked.max_duration.ToNanoseconds() > own.max_duration.ToNanoseconds():
        yield _above("max_duration", f"{definition.max_duration_s} s")
    if asked.HasField("max_cost_nanos") and asked.max_cost_nanos > own.max_cost_nanos:
        yield _above("max_cost_nanos", str(own.max_cost_nanos))


def _above(field: str, own: str) -> Violation:
    return Violation(f"limits.{field}", f"must not be above the agent's own limit, {own}")


def _screened(screening: Screening, request: _Texts) -> _Texts:
    """The request with its texts as they may go on."""
    screened = type(request)()
    screened.CopyFrom(request)
    screened.task = screening.text("task", request.task)
    # Of too many entries the number alone is a fault.
    few = len(request.context) <= MAX_CONTEXT_ENTRIES
    screened.context.clear()
    given = Names(request.context)
    for key, value in sorted(request.context.items() if few else ()):
        name = given.name(key, screening.text("context", key))
        # A key in which something was found is not repeated.
        field = _context_field(key) if name == key else "context"
        screened.context[name] = screening.text(field, value)
    return screened


def _refusal(shape: list[Violation], screening: Screening) -> RemitError | None:
    if shape:
        return invalid_request([*shape, *screening.violations])
    return screening.refusal()
