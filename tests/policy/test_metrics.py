"""Decisions are counted by kinds of resources, whatever a caller names."""

from __future__ import annotations

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.metrics import count_decision, count_edge
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained


@pytest.mark.parametrize(
    ("resource", "kind"),
    [("tools/calculator", "tool"), ("models/a", "model"), ("whatever a caller says", "other")],
)
def test_a_decision_is_counted_by_the_kind_of_its_resource(resource: str, kind: str) -> None:
    denied = gained("remit_policy_decisions_total", kind=kind, decision="DENY")
    count_decision(resource, "DENY")
    assert denied() == 1


def test_the_edge_counts_who_comes_in_and_who_does_not() -> None:
    admitted = gained("remit_edge_authorizations_total", result="ADMITTED")
    refused = gained("remit_edge_authorizations_total", result="CREDENTIAL_MISSING")
    count_edge()
    count_edge(RemitError(error_reason_pb2.ERROR_REASON_CREDENTIAL_MISSING, "no key"))
    assert (admitted(), refused()) == (1, 1)
