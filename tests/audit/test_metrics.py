"""What the log is given is counted by kind and result; a checkpoint by what it covers."""

from __future__ import annotations

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.metrics import count_appends, note_checkpoint
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained, value


def test_a_batch_is_counted_by_kind_and_result() -> None:
    intent = event_pb2.Event(kind=event_pb2.EVENT_KIND_INTENT)
    outcome = event_pb2.Event(kind=event_pb2.EVENT_KIND_OUTCOME)
    full = RemitError(error_reason_pb2.ERROR_REASON_OVERLOADED, "full")
    counts = [
        gained("remit_audit_appends_total", kind=kind, result=result)
        for kind, result in (("INTENT", "OK"), ("INTENT", "OVERLOADED"), ("OUTCOME", "OK"))
    ]
    count_appends([intent, intent, intent, outcome], [7, full, 8, 9])
    assert [count() for count in counts] == [2, 1, 1]


def test_a_checkpoint_tells_what_it_covers_and_when() -> None:
    before = value("remit_audit_checkpoint_timestamp_seconds")
    note_checkpoint(42)
    assert value("remit_audit_checkpoint_size") == 42
    assert value("remit_audit_checkpoint_timestamp_seconds") > before
