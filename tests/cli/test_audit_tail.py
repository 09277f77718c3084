"""The log is followed across broken streams, each event once."""

from __future__ import annotations

from typing import Any

import pytest

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import audit_tail, exit_codes
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")
DENIED = RemitError(error_reason_pb2.ERROR_REASON_PERMISSION_DENIED, "not any more")


def message(sequence: int, *indices: int) -> audit_query_service_pb2.TailEventsResponse:
    response = audit_query_service_pb2.TailEventsResponse(sequence=sequence)
    for index in indices:
        event = event_pb2.Event(
            kind=event_pb2.EVENT_KIND_ADMIN,
            outcome=event_pb2.OUTCOME_SUCCEEDED,
            action="keys.make",
            resource="orgs/local",
            subject="orgs/local/users/bob",
        )
        response.events.add(leaf_index=index, event=event)
    return response


def breaking(request: Any) -> Any:
    """Breaks twice, then refuses."""
    if request.new_only:
        yield message(4)
        yield message(6, 5)
        raise UNAVAILABLE
    if request.after_sequence == 6:
        yield message(9, 6, 8)
        return
    raise DENIED


def test_a_tail_goes_on_behind_what_it_saw(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["TailEvents"] = breaking
    done = remit("audit", "tail", "--json", "--kind", "admin", "--subject", "bob")
    assert [d["leaf_index"] for d in done.documents if "leaf_index" in d] == [5, 6, 8]
    asked = edge.requests("TailEvents")
    assert [(r.new_only, r.after_sequence) for r in asked] == [(True, 0), (False, 6), (False, 9)]
    assert {(r.kind, r.subject) for r in asked} == {(event_pb2.EVENT_KIND_ADMIN, "users/bob")}
    assert done.err.count("resuming") == 2
    assert done.code == exit_codes.NOT_ALLOWED


def test_a_line_a_event(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["TailEvents"] = breaking
    line = " ".join(remit("audit", "tail").out.splitlines()[0].split())
    assert line == "5 - admin succeeded keys.make orgs/local orgs/local/users/bob"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (True, 0)),
        (["--after", "0"], (False, 0)),
        (["--after", "7"], (False, 7)),
        (["--since", "1h"], (False, 0)),
    ],
)
def test_where_a_tail_begins(
    remit: Remit, edge: EdgeServer, options: list[str], expected: tuple[bool, int]
) -> None:
    def refused(_: Any) -> Any:
        raise DENIED
        yield

    edge.answers["TailEvents"] = refused
    remit("audit", "tail", *options)
    [request] = edge.requests("TailEvents")
    assert (request.new_only, request.after_sequence) == expected


def test_a_mesh_that_stays_away_is_given_up(
    remit: Remit, edge: EdgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Any) -> Any:
        yield message(4)
        raise UNAVAILABLE

    monkeypatch.setattr(audit_tail, "MOST_AWAY_S", 0.0)
    edge.answers["TailEvents"] = away
    done = remit("audit", "tail")
    assert len(edge.requests("TailEvents")) == 1
    assert "reset" in done.err
