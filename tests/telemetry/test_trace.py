"""The trace context: what is believed of a traceparent, and where batches stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.rpc.calls import spawn
from remit.telemetry.trace import (
    MAX_RUNS,
    Trace,
    current,
    for_runs,
    fresh,
    parse,
    resumed,
    runs_of,
    together,
    within,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
RUN = "runs/01a209bc-2432-783e-af9b-701d52ae3823"

INVALID = [
    "",
    "garbage",
    f"00-{TRACE}-{SPAN}",
    f"00-{TRACE}-{SPAN}-01-more",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE[:-1]}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-1",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-zz",
    f"00-{TRACE}-{SPAN}-01\n",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", INVALID, ids=range(len(INVALID)))
def test_what_the_w3c_calls_invalid_is_no_trace(text: str) -> None:
    assert parse(text) is None


def test_a_traceparent_is_read_and_written() -> None:
    place = parse(f"00-{TRACE}-{SPAN}-01")
    assert place == Trace(TRACE, SPAN, sampled=True, remote=f"00-{TRACE}-{SPAN}-01")
    assert place.traceparent == place.remote
    unsampled = parse(f"00-{TRACE}-{SPAN}-02")
    assert unsampled is not None
    assert not unsampled.sampled


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    place = parse(f"cc-{TRACE}-{SPAN}-01-what-comes-next")
    assert place is not None
    assert (place.trace_id, place.sampled) == (TRACE, True)


@given(st.text(max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    place = parse(text)
    assert place is None or len(place.trace_id) == 32


async def test_work_that_outlives_its_call_keeps_the_trace() -> None:
    async def work() -> Trace | None:
        return current()

    place = fresh((RUN,))
    with within(place):
        task = spawn(work(), name="work")
    assert await task == place
    assert current() is None


async def test_a_generator_that_is_left_open_disturbs_nothing() -> None:
    async def stream() -> AsyncGenerator[int, None]:
        with within(fresh()):
            yield 1
            yield 2

    one: Any = stream()
    assert await anext(one) == 1
    await asyncio.create_task(one.aclose())


def test_a_batch_stands_at_its_first_recorded_item_and_names_every_run() -> None:
    quiet = fresh((RUN,))
    first = replace(fresh(("runs/b",)), sampled=True)
    second = replace(fresh(("runs/c", RUN)), sampled=True)
    batch = together([None, quiet, first, second])
    assert batch is not None
    assert (batch.trace_id, batch.span_id) == (first.trace_id, first.span_id)
    assert batch.others == (second,)
    assert batch.runs == (RUN, "runs/b", "runs/c")


def test_a_batch_of_one_stands_where_its_item_does() -> None:
    place = fresh()
    assert together([place]) is place
    assert together([None]) is None
    assert together([None, None]) is None


def test_two_items_of_one_effect_make_no_link_to_themselves() -> None:
    place = replace(fresh(), sampled=True)
    batch = together([place, place])
    assert batch is not None
    assert batch.others == ()


def test_a_header_of_runs_is_bounded_and_holds_runs_alone() -> None:
    assert runs_of(f"{RUN},forged line,{RUN}") == (RUN, RUN)
    assert runs_of("") == ()
    assert len(runs_of(",".join([RUN] * 10_000))) == MAX_RUNS


def test_what_is_left_to_do_keeps_the_trace_id_without_spans() -> None:
    place = resumed(TRACE, RUN)
    assert (place.trace_id, place.sampled, place.runs) == (TRACE, False, (RUN,))
    assert resumed("not an id", "").trace_id != "not an id"


def test_runs_are_named_without_a_trace_too() -> None:
    assert for_runs(None, [RUN, ""]).runs == (RUN,)
