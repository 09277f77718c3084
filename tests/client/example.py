"""The example of docs/CLIENTS.md: a program that uses the client which Remit brings."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

# [client begins]
from remit.client import Client, Limits, NewRun, RemitError


async def main(address: str, api_key: str) -> None:
    """Starts two runs: follows one, and awaits the answer of the other."""
    async with Client(address, api_key) as client:
        new = NewRun("What is 17 * 23?", agent="assistant")
        async with client.runs.stream(new, timeout_s=60) as events:
            async for event in events:  # each once and in order, whatever breaks
                sys.stdout.write(f"{event.sequence} {event.percent} % {event.run}\n")

        limits = Limits(max_cost_nanos=50_000_000, max_duration=timedelta(minutes=2))
        run = await client.runs.create(NewRun("What is 6 * 7?", limits=limits))
        try:
            sys.stdout.write(await client.runs.result(run.name, timeout_s=60) + "\n")
        except RemitError as error:  # the run's own error, or that it took too long
            sys.exit(f"{error.reason_name}: {error.message}; {error.next_step}")


# [client ends]

if __name__ == "__main__":
    asyncio.run(main(os.environ["REMIT_ADDRESS"], os.environ["REMIT_API_KEY"]))
