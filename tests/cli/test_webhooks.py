"""A run's webhook at the command line: asked for, shown, and verified with."""

from __future__ import annotations

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.tools.v1 import tool_service_pb2
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer
from tests.cli.journals import RUN, ended_run

URL = "https://example.com/ended"
KEYS = ["whpk_bmV3", "whpk_b2xk"]


def webhook(state: run_pb2.WebhookState.ValueType, tries: int = 0) -> run_pb2.Webhook:
    return run_pb2.Webhook(url=URL, id="run_ended_1", state=state, tries=tries)


def test_run_asks_for_it(remit: Remit, edge: EdgeServer) -> None:
    run = run_pb2.Run(name=RUN)
    edge.answers["CreateRun"] = lambda _: agent_service_pb2.CreateRunResponse(run=run)
    remit("run", "--detach", "--webhook", URL, "Say hello.")
    remit("run", "--detach", "Say hello.")
    assert [request.webhook for request in edge.requests("CreateRun")] == [URL, ""]


@pytest.mark.parametrize(
    ("state", "tries", "text"),
    [
        (run_pb2.WEBHOOK_STATE_WAITING, 0, "when the run ends"),
        (run_pb2.WEBHOOK_STATE_PENDING, 0, "not yet, after 0 tries; next 2026"),
        (run_pb2.WEBHOOK_STATE_DELIVERED, 1, "after 1 try"),
        (run_pb2.WEBHOOK_STATE_FAILED, 16, "after 16 tries"),
    ],
)
def test_show_says_how_far_it_is(
    remit: Remit,
    edge: EdgeServer,
    state: run_pb2.WebhookState.ValueType,
    tries: int,
    text: str,
) -> None:
    run = ended_run()
    run.webhook.CopyFrom(webhook(state, tries))
    for time in (run.webhook.next_try_time, run.webhook.end_time):
        time.FromJsonString("2026-06-02T03:04:05Z")
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=run)
    out = remit("runs", "show", RUN).out
    assert URL in out
    assert text in out
    assert "not told" not in out
    [document] = remit("runs", "show", RUN, "--json").documents
    assert document["run"]["webhook"]["url"] == URL


def test_show_says_why_it_was_given_up(remit: Remit, edge: EdgeServer) -> None:
    run = ended_run()
    run.webhook.CopyFrom(webhook(run_pb2.WEBHOOK_STATE_FAILED, 1))
    why = RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, "example.com answered 410")
    run.webhook.error.CopyFrom(why.to_status())
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=run)
    assert "example.com answered 410" in remit("runs", "show", RUN).out


def test_a_run_without_one_shows_none(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=ended_run())
    assert "webhook" not in remit("runs", "show", RUN).out


def test_the_keys_that_verify_it(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetWebhookKeys"] = lambda _: tool_service_pb2.GetWebhookKeysResponse(
        public_keys=KEYS
    )
    assert remit("keys", "webhooks").out.split() == KEYS
    [document] = remit("keys", "webhooks", "--json").documents
    assert document["public_keys"] == KEYS
