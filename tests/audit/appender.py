"""A process that appends with several writers until it is killed, and says what was answered."""

from __future__ import annotations

import asyncio
import itertools
import sys

from remit.audit.store import LogStore
from remit.postgres import Database
from tests.audit.events import make_event, sealed

WRITERS = 16


async def write(store: LogStore, writer: int) -> None:
    for number in itertools.count():
        event_id = f"{writer}-{number}"
        index = await store.append(sealed(make_event(event_id)))
        sys.stdout.write(f"{event_id} {index}\n")
        sys.stdout.flush()


async def main(dsn: str) -> None:
    async with Database.open(dsn) as database:
        store = LogStore(database, max_batch=64, max_queue=1024)
        await asyncio.gather(*(write(store, writer) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
