"""A client of Remit in Python, made from the contracts alone.

It starts a run, follows it to its end over two streams and prints what it saw, one JSON object a
line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
from google.rpc import error_details_pb2, status_pb2

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2

# [key begins]
METADATA = (("authorization", f"Bearer {os.environ['REMIT_API_KEY']}"),)
RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
PAUSE_S = 0.2
# [key ends]


# [follow begins]
async def follow(
    agents: agent_service_pb2_grpc.AgentServiceStub,
    name: str,
    after: int,
    deadline: float,
) -> AsyncGenerator[run_pb2.RunEvent, None]:
    """Every event after a sequence, to the run's end; a stream that breaks is resumed in time."""
    while True:
        request = agent_service_pb2.WatchRunRequest(name=name, after_sequence=after)
        seconds_left = deadline - time.monotonic()
        stream = agents.WatchRun(request, metadata=METADATA, timeout=seconds_left)
        try:
            async for response in stream:
                if not response.HasField("event"):
                    continue  # a heartbeat
                after = response.event.sequence
                yield response.event
                if response.event.HasField("ended"):
                    return
        except grpc.aio.AioRpcError as error:
            if error.code() not in RESUMABLE:
                raise
        else:
            return  # over without an error: the run ended at `after`
        finally:
            stream.cancel()  # ends a stream that we leave early
        await asyncio.sleep(PAUSE_S)


# [follow ends]


# [errors begins]
def explain(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """The canonical code of an error and Remit's reason for it."""
    details = dict(error.trailing_metadata() or ())
    answer = status_pb2.Status.FromString(details.get("grpc-status-details-bin", b""))
    info = error_details_pb2.ErrorInfo()
    for detail in answer.details:
        detail.Unpack(info)  # does nothing where it is of another type
    return error.code().name, info.reason


# [errors ends]


def show(**line: object) -> None:
    """Prints a JSON object."""
    sys.stdout.write(json.dumps(line) + "\n")


def show_event(event: run_pb2.RunEvent) -> None:
    """Prints an event."""
    show(sequence=event.sequence, event=event.WhichOneof("event"))


async def run_agent(address: str) -> None:
    """Starts a run and follows it."""
    # [start begins]
    async with grpc.aio.insecure_channel(address) as channel:
        agents = agent_service_pb2_grpc.AgentServiceStub(channel)
        deadline = time.monotonic() + 60  # of following it
        request = agent_service_pb2.CreateRunRequest(
            agent="agents/assistant",
            task="What is 17 * 23?",
            request_id=str(uuid.uuid4()),  # keep it: whoever sends it again gets the same run
        )
        created = await agents.CreateRun(request, metadata=METADATA, timeout=10)
        # [start ends]
        name = created.run.name
        show(run=name)
        again = await agents.CreateRun(request, metadata=METADATA, timeout=10)
        show(again=again.run.name)

        # The first stream is broken off on purpose after its second event; the next goes on there.
        seen = 0
        async with aclosing(follow(agents, name, seen, deadline)) as events:
            async for event in events:
                seen = event.sequence
                show_event(event)
                if seen == 2:
                    break
        show(resumed_after=seen)
        async for event in follow(agents, name, seen, deadline):
            show_event(event)
            if event.HasField("ended"):
                seen = event.sequence
                show(answer=event.ended.run.result)

        # Behind the last event there is none: the stream ends, and the run says how it ended.
        behind = [event async for event in follow(agents, name, seen, deadline)]
        asked = agent_service_pb2.GetRunRequest(name=name)
        ended = await agents.GetRun(asked, metadata=METADATA, timeout=10)
        show(behind=len(behind), answer_behind=ended.run.result)

        unknown = agent_service_pb2.GetRunRequest(name="runs/00000000-0000-7000-8000-000000000000")
        try:
            await agents.GetRun(unknown, metadata=METADATA, timeout=10)
        except grpc.aio.AioRpcError as error:
            code, reason = explain(error)
            show(code=code)
            show(reason=reason)


if __name__ == "__main__":
    asyncio.run(run_agent(os.environ["REMIT_ADDRESS"]))
