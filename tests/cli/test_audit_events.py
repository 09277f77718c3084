"""Events become files that other tools read: whole or not there, across broken streams."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import event_files, exit_codes
from remit.cli.event_files import COLUMNS
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")
DENIED = RemitError(error_reason_pb2.ERROR_REASON_PERMISSION_DENIED, "not any more")
SIZE = 7
SECOND = int(datetime(2026, 11, 23, 15, tzinfo=UTC).timestamp())
DETAIL = '{"cost_nanos":9007199254740993,"said":"naïve\\n"}'


def logged(index: int) -> audit_query_service_pb2.LoggedEvent:
    event = event_pb2.Event(
        event_id=f"e-{index}",
        event_time=Timestamp(seconds=SECOND, nanos=123_456_789),
        kind=event_pb2.EVENT_KIND_OUTCOME if index % 2 else event_pb2.EVENT_KIND_INTENT,
        org="orgs/local",
        subject="orgs/local/users/bob",
        action="tools.call",
        resource="tools/calculator",
        run="runs/r",
        claim=f"claims/{index // 2}",
        attempt=1,
        outcome=event_pb2.OUTCOME_SUCCEEDED if index % 2 else event_pb2.OUTCOME_UNSPECIFIED,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        detail_json=DETAIL,
    )
    return audit_query_service_pb2.LoggedEvent(
        leaf_index=2**40 + index, append_time=Timestamp(seconds=SECOND + index), event=event
    )


def breaking(request: Any) -> Any:
    """Breaks off after each second message, of two events each."""
    assert request.until_now
    start = request.after_sequence
    for place in range(start, SIZE, 2):
        events = [logged(index) for index in range(place, min(place + 2, SIZE))]
        sequence = place + len(events)
        yield audit_query_service_pb2.TailEventsResponse(sequence=sequence, events=events)
        if place == start + 2 and sequence < SIZE:
            raise UNAVAILABLE
    yield audit_query_service_pb2.TailEventsResponse(sequence=SIZE)


def expected(index: int) -> dict[str, Any]:
    event = logged(index).event
    texts = ("event_id", "org", "subject", "action", "resource", "run", "claim", "trace_id")
    return {
        "leaf_index": 2**40 + index,
        "append_time": f"2026-11-23T15:00:0{index}Z",
        "event_time": "2026-11-23T15:00:00.123456789Z",
        "kind": "OUTCOME" if index % 2 else "INTENT",
        "attempt": 1,
        "outcome": "SUCCEEDED" if index % 2 else "",
        "detail_json": DETAIL,
        **{name: getattr(event, name) for name in texts},
    }


def test_events_as_json_lines(remit: Remit, edge: EdgeServer, tmp_path: Path) -> None:
    edge.answers["TailEvents"] = breaking
    file = tmp_path / "events.jsonl"
    done = remit("audit", "events", str(file), "--json", "--kind", "outcome", "--subject", "bob")
    size_bytes = file.stat().st_size
    told = {"file": str(file), "format": "jsonl", "events": 7, "log_size": 7}
    assert done.documents == [told | {"size_bytes": size_bytes, "archived_months": []}]
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert lines == [expected(index) for index in range(SIZE)]
    assert {tuple(line) for line in lines} == {COLUMNS}
    asked = edge.requests("TailEvents")
    assert [request.after_sequence for request in asked] == [0, 4]
    assert {request.subject for request in asked} == {"users/bob"}


def test_events_as_parquet(
    remit: Remit, edge: EdgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(event_files, "ROWS_OF_A_GROUP", 3)
    edge.answers["TailEvents"] = breaking
    file = tmp_path / "events.parquet"
    done = remit("audit", "events", str(file), "--format", "parquet")
    assert done.out.startswith("7 events of 7 entries, ")
    table = parquet.read_table(file)
    assert tuple(table.column_names) == COLUMNS
    time = arrow.timestamp("ns", tz="UTC")
    assert [table.schema.field(name).type for name in ("append_time", "event_time")] == [time] * 2
    assert table.schema.field("leaf_index").type == arrow.int64()
    assert table["event_time"].cast(arrow.int64()).to_pylist() == [SECOND * 10**9 + 123_456_789] * 7
    assert table["append_time"].cast(arrow.int64())[6].as_py() == (SECOND + 6) * 10**9
    times = ("append_time", "event_time")
    rows = table.drop_columns([*times]).to_pylist()
    wanted = [{k: v for k, v in expected(i).items() if k not in times} for i in range(SIZE)]
    assert rows == wanted
    metadata = parquet.ParquetFile(file).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 1]
    kinds = metadata.row_group(0).column(COLUMNS.index("kind"))
    assert any("DICTIONARY" in encoding for encoding in kinds.encodings)


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_no_events_are_a_file_too(
    remit: Remit, edge: EdgeServer, tmp_path: Path, file_format: str
) -> None:
    pytest.importorskip("pyarrow")
    edge.answers["TailEvents"] = lambda _: iter(
        [audit_query_service_pb2.TailEventsResponse(sequence=3)]
    )
    file = tmp_path / "none"
    done = remit("audit", "events", str(file), "--format", file_format)
    assert done.out.startswith("0 events of 3 entries")
    if file_format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        assert tuple(parquet.read_table(file).column_names) == COLUMNS


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_a_refusal_leaves_no_file(
    remit: Remit, edge: EdgeServer, tmp_path: Path, file_format: str
) -> None:
    pytest.importorskip("pyarrow")

    def refused(request: Any) -> Any:
        yield next(iter(breaking(request)))
        raise DENIED

    edge.answers["TailEvents"] = refused
    file = tmp_path / "out" / "events"
    file.parent.mkdir()
    done = remit("audit", "events", str(file), "--format", file_format)
    assert done.code == exit_codes.NOT_ALLOWED
    assert list(file.parent.iterdir()) == []


def test_a_file_that_exists_is_kept(remit: Remit, edge: EdgeServer, tmp_path: Path) -> None:
    edge.answers["TailEvents"] = breaking
    file = tmp_path / "events.jsonl"
    file.write_text("mine", encoding="ascii")
    assert "--force" in remit("audit", "events", str(file)).err
    assert file.read_text("ascii") == "mine"
    assert remit("audit", "events", str(file), "--force").code == 0
    assert len(file.read_text("utf-8").splitlines()) == SIZE


def test_a_file_that_cannot_be_written(remit: Remit, edge: EdgeServer, tmp_path: Path) -> None:
    edge.answers["TailEvents"] = breaking
    done = remit("audit", "events", str(tmp_path / "missing" / "events"))
    assert "cannot be written" in done.err


def test_without_pyarrow_the_extra_is_named(
    remit: Remit, edge: EdgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.answers["TailEvents"] = breaking
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = remit("audit", "events", str(tmp_path / "events"), "--format", "parquet")
    assert "remit[parquet]" in done.err
    assert edge.requests("TailEvents") == [], "nothing was read for nothing"
    assert not list(tmp_path.glob("events*"))
