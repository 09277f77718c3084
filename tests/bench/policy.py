"""`make bench-policy`: decisions by few and many policies, and a preview of many decisions.

python -m tests.bench.policy                   measure and show
python -m tests.bench.policy --decisions 5000  a smaller preview

Nothing is written: the figures are of the machine that runs it. Decisions are measured in time of
the CPU, so that whoever else uses the machine does not count; previews in time that passes. Where
1,000 policies are for 1,000 tools, a question meets those of its own tool alone; "as one set" is
what Cedar does without slices, and "kept" what a book remembers of questions alike.

Previews are of three kinds. "alike": 100 questions, asked again and again. "different": each is by
one of 1,000 users about one of 1,000 tools with a path, a host and a recipient of its own, all of
which policies for every tool test. "told apart": the same, and a policy compares two facts with
each other, so that every decision is put to Cedar.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

from remit.policy.decision_record import Page, Place
from remit.policy.entities import Principal, reference_to
from remit.policy.epochs import read_policies
from remit.policy.facts import facts_of
from remit.policy.recorded import Recorded, question_json
from remit.policy.replay import Candidate, process_pool, replay
from remit.policy.rule_sets import PolicySource, RuleSet, compile_policies
from remit.policy.rules import Question, RuleBook
from remit.policy.schema import SHIPPED_POLICIES
from remit.policy.slices import Slice, Slices

SHIPPED: Final = read_policies(SHIPPED_POLICIES)
TOOLS: Final = 1_000
PAGE: Final = 2_000
PROCESSES: Final = 2
NOW: Final = datetime(2026, 11, 29, tzinfo=UTC)

_TEST: Final = (
    '@id("{name}") forbid (principal, action == Action::"tools.call", resource is Tool)'
    " when {{ context has tool_call && {condition} }};"
)
_FACTS: Final = "context.tool_call.facts"
TESTS: Final = "\n".join(
    _TEST.format(name=name, condition=condition)
    for name, condition in {
        "secret": f'{_FACTS}.common_path like "/secret/*"',
        "drafts": f'{_FACTS}.path_prefixes.contains("/reports/drafts")',
        "hosts": f'{_FACTS}.hosts.containsAny(["h7.example.com", "h77.example.com"])',
        "mails": f'{_FACTS}.mail_domains.contains("d777.example.com")',
    }.items()
)
"""Policies for every tool that test what the arguments touch."""
APART: Final = _TEST.format(
    name="apart",
    condition=f"{_FACTS}.hosts.contains({_FACTS}.common_path)",
)
"""A policy that compares facts with each other."""


class OneSet(Slices):
    """All policies for every question."""

    def __init__(self, rules: RuleSet) -> None:
        super().__init__(rules)
        self._all = Slice(rules.policies)

    def of(self, action: str, resource: str) -> Slice:
        """The whole set, whatever is asked."""
        del action, resource
        return self._all


def rules_with(more: int) -> RuleSet:
    """What Remit ships, and `more` policies, each for a tool of its own."""
    text = "\n".join(
        f'@id("t{n}") forbid (principal, action == Action::"tools.call",'
        f' resource == Tool::"tools/t{n}")'
        " when { context has tool_call && context.tool_call.facts.common_path like"
        f' "/secret/{n}/*" }};'
        for n in range(more)
    )
    files = SHIPPED.files if not more else {**SHIPPED.files, "tools.cedar": text}
    return compile_policies(PolicySource(files, SHIPPED.schema))


def question(number: int, *, distinct: bool) -> Question:
    """A call of a tool; distinct ones touch a path, a host and a mailbox of their own."""
    own = {
        "path": f"/reports/{number}/a.txt",
        "url": f"https://h{number}.example.com",
        "recipient": f"x@d{number}.example.com",
    }
    context = {
        "agent": reference_to("agents/clerk"),
        "tool_call": {
            "arguments_digest": f"{number:064}",
            "facts": facts_of(own if distinct else {"path": "/reports/a.txt"}).to_cedar(),
        },
    }
    user = number * 7919 % 1_000 if distinct else number % 50
    who = Principal(f"orgs/acme/users/u{user}", "orgs/acme", "", ("member",))
    tool = f"tools/t{number // 7 % TOOLS if distinct else number % 20}"
    return Question(who, "tools.call", tool, 2, context, NOW)


def measured(book: RuleBook, asked: Sequence[Question]) -> str:
    """Decisions a second of CPU, and the 99th percentile in microseconds of CPU."""
    for each in asked[:200]:
        book.decide(each)
    taken = []
    for each in asked:
        began = time.thread_time()
        book.decide(each)
        taken.append(time.thread_time() - began)
    taken.sort()
    p99_us = taken[len(taken) * 99 // 100] * 1e6
    return f"{len(taken) / sum(taken):>9,.0f}/s   p99 {p99_us:>7,.0f} us"


def decisions() -> None:
    """Show how fast one core decides."""
    asked = [question(number, distinct=False) for number in range(3_000)]
    alike = [replace(each, time=None) for each in asked]
    for more in (0, 10, TOOLS):
        rules = rules_with(more)
        for name, slices, questions in (
            ("by slices", Slices(rules), asked),
            ("as one set", OneSet(rules), asked),
            ("kept", Slices(rules), alike),
        ):
            book = RuleBook(rules, 1, slices=slices)
            print(f"{len(rules.policies):>6,} policies, {name:<10}  {measured(book, questions)}")


async def preview(count: int, *, distinct: bool, policies: str = "") -> str:
    """Show how long a candidate takes that would change some of `count` decisions."""
    rules = rules_with(10)
    files = {**rules.source.files, "facts.cedar": TESTS + policies} if distinct else SHIPPED.files
    candidate = Candidate(PolicySource(files, SHIPPED.schema), ())
    made = [
        Recorded(
            decision_id=f"decisions/{number}",
            stated=question_json(question(number, distinct=distinct)),
            time=NOW,
            allowed=number % 100 != 0,
            policy_ids=("members-call-tools",),
            epoch=1,
        )
        for number in range(count)
    ]

    async def pages() -> AsyncIterator[Page]:
        for start in range(0, count, PAGE):
            yield Page(list(made[start : start + PAGE]), Place(datetime.now(UTC), "", 1))

    began = time.perf_counter()
    asked = changed = 0
    async for step in replay(pages(), candidate, partial(process_pool, processes=PROCESSES)):
        asked += step.distinct
        changed += step.newly_allowed + step.newly_denied
    took_s = time.perf_counter() - began
    return (
        f"{count:,} decisions, {asked:,} questions, {changed:,} changed:"
        f" {took_s:.1f} s in {PROCESSES} processes"
    )


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=100_000, help="of the previews")
    count = parser.parse_args().decisions
    decisions()
    print("alike      ", asyncio.run(preview(count, distinct=False)))
    print("different  ", asyncio.run(preview(count, distinct=True)))
    print("told apart ", asyncio.run(preview(count, distinct=True, policies=APART)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
