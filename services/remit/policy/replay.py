"""What would change: recorded decisions asked again of policies that are not in force.

Questions that no policy can tell apart are asked once (likeness.py). They are read and asked in
processes of their own, so that a preview takes nothing from those who wait for a decision but a
share of the machine; further pages are read meanwhile, also while the processes start.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_INTERNAL
from remit.policy.decision_record import Page, Place
from remit.policy.grants import Grant, Grants
from remit.policy.likeness import Likeness, Likenesses
from remit.policy.recorded import Recorded, question_of
from remit.policy.rule_sets import PolicySource, compile_policies
from remit.policy.rules import Question, RuleBook, default_denial
from remit.rpc.errors import RemitError

_CHUNK: Final = 500
"""Decisions that one process is given at once."""
_PAGES_AHEAD: Final = 24
"""Pages that wait for the processes at most: about 50 MB."""
_MOST_DISTINCT: Final = 200_000
_DIGEST_BYTES: Final = 16

Asked: TypeAlias = tuple[bytes, datetime, bool]
"""A question without its time, its time, and whether it was allowed."""


@dataclass(frozen=True)
class Candidate:
    """The policies to try, with the grants in force: what a process needs."""

    source: PolicySource
    grants: tuple[Grant, ...]


@dataclass(frozen=True)
class Answer:
    """What the candidate says to a question."""

    allowed: bool
    policy_ids: tuple[str, ...]
    reason: str


@dataclass
class Change:
    """Decisions alike that the candidate would make otherwise."""

    first: Recorded
    answer: Answer
    count: int = 1
    earliest: datetime | None = None


@dataclass
class Step:
    """What came of the next recorded decisions."""

    place: Place
    looked_at: int
    distinct: int
    erased: int
    newly_denied: int = 0
    newly_allowed: int = 0
    changes: list[Change] = field(default_factory=list)
    """Those that were not told before; `count` is of this step."""


@dataclass
class Found:
    """What a process found in its decisions."""

    new: list[bytes] = field(default_factory=list)
    """Digests of the likenesses that it had not asked about."""
    changed: list[tuple[int, bytes]] = field(default_factory=list)
    """Which decisions the candidate would make otherwise, and what they have alike."""
    answers: dict[bytes, Answer] = field(default_factory=dict)
    """What the candidate says to those of `changed`."""


PoolOf = Callable[[Candidate], Executor]
"""Makes the pool in which a candidate is asked; each of its workers was prepared for it."""


def process_pool(candidate: Candidate, *, processes: int) -> Executor:
    """Processes of their own, which take nothing from those who wait for a decision."""
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=prepare,
        initargs=(candidate,),
    )


async def replay(
    pages: AsyncIterable[Page], candidate: Candidate, pool_of: PoolOf
) -> AsyncIterator[Step]:
    """Ask the candidate about each page of decisions and tell what would change."""
    pool = pool_of(candidate)
    asked: deque[_Asking] = deque()
    known: set[bytes] = set()
    try:
        async for page in pages:
            asked.append(_Asking(pool, page))
            while asked and (len(asked) > _PAGES_AHEAD or asked[0].is_done):
                yield await asked.popleft().step(known)
        while asked:
            yield await asked.popleft().step(known)
    finally:
        # Whoever went away waits for nothing: what is being asked is not wanted any more.
        pool.shutdown(wait=False, cancel_futures=True)


class _Asking:
    """A page in the hands of the pool."""

    def __init__(self, pool: Executor, page: Page) -> None:
        self._page = page
        self._known = [each for each in page.decisions if each is not None]
        loop = asyncio.get_running_loop()
        self._chunks = [
            loop.run_in_executor(
                pool,
                look_at,
                [(each.stated, each.time, each.allowed) for each in self._known[start:][:_CHUNK]],
            )
            for start in range(0, len(self._known), _CHUNK)
        ]
        for chunk in self._chunks:
            # Of a pool that broke the first failure is told, and the others are not wanted.
            chunk.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def is_done(self) -> bool:
        """Whether the step is there without waiting."""
        return all(chunk.done() for chunk in self._chunks)

    async def step(self, known: set[bytes]) -> Step:
        """What was found; `known` are the likenesses that were asked about before."""
        try:
            found = await asyncio.gather(*self._chunks)
        except BrokenExecutor as error:
            raise RemitError(
                ERROR_REASON_INTERNAL, "a process that tries the policies ended"
            ) from error
        new = {digest for each in found for digest in each.new} - known
        known |= new
        looked_at = len(self._page.decisions)
        erased = looked_at - len(self._known)
        step = Step(self._page.place, looked_at, len(new), erased)
        changes: dict[bytes, Change] = {}
        for number, each in enumerate(found):
            for index, alike in each.changed:
                recorded = self._known[number * _CHUNK + index]
                _add(step, changes, alike, recorded, each.answers[alike])
        step.changes = list(changes.values())
        return step


def _add(
    step: Step, changes: dict[bytes, Change], alike: bytes, each: Recorded, answer: Answer
) -> None:
    step.newly_allowed += answer.allowed
    step.newly_denied += not answer.allowed
    known = changes.get(alike)
    if known is None:
        changes[alike] = Change(each, answer, earliest=each.time)
    else:
        known.count += 1
        known.earliest = min(known.earliest or each.time, each.time)


class Trial:
    """A candidate that remembers its answers."""

    def __init__(self, candidate: Candidate) -> None:
        rules = compile_policies(candidate.source)
        self._book = RuleBook(rules, 0, grants=Grants(candidate.grants))
        self._likenesses = Likenesses(self._book)
        self._answers: dict[Likeness, Answer] = {}

    def answer(self, question: Question) -> tuple[Likeness, Answer, bool]:
        """What the question is like, what the candidate says to it, and whether it was asked."""
        likeness = self._likenesses.of(question)
        known = self._answers.get(likeness)
        if known is not None:
            return likeness, known, False
        if len(self._answers) >= _MOST_DISTINCT:
            self._answers.clear()
        decision = self._book.decide(question)
        # The denial of what no policy permits names who asked for what: that of the others differs.
        reason = "" if decision.reason == default_denial(question) else decision.reason
        answer = Answer(decision.allow, decision.policy_ids, reason)
        self._answers[likeness] = answer
        return likeness, answer, True


_TRIAL: Trial | None = None
"""The candidate, in a process of the pool."""


def prepare(candidate: Candidate) -> None:
    """Prepare a worker of a pool for the questions about a candidate."""
    global _TRIAL  # noqa: PLW0603 - the one thing that a process of the pool is for
    _TRIAL = Trial(candidate)


def look_at(decisions: Sequence[Asked]) -> Found:
    """Ask the candidate of this process what it says to decisions that were made."""
    if _TRIAL is None:  # pragma: no cover - the pool's initializer set it
        message = "the process was not prepared"
        raise AssertionError(message)
    found = Found()
    for index, (stated, time, allowed) in enumerate(decisions):
        question = question_of(stated, time)
        likeness, answer, is_new = _TRIAL.answer(question)
        if is_new:
            found.new.append(_digest(likeness))
        if answer.allowed != allowed:
            who, what = question.principal.user, question.resource
            alike = _digest((*likeness, who, what))
            found.changed.append((index, alike))
            reason = answer.reason or default_denial(question)
            found.answers.setdefault(alike, Answer(answer.allowed, answer.policy_ids, reason))
    return found


def _digest(likeness: Likeness) -> bytes:
    return hashlib.blake2b(ascii(likeness).encode(), digest_size=_DIGEST_BYTES).digest()
