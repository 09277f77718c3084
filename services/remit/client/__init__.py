"""The Python client: starts runs, follows them across every break, and brings their results.

    async with Client("127.0.0.1:8080", api_key) as client:
        run = await client.runs.create(NewRun("What is 17 * 23?"))
        async for event in client.runs.watch(run.name):
            print(event.percent, event.WhichOneof("event"))
        print(await client.runs.result(run.name))

A stream that breaks (a network, a gateway or a replica away) is resumed by itself behind the last
event, so that every event comes once and in order. Failures are RemitError: with a reason, what is
wrong, and in `next_step` what to do. Runs and events are the contracts' own messages. It must never
decide what a service decides: what a request may hold is checked there.
"""

from remit.client.breaks import is_break
from remit.client.connection import Client
from remit.client.conversations import ConversationList, Conversations
from remit.client.requests import Limits, ListedRuns, NewRun
from remit.client.resumption import Patience
from remit.client.run_stream import RunStream
from remit.client.runs import RunList, Runs
from remit.rpc.errors import RemitError

__all__ = [
    "Client",
    "ConversationList",
    "Conversations",
    "Limits",
    "ListedRuns",
    "NewRun",
    "Patience",
    "RemitError",
    "RunList",
    "RunStream",
    "Runs",
    "is_break",
]
