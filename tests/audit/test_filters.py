"""Filters find what is wanted and nothing else, by one index and a bounded look at it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from remit.audit.filters import EventFilter, Statement, Walk
from remit.audit.packing import pack
from remit.audit.store import LogStore
from remit.postgres import Database
from tests.audit.events import NOW, ORG
from tests.conftest import OpenDatabase, PostgresCluster

ROWS = 6_000
MOST = 256
RARE_EVERY = 1_500
"""An administrator's change, a doubt, an event of the user rare: one in so many."""
RUN = "runs/0198c0de-0000-7000-8000-{:012d}"
CLAIM = "claims/0198c0de-0000-7000-8000-{:012d}"


def pseudonym(user: str) -> bytes:
    return hashlib.sha256(user.encode()).digest()


COLUMNS = [
    *("leaf_index", "append_time", "event_time", "org", "subject_pseudonym", "kind"),
    *("action", "run", "claim", "outcome", "leaf", "payload"),
]


@dataclass(frozen=True)
class Row:
    """One event as this module's log has it."""

    index: int

    @property
    def is_rare(self) -> bool:
        return self.index % RARE_EVERY == 7

    @property
    def user(self) -> str:
        return "rare" if self.is_rare else f"user-{self.index // 2 % 20}"

    @property
    def kind(self) -> str:
        return "ADMIN" if self.is_rare else ("INTENT", "OUTCOME")[self.index % 2]

    @property
    def outcome(self) -> str:
        if self.index % RARE_EVERY == 9:
            return "IN_DOUBT"
        return "" if self.kind == "INTENT" else "SUCCEEDED"

    @property
    def action(self) -> str:
        return (
            "budgets.set"
            if self.is_rare
            else ("tools.call", "models.generate")[self.index % 3 == 0]
        )

    @property
    def run(self) -> str:
        return "" if self.is_rare else RUN.format(self.index // 12)

    @property
    def claim(self) -> str:
        return "" if self.is_rare else CLAIM.format(self.index // 2)

    @property
    def org(self) -> str:
        return "orgs/other" if self.index % 10 == 5 else ORG

    @property
    def time(self) -> datetime:
        return NOW + timedelta(seconds=self.index)

    def columns(self, now: datetime, leaf: bytes) -> tuple[object, ...]:
        stated = (self.index, now, self.time, self.org, pseudonym(self.user), self.kind)
        return (*stated, self.action, self.run, self.claim, self.outcome, leaf, b"")

    def matches(self, wanted: EventFilter) -> bool:
        return (
            self.org == wanted.org
            and wanted.run in {"", self.run}
            and wanted.claim in {"", self.claim}
            and wanted.subject_pseudonym in {b"", pseudonym(self.user)}
            and wanted.action in {"", self.action}
            and wanted.outcome in {"", self.outcome}
            and wanted.kind in {"", self.kind}
            and (wanted.start_time is None or self.time >= wanted.start_time)
            and (wanted.end_time is None or self.time < wanted.end_time)
        )


@pytest.fixture
async def filled(database: OpenDatabase) -> Database:
    opened = await database("audit")
    records = [row.columns(datetime.now(UTC), pack(b"leaf")) for row in map(Row, range(ROWS))]
    async with opened.acquire() as connection:
        for part in (records[at : at + 1_000] for at in range(0, ROWS, 1_000)):
            await connection.copy_records_to_table("events", columns=COLUMNS, records=part)
    return opened


@pytest.fixture
async def indexes(filled: Database, postgres: PostgresCluster) -> dict[str, str]:
    """The index that the index of a partition belongs to; statistics are as of now."""
    name = await filled.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(postgres.dsn(name, "remit_audit_owner"))
    await owner.execute("ANALYZE events")
    await owner.close()
    rows = await filled.fetch(
        "SELECT inhrelid::regclass::text, inhparent::regclass::text"
        " FROM pg_inherits JOIN pg_index ON indexrelid = inhrelid"
        " WHERE indrelid = (SELECT tableoid FROM events LIMIT 1)"
    )
    return {row[0]: row[1] for row in rows}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def looked_at(node: dict[str, Any]) -> float:
    """The rows that a node of a plan has seen."""
    rows: float = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return rows * int(node["Actual Loops"])


async def explained(database: Database, statement: Statement) -> list[dict[str, Any]]:
    """The nodes of a plan as it was carried out."""
    text = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}"
    [row] = await database.fetch(text, *statement.arguments)
    return list(nodes(json.loads(row[0])[0]["Plan"]))


FILTERS = {
    "org": (EventFilter(ORG), "org"),
    "claim": (EventFilter(ORG, claim=CLAIM.format(9)), "claim"),
    "run": (EventFilter(ORG, run=RUN.format(3)), "run"),
    "subject": (EventFilter(ORG, subject_pseudonym=pseudonym("rare")), "subject"),
    "action": (EventFilter(ORG, action="budgets.set"), "action"),
    "kind": (EventFilter(ORG, kind="ADMIN"), "kind"),
    "outcome": (EventFilter(ORG, outcome="IN_DOUBT"), "outcome"),
    "often": (EventFilter(ORG, kind="INTENT"), "org"),
    "usual": (EventFilter(ORG, outcome="SUCCEEDED"), "org"),
    "none of many": (
        EventFilter(ORG, action="tools.call", end_time=NOW - timedelta(days=1)),
        "org",
    ),
    "none of a user": (
        EventFilter(ORG, subject_pseudonym=pseudonym("user-3"), kind="ADMIN"),
        "subject",
    ),
}


async def test_a_filter_walks_its_index_and_no_further_than_it_may(
    filled: Database, indexes: dict[str, str]
) -> None:
    for wanted, index in FILTERS.values():
        for walk in (Walk(ROWS, MOST), Walk(0, MOST, is_backward=False)):
            for statement in (walk.found(wanted, 51), walk.last(wanted)):
                plan = await explained(filled, statement)
                used = {indexes.get(node.get("Index Name", "")) for node in plan} - {None}
                assert used == {f"events_by_{index}"}, (wanted, plan)
                assert not {node["Node Type"] for node in plan} & {"Seq Scan", "Sort"}, plan
                assert max(map(looked_at, plan)) <= MOST, plan


async def pages(store: LogStore, wanted: EventFilter, walk: Walk, limit: int) -> list[list[int]]:
    """The indices of every page, gone through as a reader goes through them."""
    found = []
    while True:
        page = [e.leaf_index for e in await store.list_events(wanted, walk, limit=limit)]
        found.append(page)
        last = page[-1] if len(page) == limit else await store.walked_to(wanted, walk)
        if last is None:
            return found
        start = last if walk.is_backward else last + 1
        walk = Walk(start, walk.most, is_backward=walk.is_backward)


MIXTURES: list[dict[str, Any]] = [
    {"kind": "ADMIN"},
    {"kind": "OUTCOME", "outcome": "SUCCEEDED", "action": "models.generate"},
    {"outcome": "IN_DOUBT", "subject_pseudonym": pseudonym("user-4")},
    {"subject_pseudonym": pseudonym("rare"), "action": "budgets.set"},
    {"subject_pseudonym": pseudonym("user-5"), "start_time": NOW + timedelta(seconds=5_500)},
    {"run": RUN.format(3), "claim": CLAIM.format(19), "kind": "INTENT"},
    {"run": RUN.format(3), "claim": CLAIM.format(2)},
    {"action": "tools.call", "end_time": NOW + timedelta(seconds=300)},
    {"start_time": NOW + timedelta(seconds=50), "end_time": NOW + timedelta(seconds=90)},
]


async def test_pages_hold_every_event_that_is_wanted_once(filled: Database) -> None:
    store = LogStore(filled, max_batch=16, max_queue=256)
    for wanted in MIXTURES:
        sought = EventFilter(ORG, **wanted)
        expected = [index for index in range(ROWS) if Row(index).matches(sought)]
        oldest_first = await pages(store, sought, Walk(0, 600, is_backward=False), 100)
        newest_first = await pages(store, sought, Walk(ROWS, 600), 100)
        assert list(itertools.chain(*oldest_first)) == expected, wanted
        assert list(itertools.chain(*newest_first)) == expected[::-1], wanted
        longest = max(len(oldest_first), len(newest_first))
        assert longest <= ROWS // 600 + len(expected) // 100 + 1, wanted


async def test_a_list_from_a_time_on_ends_where_all_is_older(
    filled: Database,
) -> None:
    store = LogStore(filled, max_batch=16, max_queue=256)
    tomorrow = EventFilter(ORG, start_time=datetime.now(UTC) + timedelta(days=1, hours=1))
    assert await pages(store, tomorrow, Walk(ROWS, MOST), 100) == [[]]


def test_every_filter_is_part_of_the_digest() -> None:
    changed: dict[str, Any] = {
        "run": "r",
        "claim": "r",
        "start_time": NOW,
        "end_time": NOW,
        "subject_pseudonym": b"r",
        "action": "r",
        "outcome": "R",
        "kind": "R",
    }
    digests = {EventFilter(ORG, **{name: value}).digest() for name, value in changed.items()}
    assert len(digests | {EventFilter(ORG).digest(), EventFilter("orgs/other").digest()}) == 10
