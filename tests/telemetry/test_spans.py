"""Spans around work and around RPCs: where they stand, how they end, what they may hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from annotated_types import Le
from opentelemetry import trace as otel
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace.status import StatusCode

from remit.api.errors.v1 import error_reason_pb2
from remit.effects.settings import EffectSettings
from remit.rpc.errors import RemitError
from remit.telemetry import annotate, span, table
from remit.telemetry.content import CUT, capture
from remit.telemetry.spans import UNRECORDED, Kind, client_span, in_span, start
from remit.telemetry.trace import current, fresh, together, within
from tests.telemetry.tracing import recorded

PATH = "/remit.api.cost.v1.CostService/BatchReserveBudgets"


def hex_id(context: otel.SpanContext | None) -> str:
    return otel.format_span_id(context.span_id) if context is not None else ""


def test_spans_nest_and_the_inner_one_is_the_current_one() -> None:
    with recorded() as recorder:
        with span("outer") as outer, span("inner"):
            annotate(table.CLAIM, "claims/1")
            assert otel.get_current_span().is_recording()  # for libraries that a tool brings
        spans = recorder.spans()
    assert outer.place is not None
    assert hex_id(spans["inner"].parent) == outer.place.span_id
    assert hex_id(spans["outer"].parent) == recorder.root.span_id
    assert dict(spans["inner"].attributes or {}) == {
        table.SERVICE: "test",
        table.CLAIM: "claims/1",
    }


def test_nothing_is_recorded_outside_a_sampled_trace() -> None:
    with recorded() as recorder:
        for place in (None, fresh()):
            with within(place), span("not sampled") as opened, client_span(PATH) as seen:
                assert opened is UNRECORDED
                assert seen is place
                annotate(table.CLAIM, "claims/1")
        assert recorder.spans() == {}


def test_without_a_collector_a_sampled_trace_is_passed_on_as_it_came() -> None:
    place = replace(fresh(), sampled=True)
    with within(place), client_span(PATH) as seen:
        assert seen is place  # a span id of our own would name a span that nobody records


def test_what_fails_is_marked_by_its_reason_and_never_by_its_text() -> None:
    text = "a text that may quote what a user sent"
    errors: list[BaseException] = [
        RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, text),
        ValueError(text),
        asyncio.CancelledError(text),
    ]
    with recorded() as recorder:
        for number, error in enumerate(errors):
            with contextlib.suppress(BaseException), span(str(number)):
                raise error
        spans = recorder.spans()
    assert [spans[str(n)].attributes[table.ERROR_TYPE] for n in range(3)] == [  # type: ignore[index]
        "TOOL_FAILED",
        "ValueError",
        "CANCELLED",
    ]
    for one in spans.values():
        assert one.status.status_code is StatusCode.ERROR
        assert text not in one.to_json()
        assert not one.events


async def test_work_in_a_span_gives_its_result() -> None:
    async def work() -> int:
        return 7

    with recorded() as recorder:
        assert await in_span("work", work()) == 7
        assert list(recorder.spans()) == ["work"]


def test_a_call_names_its_rpc_and_code() -> None:
    with recorded() as recorder:
        with client_span(PATH) as place:
            assert place is not None
            inside = place.span_id
        with pytest.raises(RemitError), client_span("/a.b.C/Fails"):
            raise RemitError(error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED, "no money")
        spans = recorder.spans()
    made = spans[PATH]
    assert hex_id(made.context) == inside
    assert made.kind is otel.SpanKind.CLIENT
    assert dict(made.attributes or {}) == {
        table.SERVICE: "test",
        table.RPC_SYSTEM: "grpc",
        table.RPC_SERVICE: "remit.api.cost.v1.CostService",
        table.RPC_METHOD: "BatchReserveBudgets",
        table.RPC_GRPC_STATUS_CODE: 0,
    }
    failed = dict(spans["/a.b.C/Fails"].attributes or {})
    assert failed[table.RPC_GRPC_STATUS_CODE] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert failed[table.ERROR_TYPE] == "BUDGET_EXHAUSTED"


async def test_a_call_that_its_caller_cancels_has_a_span_all_the_same() -> None:
    async def call() -> None:
        with client_span(PATH):
            await asyncio.Event().wait()

    with recorded() as recorder:
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        attributes = dict(recorder.spans()[PATH].attributes or {})
    assert attributes[table.RPC_GRPC_STATUS_CODE] == 1
    assert attributes[table.ERROR_TYPE] == "CANCELLED"


async def test_a_stream_that_is_left_early_is_no_failure() -> None:
    async def stream() -> AsyncIterator[int]:
        with client_span(PATH):
            yield 1
            yield 2

    with recorded() as recorder:
        one: Any = stream()
        assert await anext(one) == 1
        await one.aclose()
        made = recorder.spans()[PATH]
    assert made.status.status_code is StatusCode.UNSET


def test_the_span_of_the_largest_batch_links_to_every_effect() -> None:
    rules = EffectSettings.model_fields["effect_max_batch"].metadata
    (most,) = [int(str(rule.le)) for rule in rules if isinstance(rule, Le)]
    with recorded() as recorder:
        batch = together([replace(fresh(), sampled=True) for _ in range(most)])
        with within(batch), client_span(PATH):
            pass
        (made,) = recorder.all_spans()
    assert len(made.links) == most - 1


def test_a_batch_links_to_its_effects_and_they_to_it() -> None:
    with recorded() as recorder:
        first, second = start("effect 1"), start("effect 2")
        assert first.place is not None
        assert second.place is not None
        with within(replace(first.place, others=(second.place,))), client_span(PATH):
            pass
        first.end()
        second.end()
        spans = recorder.spans()
    batch = spans[PATH]
    assert hex_id(batch.parent) == first.place.span_id
    assert [hex_id(link.context) for link in batch.links] == [second.place.span_id]
    back = [link.context.span_id for link in spans["effect 2"].links]
    assert back == [batch.context.span_id]


def test_a_span_takes_the_id_that_others_were_told() -> None:
    with recorded() as recorder:
        made = recorder.tracer.start(
            "run",
            kind=Kind.INTERNAL,
            parent=recorder.root,
            attributes={},
            start_time_ns=5,
            span_id="00000000000000ab",
        )
        made.end(9)
        with span("another"):
            pass
        spans = recorder.spans()
    assert hex_id(spans["run"].context) == "00000000000000ab"
    assert (spans["run"].start_time, spans["run"].end_time) == (5, 9)
    assert hex_id(spans["another"].context) != "00000000000000ab"


def test_content_is_made_only_where_it_is_asked_for_and_then_bounded() -> None:
    def secret() -> object:
        raise AssertionError

    with recorded() as recorder, span("quiet") as opened:
        capture(opened, table.GEN_AI_INPUT_MESSAGES, secret)
    with recorded(content_chars=10) as recorder:
        with span("captures") as opened:
            capture(opened, table.GEN_AI_INPUT_MESSAGES, lambda: "short")
            capture(opened, table.GEN_AI_OUTPUT_MESSAGES, lambda: "long" * 100)
        attributes = dict(recorder.spans()["captures"].attributes or {})
    assert attributes[table.GEN_AI_INPUT_MESSAGES] == '"short"'
    cut = str(attributes[table.GEN_AI_OUTPUT_MESSAGES])
    assert len(cut) == 10
    assert cut.endswith(CUT)


def test_every_name_of_the_table_is_described_and_those_of_the_conventions_exist() -> None:
    constants = {
        value
        for key, value in vars(table).items()
        if key.isupper() and isinstance(value, str) and "." in value
    } - {table.CONVENTIONS}
    assert constants == set(table.MEANINGS)
    known = {value for key, value in vars(gen_ai_attributes).items() if key.startswith("GEN_AI")}
    assert {name for name in constants if name.startswith("gen_ai.")} <= known
    assert current() is None
