"""`ListRunCalls`: the calls that journals record as ended, for audit to compare with the log.

It tells which effect each was, and no content. Every event is looked at, for its kind stands
inside; what is large in one stays where it is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from remit import names
from remit.agent.records import run_id
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.postgres import Database
from remit.rpc.errors import RemitError, Violation, invalid_request

DEFAULT_PAGE: Final = 500
MAX_PAGE: Final = 1000
_MAX_SEQUENCE: Final = 2**63 - 1
_SELECT: Final = """
    SELECT e.run, e.sequence, e.event_time, e.payload, r.org
    FROM run_events e JOIN runs r USING (run)
    WHERE (e.run, e.sequence) > ($1::uuid, $2::bigint) ORDER BY e.run, e.sequence LIMIT $3
"""
_NOW: Final = "SELECT clock_timestamp()"

Request = agent_service_pb2.ListRunCallsRequest
Response = agent_service_pb2.ListRunCallsResponse
Ended = run_pb2.ModelCallEnded | run_pb2.ToolCallEnded


async def list_run_calls(database: Database, request: Request) -> Response:
    """The calls among the next events of all journals. Raises INVALID_REQUEST with every fault."""
    after = _place(request)
    size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    read_time: datetime = await database.fetchval(_NOW)
    rows = await database.fetch(_SELECT, *after, size + 1)
    response = Response(has_more=len(rows) > size)
    response.read_time.FromDatetime(read_time)
    for row in rows[:size]:
        call = _call(row)
        if call is not None:
            response.calls.append(call)
    if rows:
        response.last.CopyFrom(_key(rows[:size][-1]))
    return response


def ended_call(event: run_pb2.RunEvent) -> Ended | None:
    """How a model or tool call ended; None for any other event, and for a sub-run."""
    if event.HasField("model_call_ended"):
        return event.model_call_ended
    if event.HasField("tool_call_ended") and not event.tool_call_ended.run:
        return event.tool_call_ended
    return None


def claim_of(ended: Ended) -> tuple[str, int | None]:
    """The claim of a call and the leaf of its intent: its own, or those that its error names."""
    if ended.claim:
        return ended.claim, ended.intent_leaf_index
    if not ended.HasField("error"):
        return "", None
    metadata = RemitError.from_status(ended.error).metadata
    leaf = metadata.get("intent_leaf_index", "")
    return metadata.get("claim", ""), int(leaf) if leaf.isascii() and leaf.isdecimal() else None


def _call(row: asyncpg.Record) -> agent_service_pb2.RunCall | None:
    ended = ended_call(run_pb2.RunEvent.FromString(row["payload"]))
    if ended is None:
        return None
    claim, leaf = claim_of(ended)
    if not names.is_name("claim", claim):
        return None
    call = agent_service_pb2.RunCall(
        key=_key(row),
        org=row["org"],
        resource=ended.model if isinstance(ended, run_pb2.ModelCallEnded) else ended.tool,
        claim=claim,
        intent_leaf_index=leaf,
    )
    call.event_time.FromDatetime(row["event_time"])
    return call


def _key(row: asyncpg.Record) -> agent_service_pb2.RunEventKey:
    return agent_service_pb2.RunEventKey(
        run=names.run_name(str(row["run"])), sequence=row["sequence"]
    )


def _place(request: Request) -> tuple[UUID, int]:
    violations = []
    after = request.after
    if request.page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
    if after.run and not names.is_name("run", after.run):
        violations.append(Violation("after.run", "must be `runs/{uuid}`"))
    if after.run and not 1 <= after.sequence <= _MAX_SEQUENCE:
        violations.append(Violation("after.sequence", f"is {after.sequence}; it is at least 1"))
    if violations:
        raise invalid_request(violations)
    return (run_id(after.run), after.sequence) if after.run else (UUID(int=0), 0)
