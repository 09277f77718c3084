"""A candidate in shadow: asked what was decided just now, after the answer, and never heard.

Decisions about effects wait in a bounded queue; those that find it full are counted and not seen.
The candidate takes at most a share of the time between two looks, so that it cannot crowd out those
who wait for a decision. What it would have decided is added up in the database, where all replicas
count; a crash loses the counts since the last look and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from remit import telemetry
from remit.policy.epochs import Policies, checked
from remit.policy.metrics import SHADOWED
from remit.policy.rule_sets import PolicySource
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.schema import actions, schema_text
from remit.policy.shadow_store import End, Running, ShadowStore
from remit.policy.shadow_tally import (
    ChangeKey,
    Outcome,
    Tally,
    compared,
    example_of,
    kind_of,
)
from remit.policy.simulation import first_difference
from remit.postgres import NOT_STORABLE
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_SHARE: Final = 0.5
"""Of the time between two looks; what is not seen by then waits for the next."""

log = telemetry.logger(__name__)


class _Seen(NamedTuple):
    """A decision that was made."""

    name: str
    question: Question
    decision: Decision
    time: datetime


class Shadow:
    """Shows decisions to the candidate, if there is one."""

    def __init__(
        self,
        store: ShadowStore,
        policies: Policies,
        clock: Clock,
        *,
        max_queue: int,
        every_s: float,
    ) -> None:
        self._store = store
        self._policies = policies
        self._clock = clock
        self._max_queue = max_queue
        self._every_s = every_s
        self._queue: deque[_Seen] = deque()
        self._shadow: UUID | None = None
        self._book: RuleBook | None = None
        self._tally = Tally()

    def note(self, name: str, question: Question, decision: Decision) -> None:
        """Let the candidate see a decision later. Never waits, never raises."""
        if self._book is None:
            return
        if len(self._queue) >= self._max_queue:
            self._count(Outcome.DROPPED)
            return
        now = self._clock.now()
        self._queue.append(_Seen(name, replace(question, time=now), decision, now))

    async def run(self) -> None:
        """Look every `every_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.look()
            except RemitError as error:
                log.warning("policy_shadow_delayed", reason=error.reason_name)

    async def look(self) -> None:
        """Learn which candidate there is, show it what waits, and store what it would have said."""
        running = await self._store.running()
        if running is None or running.shadow != self._shadow:
            await self._become(running)
        if self._book is not None:
            self._book = _with_newest_grants(self._book, self._policies.book)
            await self._show(self._book)
        await self._store_tally()

    async def _become(self, running: Running | None) -> None:
        """Another candidate, or none: what the old one did not see, it will not."""
        await self._store_tally()
        self._shadow = self._book = None
        self._queue.clear()
        self._tally = Tally()
        if running is None:
            return
        try:
            rules = await checked(PolicySource(running.files, schema_text()))
        except RemitError as error:
            if await self._store.end(running.shadow, End.BROKEN):
                log.warning("policy_shadow_broken", shadow=str(running.shadow), text=error.message)
            return
        book = RuleBook(rules, 0, clock=self._clock)
        await asyncio.to_thread(book.prepare, actions())
        self._shadow, self._book = running.shadow, book
        log.info("policy_shadow_seen", shadow=str(running.shadow), policies=len(rules.policies))

    async def _show(self, book: RuleBook) -> None:
        began = self._clock.monotonic()
        while self._queue and self._clock.monotonic() - began < self._every_s * _SHARE:
            self._compare(book, self._queue.popleft())
            await asyncio.sleep(0)  # those who wait for a decision go first

    def _compare(self, book: RuleBook, seen: _Seen) -> None:
        after = book.decide(seen.question)
        outcome = compared(seen.decision, after)
        self._count(outcome)
        if kind_of(seen.decision) is kind_of(after):
            return
        key = ChangeKey(
            seen.question.action,
            first_difference(seen.decision.policy_ids, after.policy_ids),
            kind_of(seen.decision),
            kind_of(after),
        )
        resource = seen.question.resource
        example = example_of(seen.name, seen.time, resource, seen.decision, after)
        self._tally.differs(key, example)

    def _count(self, outcome: Outcome) -> None:
        self._tally.count(outcome)
        SHADOWED.labels(outcome).inc()

    async def _store_tally(self) -> None:
        """Store what was counted; if the database is away, with the next."""
        if self._shadow is None or self._tally.is_empty:
            return
        # Counting goes on meanwhile.
        tally, self._tally = self._tally, Tally()
        try:
            await self._store.add(self._shadow, tally)
        except NOT_STORABLE:
            # Policy does not end of what a caller named; the counts are stored with the next.
            log.exception("policy_shadow_not_storable", shadow=str(self._shadow))
            tally.unlist()
            self._tally.take(tally)
        except RemitError:
            self._tally.take(tally)
            raise


def _with_newest_grants(candidate: RuleBook, in_force: RuleBook) -> RuleBook:
    """The candidate with the grants in force, as a push would have it."""
    if candidate.epoch == in_force.epoch:
        return candidate
    return candidate.with_grants(in_force.grants, in_force.epoch)
