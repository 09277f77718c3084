"""Walks log, ledger, claims and journals side by side, and keeps what two looks both find.

A span of keys is read from each store, in the order ledger, log, claims: each after one that is
written later. What looks wrong is looked at again in the same order, and counts if it is wrong in
the same way. So of every two stores each is seen before and after the other, and what stays wrong
is wrong, however busy the mesh is. A span ends where the first store's page does: memory is bounded
by the page, whichever store has more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from remit.audit.completeness import (
    Attempt,
    Call,
    Difference,
    Key,
    Paid,
    Recorded,
    Sight,
    call_difference,
    difference,
)
from remit.audit.effect_events import AFTER_ALL, EffectEvents
from remit.audit.stores_beside import EventKey, StoresBeside

SPAN_SIZE: Final = 250
"""Attempts of each store in one step, and claims of the log."""
EVENTS: Final = 500
"""Events of journals in one step."""
BEFORE_ALL: Final = Key("", 0)


@dataclass(frozen=True)
class Cut:
    """The moment up to which all is compared."""

    time: datetime
    tree_size: int


@dataclass
class Step:
    """What a part of the walk compared and found."""

    attempts: int = 0
    events: int = 0
    reservations: int = 0
    calls: int = 0
    after_cut: int = 0
    differences: list[Difference] = field(default_factory=list)
    first_key: Key | None = None
    next_key: Key | None = None
    """Where to go on, while there is more."""
    next_event: EventKey | None = None
    """The same, of journals."""


@dataclass
class _Look:
    """What every store says of a span."""

    paid: dict[Key, Paid] = field(default_factory=dict)
    recorded: dict[Key, Recorded] = field(default_factory=dict)
    attempts: dict[Key, Attempt] = field(default_factory=dict)
    ends: list[Key] = field(default_factory=list)
    """Last keys of pages after which there is more."""

    @property
    def through(self) -> Key | None:
        """Up to where every store was read; None: to the last."""
        return min(self.ends, default=None)

    def sights(self) -> Iterator[Sight]:
        """What each store says of each attempt up to there."""
        through = self.through or AFTER_ALL
        for key in sorted({*self.paid, *self.recorded, *self.attempts}):
            if key <= through:
                yield Sight(key, self.recorded.get(key), self.attempts.get(key), self.paid.get(key))


class CompletenessWalk:
    """Compares the log with all that happened. It only reads."""

    def __init__(self, log: EffectEvents, beside: StoresBeside, *, open_limit_s: float) -> None:
        self._log = log
        self._beside = beside
        self._open_limit_s = open_limit_s

    async def cut(self) -> Cut:
        """A moment that every store has passed. Raises RemitError when one does not answer."""
        head = await self._log.head()
        return Cut(min([head.time, *await self._beside.times()]), head.tree_size)

    async def effects(self, after: Key, cut: Cut) -> AsyncIterator[Step]:
        """Every attempt after a key, step by step. Raises RemitError when a store is away."""
        following: Key | None = after
        while following is not None:
            look = await self._look(following)
            step = await self._compared(following, look, cut)
            following = step.next_key = look.through
            yield step

    async def journals(self, after: EventKey | None, cut: Cut) -> AsyncIterator[Step]:
        """Every call that journals record after an event. Raises RemitError likewise."""
        while True:
            page = await self._beside.calls(after, EVENTS)
            calls = [call for call in page.calls if call.began < cut.time]
            step = Step(calls=len(calls), next_event=page.next)
            step.differences = await self._of_calls(calls)
            yield step
            if page.next is None:
                return
            after = page.next

    async def _look(self, after: Key) -> _Look:
        """One page of every store."""
        look, start = _Look(), _key_or_none(after)
        ledger = await self._beside.ledger(start, None, SPAN_SIZE)
        look.paid = ledger.paid
        log = await self._log.page(after, AFTER_ALL, SPAN_SIZE)
        look.recorded = log.recorded
        ends = [ledger.last, log.last]
        async for claims in self._beside.claims(start, None, SPAN_SIZE):
            look.attempts |= claims.attempts
            ends.append(claims.last)
        look.ends = [end for end in ends if end is not None]
        return look

    async def _look_again(self, after: Key, through: Key) -> _Look:
        """All pages of every store, up to a key."""
        look, place = _Look(), _key_or_none(after)
        while True:
            ledger = await self._beside.ledger(place, through, SPAN_SIZE)
            look.paid |= ledger.paid
            if (place := ledger.last) is None:
                break
        following: Key | None = after
        while following is not None:
            log = await self._log.page(following, through, SPAN_SIZE)
            look.recorded |= log.recorded
            following = log.last
        pending: list[Key | None] = [_key_or_none(after)]
        while pending:
            start, ends = pending.pop(), list[Key]()
            async for claims in self._beside.claims(start, through, SPAN_SIZE):
                look.attempts |= claims.attempts
                ends += [claims.last] if claims.last is not None else []
            if ends:
                pending.append(min(ends))
        return look

    async def _compared(self, after: Key, look: _Look, cut: Cut) -> Step:
        sights = list(look.sights())
        before = [sight for sight in sights if sight.began < cut.time]
        suspects = self._differences(before)
        step = Step(
            first_key=min((sight.key for sight in sights), default=None),
            attempts=len(before),
            events=sum(
                len(each.recorded.intents) + len(each.recorded.outcomes)
                for each in before
                if each.recorded
            ),
            reservations=sum(1 for each in before if each.paid),
            after_cut=len(sights) - len(before),
        )
        if suspects:
            again = self._differences(
                [
                    sight
                    for sight in (await self._look_again(after, max(suspects))).sights()
                    if sight.key in suspects
                ]
            )
            step.differences = [
                found for key, found in again.items() if found.kind is suspects[key].kind
            ]
        return step

    def _differences(self, sights: list[Sight]) -> dict[Key, Difference]:
        found = {s.key: difference(s, open_limit_s=self._open_limit_s) for s in sights}
        return {key: each for key, each in found.items() if each is not None}

    async def _of_calls(self, calls: list[Call]) -> list[Difference]:
        intents = await self._log.intents(
            [call.intent_leaf for call in calls if call.intent_leaf is not None]
        )
        stated = [(call, intents.get(_leaf_of(call))) for call in calls]
        known = await self._beside.known(
            {_place(call, intent): call.service for call, intent in stated}
        )
        found = [
            call_difference(call, intent, is_known=_place(call, intent) in known)
            for call, intent in stated
        ]
        return [each for each in found if each is not None]


def _place(call: Call, intent_of: Key | None) -> Key:
    """The attempt that a call must have; every claim has a first one."""
    return intent_of if intent_of and intent_of.claim == call.claim else Key(call.claim, 1)


def _leaf_of(call: Call) -> int:
    """The leaf that a call names; -1 for none."""
    return -1 if call.intent_leaf is None else call.intent_leaf


def _key_or_none(key: Key) -> Key | None:
    return key if key.claim else None
