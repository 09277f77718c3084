"""What a command cannot show, because its month left the database, it names."""

from __future__ import annotations

from pathlib import Path

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

AUGUST = event_pb2.ArchivedMonth(month="2026-08", first_index=0, last_index=1499, events=1500)
JULY = event_pb2.ArchivedMonth(month="2026-07", first_index=0, last_index=4, events=5)
LINE = "2026-08 was archived: leaves 0 to 1,499 are in the tiles, and not here"
TOLD = {"month": "2026-08", "first_index": 0, "last_index": 1499, "events": 1500}


def test_a_list_names_each_month_once(remit: Remit, edge: EdgeServer) -> None:
    pages = [
        audit_query_service_pb2.ListEventsResponse(next_page_token="2", archived_months=[AUGUST]),
        audit_query_service_pb2.ListEventsResponse(archived_months=[JULY, AUGUST]),
    ] * 2
    edge.answers["ListEvents"] = lambda _: pages.pop(0)
    [document] = remit("audit", "list", "--json").documents
    assert document["events"] == []
    assert [month["month"] for month in document["archived_months"]] == ["2026-08", "2026-07"]
    assert document["archived_months"][0] == TOLD
    out = remit("audit", "list").out.splitlines()
    assert out[:2] == ["no events", LINE]
    assert len(out) == 3


def test_a_tail_and_a_file_name_it(remit: Remit, edge: EdgeServer, tmp_path: Path) -> None:
    edge.answers["TailEvents"] = lambda _: iter(
        [audit_query_service_pb2.TailEventsResponse(sequence=9, archived_months=[AUGUST])]
    )
    file = tmp_path / "events.jsonl"
    [document] = remit("audit", "events", str(file), "--json").documents
    assert (document["events"], document["archived_months"]) == (0, [TOLD])
    assert LINE in remit("audit", "events", str(file), "--force").out
