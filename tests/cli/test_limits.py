"""`remit limits` asks what it should, and tells what it got."""

from __future__ import annotations

import json

from google.protobuf import duration_pb2, timestamp_pb2

from remit.api.policy.v1 import rate_limit_service_pb2 as messages
from remit.cli import exit_codes
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

BATCH = "orgs/local/users/batch"


def limit(max_runs: int = 1000, window_s: int = 60) -> messages.RateLimit:
    return messages.RateLimit(
        principal=BATCH,
        max_runs=max_runs,
        window=duration_pb2.Duration(seconds=window_s) if max_runs else None,
        update_time=timestamp_pb2.Timestamp(seconds=1_795_446_000),
    )


def test_set(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["SetRateLimit"] = lambda _: messages.SetRateLimitResponse(rate_limit=limit())
    head, row = remit("limits", "set", BATCH, "1000", "--window", "30").out.splitlines()
    assert head.split()[:4] == ["FOR", "RUNS", "IN", "ANY"]
    assert row.split()[:4] == [BATCH, "1000", "60", "s"]
    (asked,) = edge.requests("SetRateLimit")
    assert (asked.principal, asked.max_runs, asked.window.seconds) == (BATCH, 1000, 30)
    assert asked.request_id


def test_set_none(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["SetRateLimit"] = lambda _: messages.SetRateLimitResponse(rate_limit=limit(0))
    assert "no limit" in remit("limits", "set", BATCH, "none").out
    assert edge.requests("SetRateLimit")[0].max_runs == 0


def test_set_needs_a_number(remit: Remit) -> None:
    for wrong in ("0", "-1", "10001", "many"):
        assert remit("limits", "set", "--", BATCH, wrong).code == exit_codes.USAGE


def test_list(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListRateLimits"] = lambda _: messages.ListRateLimitsResponse(
        rate_limits=[limit(), limit(0)]
    )
    _, some, none = remit("limits", "list").out.splitlines()
    assert some.split()[1:4] == ["1000", "60", "s"]
    assert none.split()[1:3] == ["no", "limit"]
    told = json.loads(remit("limit", "list", "--json").out)
    assert [one["max_runs"] for one in told["rate_limits"]] == [1000, 0]


def test_delete(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["DeleteRateLimit"] = lambda _: messages.DeleteRateLimitResponse(rate_limit=limit())
    out = remit("limits", "delete", BATCH).out
    assert out.startswith(f"the limit of {BATCH} is deleted")
    assert edge.requests("DeleteRateLimit")[0].principal == BATCH
