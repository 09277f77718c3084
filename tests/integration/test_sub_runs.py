"""A tree of runs through the front door: what policy, the ledger and the log make of it."""

from __future__ import annotations

import json

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from tests.integration.clients import a_run, bearer, channel, followed, result_of
from tests.integration.conftest import RunningMesh
from tests.waiting import eventually

TASK = (
    "Ask the assistant what 17 * 23 is, ask the clerk to write 'tides' to sub-run.txt"
    " and write the answers to answers.txt."
)


async def test_a_coordinator_hands_its_task_to_others(mesh: RunningMesh) -> None:
    request = a_run(TASK)
    request.agent = "agents/coordinator"
    run = result_of(await followed(mesh.address, mesh.api_key, request))
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run
    assert "The assistant answers: 17 * 23 = 391" in run.result
    assert "The clerk answers: Wrote sub-run.txt." in run.result
    assert "Wrote answers.txt." in run.result
    async with channel(mesh.address) as edge:
        runs = agent_service_pb2_grpc.AgentServiceStub(edge)
        listed = await runs.ListRuns(
            agent_service_pb2.ListRunsRequest(parent=run.name), metadata=bearer(mesh.api_key)
        )
        children = {child.agent: child for child in listed.runs}
        assert set(children) == {"agents/assistant", "agents/clerk"}
        assert [artifact.name for artifact in run.artifacts] == ["answers.txt", "sub-run.txt"]
        cost = cost_report_service_pb2_grpc.CostReportServiceStub(edge)

        async def all_is_posted() -> bool:
            response = await cost.ListSpend(
                cost_report_service_pb2.ListSpendRequest(
                    group_by=cost_report_service_pb2.ListSpendRequest.DIMENSION_RUN, page_size=200
                ),
                metadata=bearer(mesh.api_key),
            )
            posted = {row.key: row.posted_nanos for row in response.rows}
            tree = [run.name, *(child.name for child in children.values())]
            return sum(posted.get(name, 0) for name in tree) == run.cost_nanos

        await eventually(all_is_posted)
        audit = audit_query_service_pb2_grpc.AuditQueryServiceStub(edge)
        for child in children.values():
            found = await audit.ListEvents(
                audit_query_service_pb2.ListEventsRequest(run=child.name, page_size=200),
                metadata=bearer(mesh.api_key),
            )
            intents = [e.event for e in found.events if e.event.kind == event_pb2.EVENT_KIND_INTENT]
            assert len(intents) == 3, "two model turns and a tool"
            assert {intent.subject for intent in intents} == {run.subject}
    shown = mesh.run("runs", "tree", run.name, "--json")
    document = json.loads(shown.stdout)
    names = {below["run"]["name"] for below in document["sub_runs"]}
    assert names == {child.name for child in children.values()}
    bill = json.loads(mesh.run("spend", "--run", run.name, "--json").stdout)["runs"]
    assert bill[0]["whole"]["posted_nanos"] == run.cost_nanos
    assert {each["run"]: each["parent"] for each in bill} == {run.name: ""} | dict.fromkeys(
        names, run.name
    )
    assert sum(each["own"]["posted_nanos"] for each in bill) == run.cost_nanos
