"""Guardrails of tool calls: the arguments before anything is asked for, the result before it goes.

The tool that tells the ends of runs is Remit's own: what it posts was screened where it came from.
"""

from __future__ import annotations

import hashlib
from typing import Final

from remit import webhooks
from remit.api.tools.v1 import tool_service_pb2
from remit.guardrails import Direction, Rules, Screening
from remit.tools.results import Outcome

SHIPPED_GUARDRAILS: Final = "secrets.input=flag, secrets.output=flag"


def screening_of(rules: Rules, tool: str, direction: Direction) -> Screening:
    """A screening of one call of a tool, by its full name."""
    return Screening(rules if tool != webhooks.TOOL else Rules(), direction)


def screened_call(
    request: tool_service_pb2.CallToolRequest, screening: Screening
) -> tool_service_pb2.CallToolRequest:
    """The call with its arguments as the tool may see them; `refusal` says if it may not."""
    if screening.is_off:
        return request
    screened = tool_service_pb2.CallToolRequest()
    screened.CopyFrom(request)
    screened.arguments.CopyFrom(screening.struct("arguments", request.arguments))
    screening.count(request.tool)
    return screened


def screened_outcome(outcome: Outcome, screening: Screening) -> Outcome:
    """A result with its files as they may go on. Raises OUTPUT_REFUSED.

    Of files those are looked at that are text, in UTF-8.
    """
    if screening.is_off:
        return outcome
    result = screening.struct("result", outcome.result)
    files = tuple(
        _screened_file(file, screening, f"artifacts[{index}]")
        for index, file in enumerate(outcome.artifacts)
    )
    refusal = screening.refusal()
    if refusal is not None:
        raise refusal
    return Outcome(result, files)


def _screened_file(
    file: tool_service_pb2.ArtifactContent, screening: Screening, field: str
) -> tool_service_pb2.ArtifactContent:
    name = screening.text(f"{field}.name", file.artifact.name)
    content = _screened_content(file.content, screening, f"{field}.content")
    if (name, content) == (file.artifact.name, file.content):
        return file
    screened = tool_service_pb2.ArtifactContent(artifact=file.artifact, content=content)
    screened.artifact.name = name
    screened.artifact.digest = hashlib.sha256(content).digest()
    screened.artifact.size_bytes = len(content)
    return screened


def _screened_content(content: bytes, screening: Screening, field: str) -> bytes:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    return screening.text(field, text).encode()
