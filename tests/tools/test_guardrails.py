"""Guardrails of tool calls: arguments before anything starts, results before they go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_service_pb2
from remit.guardrails import Direction, Rules
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from remit.tools.arguments import plain_struct
from remit.tools.screening import screening_of
from remit.webhooks import TOOL as WEBHOOK_TOOL
from tests.effects.world import World
from tests.tools.calls import struct
from tests.tools.service_world import ToolsWorld, a_run, token_of

KEY = "AKIAIOSFODNN7EXAMPLE"


def configured(line: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("guardrails", [line])


def lines(runs: Path) -> list[str]:
    return runs.read_text().splitlines() if runs.exists() else []


async def refused(tools: ToolsWorld, tool: str, text: str, token: str = "") -> RemitError:
    with pytest.raises(RemitError) as caught:
        await tools.call(tool, {"text": text}, token=token)
    assert KEY not in str(caught.value.to_status())
    return caught.value


@configured("secrets.output=redact, secrets.input=off")
async def test_a_result_its_names_and_its_files_are_replaced(tools: ToolsWorld) -> None:
    response = await tools.call("tools/leak", {"text": f"key {KEY}"})
    assert plain_struct(response.result) == {
        "texts": ["key [aws_key_id]"],
        "key [aws_key_id]": 1,
    }
    (file,) = response.artifacts
    assert file.content == b"key [aws_key_id]"
    assert file.artifact.size_bytes == len(file.content)
    again = await tools.call("tools/leak", {"text": f"key {KEY}"})
    again.replayed = False
    assert again == response


@configured("secrets.output=refuse")
async def test_a_refused_result_was_an_effect_and_is_paid_for(
    tools: ToolsWorld, world: World, runs: Path
) -> None:
    first = await refused(tools, "tools/leak", KEY)
    from_record = await refused(tools, "tools/leak", KEY)
    for error in (first, from_record):
        assert error.reason == reasons.ERROR_REASON_OUTPUT_REFUSED
        assert (error.metadata["detectors"], error.metadata["kinds"]) == ("secrets", "aws_key_id")
    assert lines(runs) == ["leak"]
    await tools.settled_down()
    assert world.open_holds() == []
    outcomes = [e for e in world.events.values() if e.kind == event_pb2.EVENT_KIND_OUTCOME]
    assert [event.outcome for event in outcomes] == [event_pb2.OUTCOME_FAILED]
    assert first.metadata["cost_nanos"] == "100"


@configured("secrets.input=refuse, personal_data.input=refuse")
async def test_refused_arguments_start_nothing(tools: ToolsWorld, world: World, runs: Path) -> None:
    error = await refused(tools, "tools/leak", f"{KEY} of alice@example.com")
    assert error.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert {v.description for v in error.violations} == {
        "contains an AWS access key id",
        "contains an e-mail address",
    }
    assert (lines(runs), world.events, world.holds) == ([], {}, {})


@configured("secrets.input=redact, secrets.output=off")
async def test_replaced_arguments_are_what_policy_and_the_tool_see(
    tools: ToolsWorld, world: World
) -> None:
    response = await tools.call("tools/leak", {"text": f"key {KEY}"})
    assert plain_struct(response.result)["texts"] == ["key [aws_key_id]"]
    intent = next(iter(world.events.values()))
    assert json.loads(intent.detail_json)["guardrails"] == {"redact secrets.aws_key_id": 1}
    assert KEY not in str(world.questions)
    assert "[aws_key_id]" in str(world.questions)


@configured("secrets.output=redact, secrets.input=off")
async def test_the_words_of_a_failure_are_replaced(tools: ToolsWorld) -> None:
    error = await refused(tools, "tools/fail_with", f"cannot use {KEY}")
    assert error.reason == reasons.ERROR_REASON_TOOL_FAILED
    assert "cannot use [aws_key_id]" in error.message


async def test_by_default_a_secret_is_counted_alone(tools: ToolsWorld, world: World) -> None:
    response = await tools.call("tools/leak", {"text": KEY})
    assert isinstance(response, tool_service_pb2.CallToolResponse)
    assert plain_struct(response.result)["texts"] == [KEY]
    intent = next(iter(world.events.values()))
    assert json.loads(intent.detail_json)["guardrails"] == {"flag secrets.aws_key_id": 1}


def test_what_remit_posts_itself_is_not_screened_again() -> None:
    rules = Rules.of("secrets.input=refuse", "")
    assert screening_of(rules, WEBHOOK_TOOL, Direction.INPUT).is_off
    assert not screening_of(rules, "tools/search", Direction.INPUT).is_off


async def test_policy_chooses_for_one_agents_run_and_not_for_another(tools: ToolsWorld) -> None:
    guarded = token_of(
        run=a_run(), tools=("tools/leak",), guardrails="tools.personal_data.output=redact"
    )
    other = token_of(run=a_run(), tools=("tools/leak",))
    arguments = {"text": "ask alice@example.com"}
    agent = options_pb2.CALLER_AGENT
    response = await tools.call("tools/leak", arguments, token=guarded, caller=agent)
    assert plain_struct(response.result) == {
        "texts": ["ask [email]"],
        "ask [email]": 1,
    }
    assert response.artifacts[0].content == b"ask [email]"
    response = await tools.call("tools/leak", arguments, token=other, caller=agent)
    assert plain_struct(response.result)["texts"] == ["ask alice@example.com"]


@configured("secrets.input=refuse, secrets.output=redact")
async def test_policy_never_loosens_what_settings_say(tools: ToolsWorld, runs: Path) -> None:
    token = token_of(guardrails="secrets.input=flag, secrets.output=flag")
    error = await refused(tools, "tools/leak", KEY, token)
    assert error.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert lines(runs) == []


@configured("secrets.input=off")
async def test_policy_refuses_arguments_and_its_finding_is_in_the_intent_where_it_only_flags(
    tools: ToolsWorld, world: World
) -> None:
    error = await refused(tools, "tools/leak", KEY, token_of(guardrails="secrets.input=refuse"))
    assert error.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert world.events == {}
    token = token_of(guardrails="tools.secrets.input=flag")
    await tools.call("tools/leak", {"text": KEY}, token=token)
    detail = json.loads(next(iter(world.events.values())).detail_json)
    assert detail["guardrails"] == {"flag secrets.aws_key_id": 1}
    assert detail["guardrails_by_policy"] == "secrets:00010"


async def test_what_was_done_before_a_policy_came_is_told_and_not_refused(
    tools: ToolsWorld, runs: Path
) -> None:
    done = await tools.call("tools/leak", {"text": KEY})
    token = token_of(guardrails="secrets.input=refuse")
    again = await tools.call("tools/leak", {"text": KEY}, token=token)
    assert (again.claim, again.result, again.replayed) == (done.claim, done.result, True)
    with pytest.raises(RemitError) as caught:
        await tools.call("tools/leak", {"text": KEY}, token=token, key="key-2")
    assert caught.value.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert lines(runs) == ["leak"]


@configured("secrets.input=refuse")
@pytest.mark.parametrize("number", [math.nan, math.inf])
async def test_what_is_no_json_is_refused_like_anything_else(
    tools: ToolsWorld, number: float
) -> None:
    arguments = struct({"text": KEY})
    arguments.fields["number"].number_value = number
    request = tool_service_pb2.CallToolRequest(
        tool="tools/leak", arguments=arguments, request_id="key-1"
    )
    with remit_token(token_of()), pytest.raises(RemitError) as caught:
        await tools.stub().CallTool(request)
    assert caught.value.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
