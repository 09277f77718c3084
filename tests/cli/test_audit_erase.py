"""A subject is erased when a person says yes, or a script has said so already."""

from __future__ import annotations

import io

import pytest

from remit.api.audit.v1 import privacy_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

ALICE = "orgs/local/users/alice"


@pytest.fixture(autouse=True)
def _answers(edge: EdgeServer) -> None:
    erasure = privacy_service_pb2.Erasure(resource="orgs/local/users/~p/keys/00", leaf_index=7)
    erasure.forget_time.FromSeconds(60)
    edge.answers["EraseSubject"] = lambda _: privacy_service_pb2.EraseSubjectResponse(
        erasure=erasure
    )


@pytest.mark.parametrize(("said", "code", "asked"), [("y\n", 0, 1), ("n\n", 130, 0), ("", 130, 0)])
def test_a_person_is_asked(
    remit: Remit,
    edge: EdgeServer,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    code: int,
    asked: int,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    outcome = remit("audit", "erase", ALICE)
    assert outcome.code == code
    assert f"Erase {ALICE}? It cannot be undone." in outcome.err
    assert len(edge.requests("EraseSubject")) == asked


def test_a_script_is_not_asked_and_names_its_request(remit: Remit, edge: EdgeServer) -> None:
    outcome = remit("audit", "erase", ALICE, "--yes", "--request-id", "ticket-4711")
    assert outcome.out.splitlines() == [
        f"{ALICE} is erased; leaf 7 of the log tells of it",
        "every replica forgets the key by 1970-01-01 00:01:00",
    ]
    [request] = edge.requests("EraseSubject")
    assert (request.subject, request.request_id) == (ALICE, "ticket-4711")
    [document] = remit("audit", "erase", ALICE, "--yes", "--json").documents
    assert document["erasure"]["leaf_index"] == 7
    assert edge.requests("EraseSubject")[-1].request_id


def test_an_unknown_subject_is_told(remit: Remit, edge: EdgeServer) -> None:
    def unknown(_: object) -> None:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND, f"{ALICE} has no key: ..."
        )

    edge.answers["EraseSubject"] = unknown
    outcome = remit("audit", "erase", ALICE, "--yes")
    assert outcome.code == 5
    assert "has no key" in outcome.err
