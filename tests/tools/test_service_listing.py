"""ListTools and GetTool: what a remit offers."""

from __future__ import annotations

import json

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_pb2, tool_service_pb2
from remit.rpc.calls import remit_token
from tests.tools.service_world import ToolsWorld, a_run, error_of, token_of


async def listed(
    tools: ToolsWorld,
    token: str,
    caller: options_pb2.Caller.ValueType = options_pb2.CALLER_PUBLIC,
    page_size: int = 0,
) -> list[list[str]]:
    pages = []
    page_token = ""
    while True:
        request = tool_service_pb2.ListToolsRequest(page_size=page_size, page_token=page_token)
        with remit_token(token):
            response = await tools.stub(caller).ListTools(request)
        pages.append([tool.name for tool in response.tools])
        page_token = response.next_page_token
        if not page_token:
            return pages


async def test_tools_are_listed_by_name_in_pages(tools: ToolsWorld) -> None:
    (everything,) = await listed(tools, token_of())
    assert len(everything) == 15
    assert everything == sorted(everything)
    pages = await listed(tools, token_of(), page_size=6)
    assert [len(page) for page in pages] == [6, 6, 3]
    assert [name for page in pages for name in page] == everything


async def test_a_run_sees_the_tools_of_its_remit_alone(tools: ToolsWorld) -> None:
    token = token_of(run=a_run(), tools=("tools/clock", "tools/gone", "tools/search"))
    pages = await listed(tools, token, options_pb2.CALLER_AGENT)
    assert pages == [["tools/clock", "tools/search"]]


@pytest.mark.parametrize(
    ("page_size", "page_token", "field"),
    [(-1, "", "page_size"), (0, "???", "page_token"), (0, "/w==", "page_token")],
)
async def test_a_wrong_page_is_refused(
    tools: ToolsWorld, page_size: int, page_token: str, field: str
) -> None:
    request = tool_service_pb2.ListToolsRequest(page_size=page_size, page_token=page_token)
    with remit_token(token_of()):
        error = await error_of(lambda: tools.stub().ListTools(request))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
    assert [violation.field for violation in error.violations] == [field]


async def got(tools: ToolsWorld, name: str, token: str) -> tool_pb2.Tool:
    with remit_token(token):
        caller = options_pb2.CALLER_PUBLIC
        request = tool_service_pb2.GetToolRequest(name=name)
        return (await tools.stub(caller).GetTool(request)).tool


async def test_a_tool_is_shown_with_its_schema(tools: ToolsWorld) -> None:
    tool = await got(tools, "tools/calculator", token_of())
    assert json.loads(tool.input_schema_json)["required"] == ["expression"]
    assert len(tool.definition_digest) == 32
    assert tool.description.startswith("Evaluate an arithmetic expression")


async def test_an_unknown_tool_is_not_found(tools: ToolsWorld) -> None:
    error = await error_of(lambda: got(tools, "tools/calculater", token_of()))
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_NOT_FOUND
    assert "did you mean tools/calculator?" in error.message
