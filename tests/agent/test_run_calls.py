"""ListRunCalls: every call of every journal, page by page, without any content, for audit alone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from remit.agent.call_facts import claim_of, ended_call
from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica
from tests.agent.histories import RUN

CLAIM = f"claims/{UUID(int=5)}"
AUDIT = options_pb2.CALLER_AUDIT


async def listed(
    replica: Replica, caller: Any = AUDIT, **fields: Any
) -> agent_service_pb2.ListRunCallsResponse:
    stub = replica.mesh.as_caller(caller).stub(agent_service_pb2_grpc.AgentServiceStub)
    return await stub.ListRunCalls(agent_service_pb2.ListRunCallsRequest(**fields))


async def test_every_call_of_every_journal_is_listed_once(replica: StartReplica) -> None:
    one = await replica()
    client = one.client()
    expected = []
    for task in ("What is 17 * 23?", "What is 3 * 5?"):
        run = await client.create(task)
        for event in await client.watch(run.name):
            for ended in (event.model_call_ended, event.tool_call_ended):
                if ended.claim:
                    place = (run.name, event.sequence)
                    expected.append((*place, ended.claim, ended.intent_leaf_index))
    found: list[agent_service_pb2.RunCall] = []
    pages = 0
    request: dict[str, Any] = {"page_size": 4}
    while True:
        page = await listed(one, **request)
        assert page.read_time.seconds > 0
        found += page.calls
        pages += 1
        if not page.has_more:
            break
        request["after"] = page.last
    assert pages > 3
    told = [(c.key.run, c.key.sequence, c.claim, c.intent_leaf_index) for c in found]
    assert told == sorted(expected)
    assert len(told) == 6
    assert {call.org for call in found} == {"orgs/acme"}
    assert [call.resource for call in found[:3]] == [
        "models/builtin-rules",
        "tools/calculator",
        "models/builtin-rules",
    ]
    assert (await listed(one)).calls == found


async def test_an_empty_service_has_none(replica: StartReplica) -> None:
    page = await listed(await replica())
    assert (list(page.calls), page.has_more, page.HasField("last")) == ([], False, False)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"claim": CLAIM, "intent_leaf_index": "12"}, (CLAIM, 12)),
        ({"claim": CLAIM}, (CLAIM, None)),
        ({"claim": CLAIM, "intent_leaf_index": "x"}, (CLAIM, None)),
        ({}, ("", None)),
    ],
)
def test_a_call_that_failed_names_its_claim_in_its_error(
    metadata: dict[str, str], expected: tuple[str, int | None]
) -> None:
    error = RemitError(reasons.ERROR_REASON_TOOL_FAILED, "no", metadata=metadata)
    assert claim_of(run_pb2.ToolCallEnded(error=error.to_status())) == expected


def test_a_sub_run_is_no_call() -> None:
    ended = run_pb2.ToolCallEnded(tool="agents/b", run=RUN)
    assert ended_call(run_pb2.RunEvent(tool_call_ended=ended)) is None
    assert ended_call(run_pb2.RunEvent(text_delta=run_pb2.TextDelta())) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"page_size": -1},
        {"after": {"run": "runs/x", "sequence": 1}},
        {"after": {"run": RUN, "sequence": 0}},
    ],
)
async def test_what_is_no_place_is_refused(replica: StartReplica, fields: dict[str, Any]) -> None:
    with pytest.raises(RemitError) as caught:
        await listed(await replica(), **fields)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST


@pytest.mark.parametrize("caller", [options_pb2.CALLER_PUBLIC, options_pb2.CALLER_TOOLS])
async def test_only_audit_asks(replica: StartReplica, caller: Any) -> None:
    with pytest.raises(RemitError) as caught:
        await listed(await replica(), caller)
    assert caught.value.reason == reasons.ERROR_REASON_CALLER_NOT_ALLOWED
