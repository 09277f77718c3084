"""Tools to offer in tests: the schemas that the tools service ships, under any names."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from remit.api.inference.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    ToolCall,
    ToolDefinition,
)
from remit.tools.builtin import shipped_tools
from remit.tools.definition import define
from remit.tools.settings import ToolsSettings


@functools.cache
def shipped() -> tuple[ToolDefinition, ...]:
    """Every tool as the tools service offers it."""
    definitions = [define(function) for function in shipped_tools(ToolsSettings())]
    return tuple(
        ToolDefinition(
            name=f"tools/{tool.name}",
            description=tool.description,
            input_schema_json=tool.input_schema_json,
        )
        for tool in definitions
    )


def renamed(tools: Sequence[ToolDefinition], new_names: Sequence[str]) -> list[ToolDefinition]:
    """The same tools under other names."""
    return [
        ToolDefinition(
            name=f"tools/{name}",
            description=tool.description,
            input_schema_json=tool.input_schema_json,
        )
        for tool, name in zip(tools, new_names, strict=True)
    ]


def a_tool(
    name: str, description: str, required: Sequence[str], **properties: Any
) -> ToolDefinition:
    """A tool with these properties; a property is its description or its whole schema."""
    schema = {
        "type": "object",
        "properties": {
            key: {"type": "string", "description": value} if isinstance(value, str) else value
            for key, value in properties.items()
        },
        "required": list(required),
    }
    return ToolDefinition(
        name=f"tools/{name}", description=description, input_schema_json=json.dumps(schema)
    )


def asked(text: str) -> list[Message]:
    """A conversation that begins with a question."""
    return [Message(role=ROLE_USER, text=text)]


def answered(
    messages: Sequence[Message], calls: Sequence[ToolCall], *results: object, failed: bool = False
) -> list[Message]:
    """The conversation with calls and what the tools answered, as the agent service writes it."""
    return [
        *messages,
        Message(role=ROLE_ASSISTANT, tool_calls=calls),
        *(
            Message(
                role=ROLE_TOOL,
                tool_call_id=call.id,
                text=result if isinstance(result, str) else json.dumps(result, sort_keys=True),
                tool_error=failed,
            )
            for call, result in zip(calls, results, strict=True)
        ),
    ]
