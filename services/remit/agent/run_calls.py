"""`ListRunCalls`: the calls that journals record as ended, for audit to compare with the log.

It tells which effect each was, and no content. What it tells stands in clear beside what is sealed,
so it needs no key and names the calls of erased subjects too. Of entries from before there were
keys it is read from inside.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from remit import names
from remit.agent.call_facts import CallFacts, facts_of
from remit.agent.records import run_id
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.postgres import Database
from remit.rpc.errors import Violation, invalid_request

DEFAULT_PAGE: Final = 500
MAX_PAGE: Final = 1000
_MAX_SEQUENCE: Final = 2**63 - 1
_SELECT: Final = """
    SELECT e.run, e.sequence, e.event_time, e.claim, e.resource, e.intent_leaf_index, r.org,
           CASE WHEN get_byte(e.payload, 0) <> 1 THEN e.payload END AS clear
    FROM run_events e JOIN runs r USING (run)
    WHERE (e.run, e.sequence) > ($1::uuid, $2::bigint) ORDER BY e.run, e.sequence LIMIT $3
"""
_NOW: Final = "SELECT clock_timestamp()"

Request = agent_service_pb2.ListRunCallsRequest
Response = agent_service_pb2.ListRunCallsResponse


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


def _call(row: asyncpg.Record) -> agent_service_pb2.RunCall | None:
    facts = _facts(row)
    if facts is None:
        return None
    call = agent_service_pb2.RunCall(
        key=_key(row),
        org=row["org"],
        resource=facts.resource,
        claim=names.claim_name(str(facts.claim)),
        intent_leaf_index=facts.intent_leaf_index,
    )
    call.event_time.FromDatetime(row["event_time"])
    return call


def _facts(row: asyncpg.Record) -> CallFacts | None:
    if row["claim"] is not None:
        return CallFacts(row["claim"], row["resource"], row["intent_leaf_index"])
    return facts_of(run_pb2.RunEvent.FromString(row["clear"])) if row["clear"] else None


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
