"""`make bench-policy`: decisions by few and many policies, and previews of many decisions.

python -m tests.bench.policy                   measure and show
python -m tests.bench.policy --decisions 5000  smaller previews

Nothing is written: the figures are of the machine that runs it. Decisions are measured in time of
the CPU, so that whoever else uses the machine does not count; previews in time that passes. Where
1,000 policies are for 1,000 tools, a question meets those of its own tool alone; "as one set" is
what Cedar does without slices, and "kept" what a book remembers of questions alike.

A preview is all that SimulatePolicy does: decisions are read from a real PostgreSQL and opened with
their subjects' keys, and processes that are started for it ask the candidate. "read" is the reading
and opening alone. PREVIEWS says which decisions are tried on which candidates.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from remit import telemetry
from remit.api.policy.v1 import policy_set_service_pb2
from remit.policy.decision_record import Place
from remit.policy.entities import Principal, reference_to
from remit.policy.epochs import read_policies
from remit.policy.facts import facts_of
from remit.policy.replay import process_pool
from remit.policy.rule_sets import PolicySource, RuleSet, compile_policies
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.schema import SHIPPED_POLICIES
from remit.policy.slices import Slice, Slices
from remit.postgres import Database
from remit.rpc.calls import remit_token
from tests.conftest import PostgresCluster, running_postgres
from tests.policy.world import ALICE, MovedClock, World

SHIPPED: Final = read_policies(SHIPPED_POLICIES)
TOOLS: Final = 1_000
PROCESSES: Final = 2
NOW: Final = datetime(2026, 11, 29, tzinfo=UTC)

_TEST: Final = (
    '@id("{name}") forbid (principal, action == Action::"tools.call", resource is Tool)'
    " when {{ {condition} }};"
)
_CALLED: Final = "context has tool_call && "
_FACTS: Final = "context.tool_call.facts"
TESTS: Final = "\n".join(
    _TEST.format(name=name, condition=condition)
    for name, condition in {
        "secret": f'{_CALLED}{_FACTS}.common_path like "/secret/*"',
        "drafts": f'{_CALLED}{_FACTS}.path_prefixes.contains("/reports/drafts")',
        "hosts": f'{_CALLED}{_FACTS}.hosts.containsAny(["h7.example.com", "h77.example.com"])',
        "mails": f'{_CALLED}{_FACTS}.mail_domains.contains("d777.example.com")',
        "compared": f"{_CALLED}{_FACTS}.hosts.contains({_FACTS}.common_path)",
        "night": 'context.now.toTime() < duration("6h")',
        "ended": 'context.now > datetime("2026-12-31T00:00:00Z")',
    }.items()
)
"""Policies for every tool that test what the arguments touch, and the time."""
USERS: Final = "\n".join(
    f'@id("u{n}") forbid (principal == User::"orgs/acme/users/u{n}",'
    ' action == Action::"tools.call", resource is Tool)'
    f' when {{ {_CALLED}{_FACTS}.common_path like "/secret/{n}/*" }};'
    for n in range(1_000)
)
"""A policy for each of 1,000 users, for every tool."""
APART: Final = _TEST.format(
    name="apart", condition=f"{_CALLED}principal.roles.contains(context.tool_call.arguments_digest)"
)
"""A policy that compares what differs from call to call with what is no fact of the call."""


@dataclass(frozen=True)
class Preview:
    """Decisions, and the candidate that is tried on them."""

    name: str
    tools: int
    """Of which the candidate has a policy each."""
    more: str
    """Policies that the candidate has besides."""
    distinct: bool = True
    """Each by one of 1,000 users about one of 1,000 tools, with arguments of its own."""


PREVIEWS: Final = (
    Preview("alike", 0, "", distinct=False),
    Preview("tests of arguments and time", 10, TESTS),
    Preview("and a policy for each tool", TOOLS, TESTS),
    Preview("and a policy for each user", 10, TESTS + USERS),
    Preview("a policy that tells all apart", 10, TESTS + APART),
)


class OneSet(Slices):
    """All policies for every question."""

    def __init__(self, rules: RuleSet) -> None:
        super().__init__(rules)
        self._all = Slice(rules.policies)

    def of(self, action: str, resource: str) -> Slice:
        """The whole set, whatever is asked."""
        del action, resource
        return self._all


def rules_with(tools: int, more: str = "") -> RuleSet:
    """What Remit ships, a policy for each of `tools` tools, and `more`."""
    text = "\n".join(
        f'@id("t{n}") forbid (principal, action == Action::"tools.call",'
        f' resource == Tool::"tools/t{n}")'
        " when { context has tool_call && context.tool_call.facts.common_path like"
        f' "/secret/{n}/*" }};'
        for n in range(tools)
    )
    added = {name: text for name, text in (("tools.cedar", text), ("more.cedar", more)) if text}
    return compile_policies(PolicySource({**SHIPPED.files, **added}, SHIPPED.schema))


def question(number: int, *, distinct: bool, path: str = "/reports/a.txt") -> Question:
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
            "facts": facts_of(own if distinct else {"path": path}).to_cedar(),
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
    for each in asked[200:]:
        began = time.thread_time()
        book.decide(each)
        taken.append(time.thread_time() - began)
    taken.sort()
    p99_us = taken[len(taken) * 99 // 100] * 1e6
    return f"{len(taken) / sum(taken):>9,.0f}/s   p99 {p99_us:>7,.0f} us"


def decisions() -> None:
    """Show how fast one core decides."""
    # A path of its own makes a question new to the book.
    asked = [question(n, distinct=False, path=f"/reports/{n}.txt") for n in range(3_000)]
    alike = [question(n, distinct=False) for n in range(3_000)]
    for more in (0, 10, TOOLS):
        rules = rules_with(more)
        for name, slices, questions in (
            ("by slices", Slices(rules), asked),
            ("as one set", OneSet(rules), asked),
            ("kept", Slices(rules), alike),
        ):
            book = RuleBook(rules, 1, slices=slices)
            print(f"{len(rules.policies):>6,} policies, {name:<10}  {measured(book, questions)}")


async def keep(world: World, count: int, *, distinct: bool) -> None:
    """Record `count` decisions, of which every hundredth was a denial."""
    for number in range(count):
        allow = number % 100 != 0
        when = world.clock.now() - timedelta(milliseconds=400 * number)
        asked = replace(question(number, distinct=distinct), time=when)
        decision = Decision(allow, ("members-call-tools",), "", 1)
        world.record.note(f"decisions/{number:032x}", asked, decision)
    await world.record.flush()


async def read(world: World, count: int) -> str:
    """Show how long the reading and opening of what is recorded takes."""
    began, began_cpu = time.perf_counter(), time.process_time()
    place = Place(world.clock.now() + timedelta(seconds=1), "", count)
    start = world.clock.now() - timedelta(days=7)
    found = sum([len(page.decisions) async for page in world.record.read(start, place)])
    took_s, took_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    return f"{found:,} decisions: {took_s:.1f} s, of the CPU {took_cpu_s:.1f} s"


async def preview(world: World, count: int, each: Preview) -> str:
    """Show how long a candidate takes that would change some of `count` decisions."""
    request = policy_set_service_pb2.SimulatePolicyRequest(max_decisions=count)
    request.end_time.FromDatetime(world.clock.now() + timedelta(seconds=1))
    for name, text in rules_with(each.tools, each.more).source.files.items():
        request.files.add(name=name, text=text)
    began = time.perf_counter()
    looked_at = asked = changed = 0
    with remit_token(world.client_token(ALICE, roles=("admin",))):
        async for step in world.policy_sets().SimulatePolicy(request):
            looked_at += step.decisions
            asked += step.questions
            changed += step.newly_allowed + step.newly_denied
    took_s = time.perf_counter() - began
    return (
        f"{looked_at:,} decisions, {asked:,} questions, {changed:,} changed:"
        f" {took_s:.1f} s in {PROCESSES} processes"
    )


async def previews(cluster: PostgresCluster, count: int) -> None:
    """Show each preview, on a database of its own for either kind of decisions."""
    pool_of = partial(process_pool, processes=PROCESSES)
    for distinct in (False, True):
        dsn = cluster.dsn(await cluster.fresh("policy"), "remit_policy")
        async with Database.open(dsn, pool_size=8, statement_timeout_s=60.0) as database:
            world = await World.open(database, MovedClock(), most_waiting=count, pool_of=pool_of)
            await world.admin_secret()
            await keep(world, count, distinct=distinct)
            print(f"{'read':<30}", await read(world, count), flush=True)
            for each in PREVIEWS:
                if each.distinct == distinct:
                    print(f"{each.name:<30}", await preview(world, count, each), flush=True)


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=100_000, help="of the previews")
    count = parser.parse_args().decisions
    telemetry.configure_logging(area="policy", replica="0", level="warning")
    decisions()
    with running_postgres(on_disk=True) as cluster:
        asyncio.run(previews(cluster, count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
