"""The client's calls over the real protocol, against an edge with scripted answers."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.client import Client, ListedRuns, NewRun, Patience, RemitError
from remit.client.resumption import Resumption
from remit.rpc.errors import Violation, invalid_request
from tests.cli.edge_server import EdgeServer
from tests.cli.journals import RUN, accepted_run, ended_run, journal, responses
from tests.client.still import StillClock
from tests.ports import free_ports

KEY = "rmt_test_0123456789"
AWAY = RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "draining")


@pytest.fixture
def edge() -> Iterator[EdgeServer]:
    with EdgeServer().serving() as server:
        yield server


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
async def client(edge: EdgeServer, clock: StillClock) -> AsyncIterator[Client]:
    async with Client(edge.address, KEY, resumption=clock.resumption()) as made:
        yield made


def failing_once(answer: Any, error: RemitError = AWAY) -> Any:
    failed = False

    def respond(_: Any) -> Any:
        nonlocal failed
        if not failed:
            failed = True
            raise error
        return answer

    return respond


async def test_a_run_is_created_once_over_a_break(edge: EdgeServer, client: Client) -> None:
    answer = agent_service_pb2.CreateRunResponse(run=accepted_run())
    edge.answers["CreateRun"] = failing_once(answer)
    new = NewRun("What is 17 * 23?")
    assert await client.runs.create(new) == accepted_run()
    assert edge.requests("CreateRun") == [new.to_request()] * 2
    assert edge.calls[0].metadata["authorization"] == f"Bearer {KEY}"


async def test_a_refusal_is_raised_with_reason_and_advice(edge: EdgeServer, client: Client) -> None:
    fault = invalid_request([Violation("task", "must not be empty")])
    edge.answers["CreateRun"] = failing_once(None, fault)
    with pytest.raises(RemitError) as refused:
        await client.runs.create(NewRun(""))
    assert refused.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert refused.value.violations[0].field == "task"
    assert refused.value.next_step
    assert len(edge.calls) == 1


async def test_nothing_at_the_address_is_told_within_bounds(clock: StillClock) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    async with Client(address, KEY, resumption=clock.resumption()) as client:
        with pytest.raises(RemitError) as refused:
            await client.runs.get(RUN)
    assert refused.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert 0 < clock.monotonic() <= Patience().unanswered_s


async def test_a_stream_starts_the_run_and_resumes_with_the_same_request(
    edge: EdgeServer, client: Client
) -> None:
    def respond(request: agent_service_pb2.StreamRunRequest) -> Iterator[Any]:
        following = responses(journal(), request.after_sequence)
        if request.after_sequence == 0:
            yield from following[:5]
            raise AWAY
        yield from following

    edge.answers["StreamRun"] = respond
    new = NewRun("What is 17 * 23?")
    async with client.runs.stream(new) as events:
        assert [event.sequence async for event in events] == list(range(1, 14))
    assert events.ended == ended_run()
    asked = edge.requests("StreamRun")
    assert [request.after_sequence for request in asked] == [0, 4]
    assert [request.request for request in asked] == [new.to_request()] * 2


async def test_a_server_that_sends_its_clients_away_loses_no_event(clock: StillClock) -> None:
    moved = threading.Event()

    def respond(request: agent_service_pb2.StreamRunRequest) -> Iterator[Any]:
        following = responses(journal(), request.after_sequence)
        if request.after_sequence == 0:
            yield from following[:5]
            moved.wait(20)
        moved.set()
        yield from following

    # GOAWAY after that time, and the end of what is still open soon after it.
    aging = (("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 100))
    with EdgeServer().serving(aging) as edge:
        edge.answers["StreamRun"] = respond
        async with Client(edge.address, KEY, resumption=clock.resumption()) as client:
            events = [event.sequence async for event in client.runs.stream(NewRun("?"))]
    assert events == list(range(1, 14))
    assert [request.after_sequence for request in edge.requests("StreamRun")] == [0, 4]


async def test_waiting_reads_only_what_is_to_come(edge: EdgeServer, client: Client) -> None:
    run = accepted_run()
    run.last_sequence = 9
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=run)
    edge.answers["WatchRun"] = lambda request: iter(
        [
            agent_service_pb2.WatchRunResponse(event=event, sequence=event.sequence)
            for event in journal()[request.after_sequence :]
        ]
    )
    assert await client.runs.result(RUN) == "17 * 23 = 391"
    assert [request.after_sequence for request in edge.requests("WatchRun")] == [9]


async def test_a_run_that_ended_while_it_was_asked_for_is_read_again(
    edge: EdgeServer, client: Client
) -> None:
    runs = [accepted_run(), ended_run()]
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=runs.pop(0))
    edge.answers["WatchRun"] = lambda _: iter(())
    assert await client.runs.wait(RUN) == ended_run()


async def test_the_result_of_a_failed_run_is_its_own_error(
    edge: EdgeServer, client: Client
) -> None:
    why = RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "orgs/local has 0.00 USD left")
    failed = ended_run(run_pb2.RUN_STATE_FAILED, why)
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=failed)
    assert await client.runs.wait(RUN) == failed
    with pytest.raises(RemitError) as raised:
        await client.runs.result(RUN)
    assert raised.value.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert edge.requests("WatchRun") == []


async def test_a_wait_is_bounded_and_the_run_goes_on(edge: EdgeServer, client: Client) -> None:
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=accepted_run())
    edge.answers["WatchRun"] = failing_once(None)
    with pytest.raises(RemitError) as late:
        await client.runs.wait(RUN, timeout_s=0.0)
    assert late.value.reason == reasons.ERROR_REASON_DEADLINE_EXCEEDED
    assert edge.requests("CancelRun") == []


async def test_a_list_is_read_page_by_page_up_to_its_limit(
    edge: EdgeServer, client: Client
) -> None:
    def respond(request: agent_service_pb2.ListRunsRequest) -> Any:
        begin = int(request.page_token or 0)
        count = min(request.page_size, 30)
        runs = [run_pb2.Run(name=f"runs/{number}") for number in range(begin, begin + count)]
        return agent_service_pb2.ListRunsResponse(runs=runs, next_page_token=str(begin + count))

    edge.answers["ListRuns"] = respond
    found = await client.runs.list(ListedRuns(agent="clerk"), limit=70)
    assert [run.name for run in found.runs] == [f"runs/{number}" for number in range(70)]
    assert found.more
    asked = edge.requests("ListRuns")
    assert [request.page_size for request in asked] == [70, 40, 10]
    assert {request.agent for request in asked} == {"agents/clerk"}


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "fork"])
async def test_control_keeps_its_request_id_over_a_break(
    edge: EdgeServer, client: Client, verb: str
) -> None:
    method = f"{verb.capitalize()}Run"
    response = getattr(agent_service_pb2, f"{method}Response")
    edge.answers[method] = failing_once(response(run=accepted_run()))
    run_id = RUN.removeprefix("runs/")
    assert await getattr(client.runs, verb)(run_id) == accepted_run()
    first, second = edge.requests(method)
    assert first == second
    assert (first.name, bool(first.request_id)) == (RUN, True)


async def test_an_artifact_is_checked_against_its_digest(edge: EdgeServer, client: Client) -> None:
    file = agent_service_pb2.GetArtifactResponse(
        media_type="text/plain",
        content=b"abc",
        digest=bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    )
    edge.answers["GetArtifact"] = lambda _: file
    assert await client.runs.artifact(RUN, "report.md") == file
    file.content = b"abd"
    with pytest.raises(RemitError) as corrupt:
        await client.runs.artifact(RUN, "report.md")
    assert corrupt.value.reason == reasons.ERROR_REASON_DATA_CORRUPT


@pytest.mark.parametrize("key", ["", "with space", "line\nbreak", "k" * 513])
def test_what_cannot_be_a_key_is_refused(key: str) -> None:
    with pytest.raises(RemitError) as refused:
        Client("127.0.0.1:1", key)
    assert refused.value.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID


def test_a_default_client_is_patient_by_the_machines_own_clock() -> None:
    assert Resumption().patience == Patience()
