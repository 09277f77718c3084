"""Calling a tool in a test as the service does: Struct in, validation, execution, Struct out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from remit import telemetry
from remit.rpc.errors import RemitError
from remit.tools.arguments import plain_struct, validate
from remit.tools.context import ToolContext
from remit.tools.definition import ToolDefinition, define
from remit.tools.execution import Execution, ExecutionLimits
from remit.tools.results import Outcome, ResultLimits

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
LIMITS = ResultLimits(max_result_bytes=262_144, max_artifacts=3, max_artifact_bytes=1_048_576)
ROOM = ExecutionLimits(max_running=16, max_blocking=4)


class NoonClock:
    """Wall-clock time stands at noon; monotonic time is real, for deadlines are."""

    def now(self) -> datetime:
        return NOON

    def monotonic(self) -> float:
        return time.monotonic()


def struct(arguments: Mapping[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(dict(arguments), struct_pb2.Struct())


def context_of(workspace: Path, *, limit_s: float = 10.0, key: str = "key-1") -> ToolContext:
    clock = NoonClock()
    return ToolContext(
        key=key,
        tool="tools/test",
        clock=clock,
        deadline=clock.monotonic() + limit_s,
        workspace_path=workspace,
        org="orgs/acme",
        subject="orgs/acme/users/alice",
        run="",
        logger=telemetry.logger("test"),
    )


class Caller:
    """Calls one tool."""

    def __init__(self, function: Callable[..., object], workspace: Path) -> None:
        self.definition: ToolDefinition = define(function)
        self.execution = Execution(ROOM, LIMITS)
        self.workspace = workspace

    async def outcome(
        self, arguments: Mapping[str, Any], context: ToolContext | None = None
    ) -> Outcome:
        validated = validate(self.definition, struct(arguments))
        return await self.execution.run(
            self.definition,
            self.definition.keywords(validated),
            context or context_of(self.workspace),
        )

    async def __call__(self, **arguments: Any) -> dict[str, Any]:
        return plain_struct((await self.outcome(arguments)).result)

    async def error(self, **arguments: Any) -> RemitError:
        """The error of a call that must fail."""
        with pytest.raises(RemitError) as caught:
            await self.outcome(arguments)
        return caught.value
