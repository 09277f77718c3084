"""`post_webhook` through the service: who may call it, and what the receiver gets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit import webhooks
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_service_pb2
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from remit.tools.settings import ToolsSettings
from remit.tools.webhook_keys import make_webhook_key
from tests.conftest import OpenDatabase
from tests.effects.world import World
from tests.tools.receiver import Receiver, answer, receiving
from tests.tools.service_world import BOB, ToolsWorld, a_run, error_of, opened, token_of

EVENT = {"type": "run.ended", "data": {"state": "RUN_STATE_SUCCEEDED"}}
AGENT = options_pb2.CALLER_AGENT


@pytest.fixture
async def tools(database: OpenDatabase, tmp_path: Path) -> AsyncIterator[ToolsWorld]:
    settings = ToolsSettings(
        dsn=(await database("tools")).dsn,
        workspace=tmp_path / "workspace",
        webhook_key_files=(make_webhook_key(tmp_path),),
        webhook_networks="127.0.0.0/8,::1/128",
        webhook_timeout_s=3,
    )
    async with opened(settings, World()) as found:
        yield found


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


async def post(
    tools: ToolsWorld, url: str, *, run: str = "", number: int = 1, **more: Any
) -> tool_service_pb2.CallToolResponse:
    run = run or a_run()
    arguments = {"url": url, "identifier": "run_ended_1", "event": EVENT, **more}
    return await tools.call(
        webhooks.TOOL,
        arguments,
        key=webhooks.call_key(run, number),
        token=token_of(run=run, tools=(webhooks.TOOL,)),
        caller=AGENT,
    )


async def public_keys(tools: ToolsWorld, token: str = "") -> list[str]:
    with remit_token(token or token_of()):
        stub = tools.stub()
        response = await stub.GetWebhookKeys(tool_service_pb2.GetWebhookKeysRequest())
    return list(response.public_keys)


async def test_the_receiver_can_verify_what_it_gets(tools: ToolsWorld, receiver: Receiver) -> None:
    response = await post(tools, receiver.url)
    assert dict(response.result) == {"http_status": 204}
    assert response.claim
    [received] = receiver.received
    assert json.loads(received.body) == EVENT
    assert received.headers["content-type"] == "application/json"
    assert received.identifier == "run_ended_1"
    [public_key] = await public_keys(tools)
    assert received.is_signed_by(public_key)
    assert [public_key] == await public_keys(tools, token_of(BOB))
    assert [public_key] != await public_keys(tools, token_of("orgs/globex/users/eve"))


async def test_the_same_call_posts_once(tools: ToolsWorld, receiver: Receiver) -> None:
    run = a_run()
    await post(tools, receiver.url, run=run)
    assert (await post(tools, receiver.url, run=run)).replayed
    assert len(receiver.received) == 1


async def test_a_failed_try_stays_failed_and_the_next_is_another_call(
    tools: ToolsWorld, receiver: Receiver
) -> None:
    run = a_run()
    receiver.answers = [answer(500)]
    for _ in range(2):
        error = await error_of(lambda: post(tools, receiver.url, run=run))
        assert error.reason == reasons.ERROR_REASON_TOOL_FAILED
        assert error.message == "tools/post_webhook: localhost answered 500"
        assert error.metadata[webhooks.HTTP_STATUS] == "500"
        assert webhooks.FINAL not in error.metadata
    assert len(receiver.received) == 1
    await post(tools, receiver.url, run=run, number=2)
    assert [each.identifier for each in receiver.received] == ["run_ended_1"] * 2


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://10.0.0.1/", "private"),
        ("https://169.254.169.254/", "link-local"),
        ("http://example.com/", "https://"),
        ("no url", "ASCII"),
    ],
)
async def test_an_address_that_may_not_be_reached_is_final(
    tools: ToolsWorld, url: str, fault: str
) -> None:
    error = await error_of(lambda: post(tools, url))
    assert fault in error.message
    assert error.metadata[webhooks.FINAL] == "true"


async def test_gone_is_final(tools: ToolsWorld, receiver: Receiver) -> None:
    receiver.answers = [answer(410)]
    error = await error_of(lambda: post(tools, receiver.url))
    assert error.metadata[webhooks.FINAL] == "true"


async def test_a_message_too_large_is_not_posted(tools: ToolsWorld, receiver: Receiver) -> None:
    error = await error_of(lambda: post(tools, receiver.url, event={"text": "x" * 20_000}))
    assert "the limit is 16384" in error.message
    assert receiver.received == []


async def test_nobody_else_can_call_it(tools: ToolsWorld, receiver: Receiver) -> None:
    """Not a client, not a run without it, and not a run's model: its calls have other keys."""
    run = a_run()
    arguments = {"url": receiver.url, "identifier": "x", "event": EVENT}
    granted = token_of(run=run, tools=(webhooks.TOOL, "tools/clock"))
    for token, key, caller in (
        (token_of(), "k", options_pb2.CALLER_PUBLIC),
        (token_of(), webhooks.call_key(run, 1), options_pb2.CALLER_PUBLIC),
        (token_of(run=run, tools=("tools/clock",)), webhooks.call_key(run, 1), AGENT),
        (granted, f"{run}/steps/1/tools/c0", AGENT),
        (granted, webhooks.call_key(a_run(), 1), AGENT),
    ):
        with pytest.raises(RemitError) as caught:
            await tools.call(webhooks.TOOL, arguments, key=key, token=token, caller=caller)
        assert caught.value.reason == reasons.ERROR_REASON_TOOL_NOT_FOUND
    assert receiver.received == []


async def test_it_is_in_no_list(tools: ToolsWorld) -> None:
    run = a_run()
    for token, caller in (
        (token_of(), options_pb2.CALLER_PUBLIC),
        (token_of(run=run, tools=(webhooks.TOOL, "tools/clock")), AGENT),
    ):
        with remit_token(token):
            listed = await tools.stub(caller).ListTools(tool_service_pb2.ListToolsRequest())
            assert webhooks.TOOL not in [tool.name for tool in listed.tools]
            with pytest.raises(RemitError) as caught:
                await tools.stub(caller).GetTool(
                    tool_service_pb2.GetToolRequest(name=webhooks.TOOL)
                )
            assert caught.value.reason == reasons.ERROR_REASON_TOOL_NOT_FOUND


async def test_a_delivery_key_calls_nothing_else(tools: ToolsWorld) -> None:
    run = a_run()
    token = token_of(run=run, tools=(webhooks.TOOL, "tools/clock"))
    key = webhooks.call_key(run, 1)
    error = await error_of(
        lambda: tools.call("tools/clock", {}, key=key, token=token, caller=AGENT)
    )
    assert error.reason == reasons.ERROR_REASON_PERMISSION_DENIED


async def test_without_a_key_file_it_says_so(database: OpenDatabase, tmp_path: Path) -> None:
    settings = ToolsSettings(dsn=(await database("tools")).dsn, workspace=tmp_path / "workspace")
    async with opened(settings, World()) as tools:
        error = await error_of(lambda: post(tools, "https://example.com/"))
        assert "REMIT_TOOLS_WEBHOOK_KEY_FILES" in error.message
        assert await public_keys(tools) == []
