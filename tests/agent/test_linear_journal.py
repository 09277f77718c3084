"""What the journal does for a step is the same at step 1 and at step 100: work, rows and bytes.

Counted and not timed, so that it says the same on every machine.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from google.protobuf import struct_pb2

from remit.agent import store
from remit.agent.entries import Entry
from remit.agent.journal import Progress, fold
from remit.agent.logbook import ANSWERING, USING_TOOLS, Draft, started
from remit.agent.records import encode_event
from remit.agent.statements import ContentRow, write_arguments
from remit.agent.summary import summary_of
from remit.api.agent.v1 import run_pb2
from remit.api.usage.v1 import usage_pb2
from tests.agent.conftest import StartReplica, World
from tests.agent.histories import MODEL, RUN, FixedClock, accepted
from tests.agent.outside import Generate, Turn, results, says

STEPS = 100
TEXT = "This is what the model says in each of its turns. " * 12
MORE_DIGITS = 24
"""Bytes by which an entry may grow because the numbers in it have more digits."""

AGENT = """
name: historian
display_name: Historian
description: Goes on for long.
instructions: Go on.
model: builtin-rules
tools: [calculator]
max_steps: 60
"""


@dataclass(frozen=True)
class Done:
    """What was done for one step."""

    calls: int
    """Of Python functions, builtin ones included."""
    rows: int
    size_bytes: int


def an_accepted_run() -> Progress:
    created = run_pb2.RunEvent(run=RUN, sequence=1)
    created.created.run.CopyFrom(accepted(max_steps=STEPS))
    draft = Draft(RUN, fold([created]), FixedClock())
    draft.add(started(1, "one"))
    draft.announce_next(MODEL)
    return draft.progress


def entries_of(step: int, progress: Progress) -> Iterator[Draft]:
    """The journal entries of one step: text as it comes, the turn's end, the tool's result."""
    for text in (TEXT[:300], TEXT[300:]):
        draft = Draft(RUN, progress, FixedClock())
        draft.enter(ANSWERING)
        draft.add(run_pb2.TextDelta(step=step, text=text))
        yield draft
        progress = draft.progress
    arguments = struct_pb2.Struct()
    arguments.update({"text": TEXT})
    effect: dict[str, Any] = {
        "usage": usage_pb2.Usage(input_tokens=100, output_tokens=100, calls=1),
        "cost_nanos": 700,
        "claim": "claims/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
        "intent_leaf_index": 1000,
    }
    call: dict[str, Any] = {"step": step, "call_id": "c", "tool": "tools/calculator"}
    draft = Draft(RUN, progress, FixedClock())
    draft.add(run_pb2.ModelCallEnded(step=step, model=MODEL, tool_calls=1, **effect))
    draft.enter(USING_TOOLS)
    draft.add(run_pb2.ToolCallStarted(arguments=arguments, **call))
    yield draft
    draft = Draft(RUN, draft.progress, FixedClock())
    draft.add(run_pb2.ToolCallEnded(result=arguments, **call, **effect))
    draft.announce_next(MODEL)
    yield draft


def written(drafts: Iterator[Draft]) -> tuple[Progress, int, int]:
    """The progress after entries, and the rows and bytes that are sent for them."""
    progress, rows, size_bytes = Progress(), 0, 0
    for draft in drafts:
        progress = draft.progress
        entry = Entry(summary_of(progress), fencing_token=1, events=tuple(draft.events))
        pairs = [encode_event(event) for event in entry.events]
        contents = [ContentRow(entry.run_id, c.digest, c.data) for _, c in pairs if c]
        arguments = write_arguments([], [entry], contents, [row for row, _ in pairs], [])
        rows += len(entry.events) + len(contents) + 1
        size_bytes += sent_bytes(arguments)
    return progress, rows, size_bytes


def sent_bytes(arguments: list[list[object]]) -> int:
    """Of all values of a statement."""
    return sum(
        len(value) if isinstance(value, bytes | str) else 8
        for column in arguments
        for value in column
    )


def counted(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns, and the function calls that it makes."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        return work(), calls
    finally:
        sys.setprofile(before)


def test_a_step_costs_the_journal_the_same_work_rows_and_bytes_however_many_came_before() -> None:
    progress, done = an_accepted_run(), list[Done]()
    for step in range(1, STEPS):
        entries = entries_of(step, progress)
        (progress, rows, size_bytes), calls = counted(functools.partial(written, entries))
        done.append(Done(calls, rows, size_bytes))
    # The first step meets caches that are empty, the last one knows that there is no next.
    usual = done[1:-1]
    assert {each.rows for each in usual} == {usual[0].rows}
    # Of many steps, since a finalizer may run within any of them.
    first, last = (
        statistics.median(each.calls for each in part) for part in (usual[:30], usual[-30:])
    )
    assert last <= first + 8, "one call more for each earlier step would be 67"
    assert max(each.size_bytes for each in usual) <= usual[0].size_bytes + MORE_DIGITS


async def test_a_run_sends_the_database_as_much_for_its_last_steps_as_for_its_first(
    world: World, replica: StartReplica, agents_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (agents_dir / "historian.yaml").write_text(AGENT)
    statements: dict[int, list[int]] = defaultdict(list)
    step = 0

    def spy(created: Any, entries: Any, *rows: Any) -> list[list[object]]:
        arguments = write_arguments(created, entries, *rows)
        statements[step].append(sent_bytes(arguments))
        return arguments

    def goes_on(request: Generate) -> Turn:
        nonlocal step
        step += 1
        if step == 60:
            return says("Done.")
        return says(TEXT, ("calculator", {"expression": f"{1000 + step} * 1", "why": TEXT}))

    monkeypatch.setattr(store, "write_arguments", spy)
    world.inference.think, world.tools.act = goes_on, lambda _: results(value=1, text=TEXT)
    # One entry for all text of a turn, however slow the machine is.
    world.inference.piece_chars = len(TEXT)
    one = await replica(agents_dir=agents_dir, delta_interval_ms=5000)
    run = await one.client().create(agent="agents/historian")
    ended = await one.client().ended(run.name)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED, ended.error
    assert len({len(statements[each]) for each in range(2, 59)}) == 1
    first, last = (sum(statements[each]) for each in (2, 58))
    assert last <= first + MORE_DIGITS * len(statements[2])
