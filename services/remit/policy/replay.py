"""What would change: recorded decisions asked again of policies that are not in force.

Questions that no policy can tell apart are asked once. They are asked in processes of their own, so
that a preview takes nothing from those who wait for a decision but a share of the machine.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_INTERNAL
from remit.policy.decision_record import Page, Place
from remit.policy.grants import Grant, Grants
from remit.policy.recorded import Recorded, question_json, question_of, reduced
from remit.policy.rule_sets import PolicySource, RuleSet, compile_policies
from remit.policy.rules import RuleBook
from remit.rpc.errors import RemitError

_CHUNK: Final = 500
"""Questions that one process is given at once."""
_MOST_DISTINCT: Final = 200_000


@dataclass(frozen=True)
class Candidate:
    """The policies to try, with the grants in force: what a process needs."""

    source: PolicySource
    grants: tuple[Grant, ...]
    looked_at: frozenset[str]
    """Facts of each call that some policy or grant may look at."""

    @classmethod
    def of(cls, rules: RuleSet, grants: tuple[Grant, ...]) -> Candidate:
        """The candidate of checked policies, with the grants in force."""
        facts = {fact for policy in rules.policies for fact in policy.looked_at}
        if any(grant.expire_time for grant in grants):
            facts.add("now")
        return cls(rules.source, grants, frozenset(facts))


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
    try:
        asking = _Asking(pool, candidate.looked_at)
        async for page in pages:
            yield await asking.step(page)
    finally:
        # Whoever went away waits for nothing: what is being asked is not wanted any more.
        pool.shutdown(wait=False, cancel_futures=True)


class _Asking:
    """Remembers the answers of this preview."""

    def __init__(self, pool: Executor, looked_at: frozenset[str]) -> None:
        self._pool = pool
        self._looked_at = looked_at
        self._answers: dict[tuple[bytes, datetime | None], Answer] = {}

    async def step(self, page: Page) -> Step:
        """Answer a page."""
        known = [each for each in page.decisions if each is not None]
        keys = []
        for each in known:
            question = reduced(each.question, self._looked_at)
            keys.append((question_json(question), question.time))
        new = list(dict.fromkeys(key for key in keys if key not in self._answers))
        if len(self._answers) + len(new) > _MOST_DISTINCT:
            self._answers.clear()
            new = list(dict.fromkeys(keys))
        await self._ask(new)
        looked_at = len(page.decisions)
        step = Step(page.place, looked_at, len(new), erased=looked_at - len(known))
        changes: dict[tuple[tuple[bytes, datetime | None], bool], Change] = {}
        for each, key in zip(known, keys, strict=True):
            answer = self._answers[key]
            if answer.allowed != each.allowed:
                _add(step, changes, (key, each.allowed), each, answer)
        step.changes = list(changes.values())
        return step

    async def _ask(self, keys: Sequence[tuple[bytes, datetime | None]]) -> None:
        loop = asyncio.get_running_loop()
        chunks = [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]
        try:
            answered = await asyncio.gather(
                *(loop.run_in_executor(self._pool, _answers, chunk) for chunk in chunks)
            )
        except BrokenExecutor as error:
            raise RemitError(
                ERROR_REASON_INTERNAL, "a process that tries the policies ended"
            ) from error
        for chunk, answers in zip(chunks, answered, strict=True):
            self._answers.update(zip(chunk, answers, strict=True))


def _add(
    step: Step,
    changes: dict[tuple[tuple[bytes, datetime | None], bool], Change],
    key: tuple[tuple[bytes, datetime | None], bool],
    each: Recorded,
    answer: Answer,
) -> None:
    step.newly_allowed += answer.allowed
    step.newly_denied += not answer.allowed
    known = changes.get(key)
    if known is None:
        changes[key] = Change(each, answer, earliest=each.time)
    else:
        known.count += 1
        known.earliest = min(known.earliest or each.time, each.time)


_BOOK: RuleBook | None = None
"""The candidate, in a process of the pool."""


def prepare(candidate: Candidate) -> None:
    """Prepare a worker of a pool for the questions about a candidate."""
    global _BOOK  # noqa: PLW0603 - the one thing that a process of the pool is for
    rules = compile_policies(candidate.source)
    _BOOK = RuleBook(rules, 0, grants=Grants(candidate.grants))


def _answers(keys: Sequence[tuple[bytes, datetime | None]]) -> list[Answer]:
    if _BOOK is None:  # pragma: no cover - the pool's initializer set it
        message = "the process was not prepared"
        raise AssertionError(message)
    answers = []
    for stated, time in keys:
        decision = _BOOK.decide(question_of(stated, time))
        answers.append(Answer(decision.allow, decision.policy_ids, decision.reason))
    return answers
