"""ListRunEvents: a run's events for the agent service, and whose read it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remit.api.audit.v1 import audit_query_service_pb2 as query_pb2
from remit.api.audit.v1 import audit_query_service_pb2_grpc, event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.audit.events import ALICE, BOB, EVE, ORG, RUN
from tests.audit.test_service import AGENT, PUBLIC, TOOLS, Audit, audit, intent, outcome, token

__all__ = ["audit"]
OTHER_RUN = "runs/0198c0de-0000-7000-8000-000000000002"


async def run_events(
    audit: Audit, remit: str, caller: Any = AGENT, **fields: Any
) -> query_pb2.ListRunEventsResponse:
    stub = audit.mesh.as_caller(caller).stub(audit_query_service_pb2_grpc.AuditQueryServiceStub)
    request = query_pb2.ListRunEventsRequest(remit=remit, **{"run": RUN, **fields})
    return await stub.ListRunEvents(request)


async def test_a_runs_events_are_read_and_the_read_is_the_persons(audit: Audit) -> None:
    other = token(run=OTHER_RUN)
    await audit.append(intent("e-1"), intent("e-2", remit=other, run=OTHER_RUN), intent("e-3"))
    await audit.append_outcomes(outcome("e-1-o"))
    first = await run_events(audit, token(BOB, run=""), page_size=2)
    assert [each.event.event_id for each in first.events] == ["e-1-o", "e-3"]
    assert first.has_more
    last = await run_events(audit, token(BOB, run=""), before_leaf_index=2)
    assert [each.event.event_id for each in last.events] == ["e-1"]
    assert not last.has_more
    reads = (await audit.list_events()).events[:2]
    for read in reads:
        event = read.event
        assert (event.kind, event.subject) == (event_pb2.EVENT_KIND_READ, BOB)
        assert (event.action, event.org) == ("audit.read", ORG)
        detail = json.loads(event.detail_json)
        assert (detail["run"], detail["presenter"]) == (RUN, "agent")
    assert [json.loads(r.event.detail_json)["before_leaf_index"] for r in reads] == [2, None]


async def test_another_orgs_reader_finds_nothing(audit: Audit) -> None:
    await audit.append(intent("e-1"))
    assert not (await run_events(audit, token(EVE, run=""))).events


@pytest.mark.parametrize("caller", [PUBLIC, TOOLS])
async def test_only_agent_asks(audit: Audit, caller: Any) -> None:
    with pytest.raises(RemitError) as caught:
        await run_events(audit, token(run=""), caller)
    assert caught.value.reason == reasons.ERROR_REASON_CALLER_NOT_ALLOWED


@pytest.mark.parametrize(
    ("remit", "fields", "reason"),
    [
        ("nonsense", {}, reasons.ERROR_REASON_REMIT_INVALID),
        (token(ALICE), {}, reasons.ERROR_REASON_REMIT_INVALID),
        (token(ALICE, run=""), {"run": "runs/x"}, reasons.ERROR_REASON_INVALID_REQUEST),
        (token(ALICE, run=""), {"run": ""}, reasons.ERROR_REASON_INVALID_REQUEST),
        (token(ALICE, run=""), {"page_size": -1}, reasons.ERROR_REASON_INVALID_REQUEST),
    ],
    ids=["no remit", "a run's remit", "no run", "every run", "page"],
)
async def test_what_is_no_question_is_refused_and_leaves_no_entry(
    audit: Audit, remit: str, fields: dict[str, Any], reason: Any
) -> None:
    await audit.append(intent("e-1"))
    with pytest.raises(RemitError) as caught:
        await run_events(audit, remit, **fields)
    assert caught.value.reason == reason
    # The list's own read is at 1: nothing came between.
    assert [e.leaf_index for e in (await audit.list_events()).events] == [0]
    assert [e.leaf_index for e in (await audit.list_events()).events] == [1, 0]
