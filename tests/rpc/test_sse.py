"""Server-sent events as text, and which `Last-Event-ID` resumes which stream."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import message

from remit.api.agent.v1 import agent_service_pb2
from remit.api.audit.v1 import audit_query_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2
from remit.rpc.contracts import all_contracts
from remit.rpc.errors import RemitError
from remit.rpc.sse import MEDIA_TYPE, SEQUENCE, Events, resume, resumes_by_id
from tests.contracts.test_method_contracts import METHODS

CONTRACTS = all_contracts()
WATCH = CONTRACTS["/remit.api.agent.v1.AgentService/WatchRun"]
EXPORT = CONTRACTS["/remit.api.audit.v1.AuditQueryService/ExportLog"]
TAIL = CONTRACTS["/remit.api.audit.v1.AuditQueryService/TailEvents"]
GENERATE = CONTRACTS["/remit.api.inference.v1.InferenceService/StreamGenerateText"]


def text_of(pieces: Any) -> str:
    return b"".join(piece.data for piece in pieces).decode()


def progress(text: str) -> agent_service_pb2.WatchRunResponse:
    response = agent_service_pb2.WatchRunResponse(sequence=7)
    response.event.text_delta.text = text
    return response


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\n\ndata: forged\n\n", "event: end", "id: 9"])
def test_a_text_cannot_leave_its_line(text: str) -> None:
    written = text_of(Events(WATCH).message(progress(text)))
    assert written.startswith("id: 7\ndata: {")
    assert written.endswith("}\n\n")
    assert written.count("\n") == 3
    assert "\r" not in written


def test_the_first_piece_says_what_it_is() -> None:
    events = Events(WATCH)
    assert not events.begun
    pieces = [*events.message(progress("x" * 600_000)), *events.end()]
    assert [piece.content_type for piece in pieces] == [MEDIA_TYPE, "", "", ""]
    assert max(len(piece.data) for piece in pieces) <= 256 * 1024
    assert events.begun


@pytest.mark.parametrize(
    ("contract", "beat"),
    [
        (WATCH, agent_service_pb2.WatchRunResponse()),
        (WATCH, agent_service_pb2.WatchRunResponse(sequence=3)),
        (GENERATE, inference_service_pb2.StreamGenerateTextResponse(sequence=3)),
        (EXPORT, audit_query_service_pb2.ExportLogResponse(sequence=3)),
        (TAIL, audit_query_service_pb2.TailEventsResponse(sequence=3)),
    ],
    ids=["empty", "watch", "generate", "export", "tail"],
)
def test_a_heartbeat_is_a_comment(contract: Any, beat: message.Message) -> None:
    assert text_of(Events(contract).message(beat)) == ": heartbeat\n\n"


def test_an_error_says_when_to_come_again() -> None:
    error = RemitError(reasons.ERROR_REASON_OVERLOADED, "full", retry_after_s=2.5)
    written = text_of(Events(WATCH).error(error))
    assert written.startswith('retry: 2500\nevent: error\ndata: {"code": 8, "message": "full"')
    final = text_of(Events(WATCH).error(RemitError(reasons.ERROR_REASON_INTERNAL, "bug")))
    assert final.startswith("event: error\n")


def test_every_stream_that_an_id_resumes_has_the_fields_for_it() -> None:
    resumed = {path for path, c in CONTRACTS.items() if resumes_by_id(c)}
    assert {path.rpartition("/")[2] for path in resumed} == {
        *("StreamRun", "WatchRun", "TailEvents", "WatchApprovals")
    }
    for path, contract in CONTRACTS.items():
        if contract.stream is not None and contract.is_public:
            assert METHODS[path].output_type.fields_by_name[SEQUENCE]
        if path in resumed:
            assert contract.stream is not None
            assert METHODS[path].input_type.fields_by_name[contract.stream.resume]


@pytest.mark.parametrize("metadata", [[], [("last-event-id", "")], [("other", "3")]])
def test_without_an_id_nothing_changes(metadata: Any) -> None:
    for contract, request in (
        (WATCH, agent_service_pb2.WatchRunRequest(after_sequence=4)),
        (EXPORT, audit_query_service_pb2.ExportLogRequest(start_index=4)),
    ):
        before = request.SerializeToString()
        resume(contract, request, metadata)
        assert request.SerializeToString() == before


def test_an_export_is_not_resumed_by_half_of_what_it_takes() -> None:
    request = audit_query_service_pb2.ExportLogRequest()
    with pytest.raises(RemitError) as caught:
        resume(EXPORT, request, [("last-event-id", "4")])
    assert caught.value.violations[0].field == "last-event-id"
