"""A process whose writers perform effects through the log until they are killed, and say so.

As the gate does it: an INTENT is acknowledged, then the effect happens, then its OUTCOME is
appended. An answer that does not come is asked for again, with the same event, at any replica.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity
from remit.rpc.mesh import Mesh
from tests.audit.events import make_event, outcome_of

LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True)
class Place:
    """Where the log is, who asks, and where it is written down."""

    addresses: list[str]
    tls: str
    remit: str
    told: str
    writers: int


class Teller:
    """Lines that stay although this process is killed right after."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(folder / f"{uuid.uuid4()}.txt", flags, 0o644)

    def tell(self, word: str, what: str, number: int = -1) -> None:
        os.write(self._descriptor, f"{word} {what} {number}\n".encode())


class Writer:
    """One after the other."""

    def __init__(self, place: Place, meshes: list[Mesh], teller: Teller) -> None:
        self._place = place
        self._stubs = [mesh.stub(audit_service_pb2_grpc.AuditServiceStub) for mesh in meshes]
        self._teller = teller

    async def write(self) -> None:
        for number in itertools.count():
            claim = str(uuid.uuid4())
            intent = make_event(
                f"{claim}-intent",
                claim=f"claims/{claim}",
                detail_json=json.dumps({"number": number}),
            )
            intent.event_time.GetCurrentTime()
            await self._appended(intent)
            self._teller.tell("effect", claim)
            await self._appended(outcome_of(intent))

    async def _appended(self, event: event_pb2.Event) -> None:
        is_intent = event.kind == event_pb2.EVENT_KIND_INTENT
        entry = audit_service_pb2.Entry(event=event, remit=self._place.remit if is_intent else "")
        for attempt in itertools.count():
            try:
                index = await self._asked(entry, is_intent=is_intent)
            except RemitError as error:
                if not error.retryable and error.reason_name != "DEADLINE_EXCEEDED":
                    self._teller.tell("fault", f"{error.reason_name}:{event.event_id}")
                await asyncio.sleep(random.uniform(0, min(0.05 * 2**attempt, LONGEST_PAUSE_S)))  # noqa: S311
            else:
                self._teller.tell("ack", event.event_id, index)
                return

    async def _asked(self, entry: audit_service_pb2.Entry, *, is_intent: bool) -> int:
        stub = random.choice(self._stubs)  # noqa: S311 - not a secret
        response: audit_service_pb2.AppendEventsResponse | audit_service_pb2.AppendOutcomesResponse
        if is_intent:
            response = await stub.AppendEvents(
                audit_service_pb2.AppendEventsRequest(entries=[entry])
            )
        else:
            response = await stub.AppendOutcomes(
                audit_service_pb2.AppendOutcomesRequest(entries=[entry])
            )
        [result] = response.results
        if result.HasField("error"):
            raise RemitError.from_status(result.error)
        return result.leaf_index


async def main(place: Place) -> None:
    identity = TlsIdentity.load(Path(place.tls))
    teller = Teller(Path(place.told))
    meshes = [Mesh.connect(address, identity, party="audit") for address in place.addresses]
    await asyncio.gather(*(Writer(place, meshes, teller).write() for _ in range(place.writers)))


if __name__ == "__main__":
    asyncio.run(main(Place(**json.loads(sys.argv[1]))))
