"""Messages become JSON that a script can compute with."""

from __future__ import annotations

import json

from google.protobuf import struct_pb2

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.tools.v1 import tool_pb2
from remit.cli import documents
from remit.rpc.errors import QuotaViolation, RemitError, Violation


def a_run() -> run_pb2.Run:
    run = run_pb2.Run(
        name="runs/1", state=run_pb2.RUN_STATE_FAILED, cost_nanos=2**53 + 1, context={"b": "2"}
    )
    run.create_time.FromJsonString("2026-11-23T15:00:00.5Z")
    run.limits.max_duration.seconds = 300
    run.limits.max_steps = 8
    run.usage.input_tokens = 7
    error = RemitError(
        error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        "too dear",
        quota=[QuotaViolation("orgs/a", "0 left")],
    )
    run.error.CopyFrom(error.to_status())
    run.artifacts.add(name="r.md", digest=b"\x00\xff", size_bytes=3)
    return run


def test_integers_are_integers_times_are_rfc_3339_and_enums_are_names() -> None:
    document = json.loads(documents.to_line(documents.of_message(a_run())))
    assert document["cost_nanos"] == 2**53 + 1
    assert document["usage"]["input_tokens"] == 7
    assert document["create_time"] == "2026-11-23T15:00:00.500Z"
    assert document["state"] == "RUN_STATE_FAILED"
    assert document["limits"] == {"max_steps": 8, "max_duration": "300s"}
    assert document["context"] == {"b": "2"}
    assert document["artifacts"][0]["digest"] == "AP8="


def test_what_is_absent_is_left_out_and_what_is_empty_is_not() -> None:
    document = documents.of_message(a_run())
    assert "end_time" not in document
    assert "last_leaf_index" not in document
    assert document["result"] == ""
    assert documents.of_message(tool_pb2.Tool())["idempotent"] is False


def test_a_status_is_our_error() -> None:
    error = documents.of_message(a_run())["error"]
    assert error["reason"] == "BUDGET_EXHAUSTED"
    assert error["code"] == "RESOURCE_EXHAUSTED"
    assert error["quota"] == [{"subject": "orgs/a", "description": "0 left"}]
    assert "next_step" in error


def test_structs_are_objects() -> None:
    arguments = struct_pb2.Struct()
    arguments.update({"a": 1, "b": [True, None, "x"], "c": {"d": 0.5}})
    call = run_pb2.ToolCallStarted(tool="tools/t", arguments=arguments)
    assert documents.of_message(call)["arguments"] == {
        "a": 1,
        "b": [True, None, "x"],
        "c": {"d": 0.5},
    }


def test_an_unknown_enum_value_keeps_its_number() -> None:
    run = run_pb2.Run.FromString(b"\x38\x63")
    assert documents.of_message(run)["state"] == 99


def test_an_error_lists_what_it_has() -> None:
    error = RemitError(
        error_reason_pb2.ERROR_REASON_OVERLOADED,
        "full",
        violations=[Violation("task", "empty")],
        retry_after_s=2.5,
        metadata={"k": "v"},
    )
    document = documents.of_error(error)
    assert document["violations"] == [{"field": "task", "description": "empty"}]
    assert document["retry_after_s"] == 2.5
    assert document["metadata"] == {"k": "v"}


def test_a_line_is_ascii_so_that_it_commands_no_terminal() -> None:
    line = documents.to_line({"text": "\x1b[31m\x9b é"})
    assert line.isascii()
    assert json.loads(line)["text"] == "\x1b[31m\x9b é"
    assert "\n" not in line
