"""Runs whose subject was erased before they ended: ended wherever they are, and nothing kept.

Without the key nobody can read what such a run did, nor write what it would do next. Its end says
so and nothing else; it is the one entry of its journal that stands in clear. A worker that meets
such a run ends it; those that have no worker, or one that waits for long, are looked for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from remit import names, telemetry
from remit.agent.entries import Entry
from remit.agent.journal import TERMINAL, header_of
from remit.agent.leases import LeaseStore
from remit.agent.logbook import Books
from remit.agent.metrics import count_ended
from remit.agent.reading import StoredRun, run_erased
from remit.agent.records import run_id
from remit.agent.run_remit import RemitDesk
from remit.agent.sealing import KeyRef, key_ref, other_keys
from remit.agent.spans import place_of
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.subject_keys import is_erased

_PAGE: Final = 256
"""Keys that are looked at at once: one RPC asks for as many."""

_ANY: Final = UUID(int=0)
"""Whether a key is there does not depend on the run."""

log = telemetry.logger(__name__)


class Taken(Protocol):
    """A run in this replica's hands."""

    @property
    def run(self) -> str:
        """Its name."""
        ...

    @property
    def fencing_token(self) -> int:
        """Its newest token."""
        ...

    @property
    def key(self) -> KeyRef:
        """What it is sealed with."""
        ...

    @property
    def traceparent(self) -> str:
        """The trace that created it."""
        ...


@dataclass(frozen=True)
class ErasedRuns:
    """Ends runs that cannot go on because a subject was erased."""

    books: Books
    leases: LeaseStore
    desk: RemitDesk

    async def end(self, taken: Taken) -> None:
        """Ends a run, and its sub-runs before it.

        Its own subject was erased, or that of a run that it was forked from. Raises FENCED to who
        lost the run, DEPENDENCY_UNAVAILABLE: then it is to be tried again.
        """
        await self.desk.fence(taken.run, taken.fencing_token)
        # What people were to approve says what the run was about.
        await self.desk.withdraw_approvals(taken.run)
        for below in await self.books.reader.unfinished_sub_runs(taken.run):
            await self._take_and_end(below)
        stored = await self.books.reader.run(taken.run)
        if stored.run.state in TERMINAL:
            return
        event = self._last_event(stored)
        is_own = not stored.run.erased
        key = await self.books.keys.of(taken.key, run_id(taken.run)) if is_own else None
        summary = header_of(event.ended.run)
        entry = Entry(summary, taken.fencing_token, (event,), key=key, is_burial=stored.run.erased)
        await self.books.store.append(entry)
        self.books.feed.publish(entry.events)
        with telemetry.within(place_of(taken.run, taken.traceparent)):
            log.warning("run_erased", run=taken.run, user=stored.run.subject)
            count_ended(event.ended.run, (), entry.events, self.books.clock.now())

    async def look(self, interval_s: float) -> None:
        """Looks for such runs from time to time; runs until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.end_all()
            except RemitError as error:
                log.warning("erased_runs_delayed", reason=error.reason_name, error=error.message)

    async def end_all(self) -> None:
        """Ends all of them. Raises DEPENDENCY_UNAVAILABLE: the next look goes on."""
        database, after = self.books.reader.database, ("", b"", "")
        while True:
            rows = await database.fetch(_KEYS_IN_USE, *after, _PAGE)
            for ref in [key_ref(row) for row in rows]:
                if await self._is_gone(ref):
                    others = other_keys(ref.others)
                    runs = await database.fetch(_RUNS, ref.subject, ref.key_id, others)
                    for row in runs:
                        await self._take_and_end(names.run_name(str(row["run"])))
            if len(rows) < _PAGE:
                return
            after = rows[-1]["subject"], rows[-1]["key_id"], rows[-1]["other_keys"] or ""

    async def _is_gone(self, ref: KeyRef) -> bool:
        try:
            await self.books.keys.of(ref, _ANY)
        except RemitError as error:
            if not is_erased(error):
                raise
            return True
        return False

    async def _take_and_end(self, run: str) -> None:
        grant = await self.leases.seize(run)
        if grant is None:
            return
        try:
            await self.end(grant)
        except RemitError as error:
            # Somebody else has it meanwhile, who will meet what was met here.
            if error.reason != reasons.ERROR_REASON_FENCED:
                raise

    def _last_event(self, stored: StoredRun) -> run_pb2.RunEvent:
        run = run_pb2.Run()
        run.CopyFrom(stored.run)
        run.state = run_pb2.RUN_STATE_FAILED
        run.error.CopyFrom(run_erased(stored.run).to_status())
        run.ClearField("approvals")
        run.percent = 100
        run.last_sequence += 1
        if run.HasField("webhook"):
            run.webhook.state = run_pb2.WEBHOOK_STATE_PENDING
        event = run_pb2.RunEvent(run=run.name, sequence=run.last_sequence, percent=100)
        event.event_time.FromDatetime(self.books.clock.now())
        run.end_time.CopyFrom(event.event_time)
        event.ended.run.CopyFrom(run)
        return event


_KEYS_IN_USE: Final = """
SELECT DISTINCT subject, key_id, coalesce(other_keys, '') AS other_keys FROM runs
WHERE state < 3 AND key_id IS NOT NULL
  AND (subject, key_id, coalesce(other_keys, '')) > ($1::text, $2::bytea, $3::text)
ORDER BY 1, 2, 3 LIMIT $4
"""

_RUNS: Final = """
SELECT run FROM runs
WHERE state < 3 AND subject = $1 AND key_id = $2 AND other_keys IS NOT DISTINCT FROM $3
ORDER BY run
"""
