"""The tools service with a few tools of its own, for the tests of `service.py`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remit.tools.settings import ToolsSettings
from tests.conftest import OpenDatabase
from tests.effects.world import World
from tests.tools.service_world import ToolsWorld, opened

OWN_TOOLS = '''
import asyncio
import os
from pathlib import Path

from remit.tools import File, NothingDoneError, ToolContext, ToolError, ToolResult, tool

RUNS = Path(os.environ["RUNS_FILE"])


def note(line: str) -> None:
    with RUNS.open("a") as file:
        file.write(line + "\\n")


@tool(permission_class="execute")
async def fail_once(context: ToolContext) -> None:
    """Fail."""
    note(context.key)
    raise ToolError("the paper tray is empty")


@tool(permission_class="execute")
async def crash() -> None:
    """Crash with a secret in the message."""
    note("crash")
    raise RuntimeError("password=hunter2")


@tool(permission_class="execute", timeout_s=20)
async def wait_for_ever() -> None:
    """Wait."""
    note("waiting")
    await asyncio.Event().wait()


@tool(permission_class="execute", timeout_s=20)
async def prepare_for_ever() -> None:
    """Prepare."""
    note("preparing")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise NothingDoneError("nothing was done") from None


@tool(permission_class="read", idempotent=True, timeout_s=20)
async def watch_for_ever() -> None:
    """Watch."""
    note("watching")
    await asyncio.Event().wait()


@tool(permission_class="none", idempotent=True)
async def who(context: ToolContext) -> dict[str, str]:
    """Tell the context."""
    from remit.rpc.calls import current_call_or_none

    return {
        "key": context.key,
        "subject": context.subject,
        "org": context.org,
        "run": context.run,
        "call": str(current_call_or_none()),
    }


@tool(permission_class="execute")
async def leak(text: str) -> ToolResult:
    """Return what came, also as a file and as the name of a field."""
    note("leak")
    return ToolResult({"texts": [text], text: 1}, [File("a.txt", "text/plain", text.encode())])


@tool(permission_class="execute")
async def fail_with(text: str) -> None:
    """Fail in these words."""
    raise ToolError(text)


@tool(permission_class="none")
async def too_much() -> str:
    """Return more than a result may hold."""
    return "x" * 300_000
'''


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A file with a line for each time that a tool of OWN_TOOLS ran."""
    return tmp_path / "runs.txt"


@pytest.fixture
def guardrails() -> str:
    """What the service is told to do about what its guardrails find."""
    return ""


@pytest.fixture
async def settings(
    database: OpenDatabase,
    guardrails: str,
    tmp_path: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ToolsSettings:
    (tmp_path / "own_tools.py").write_text(OWN_TOOLS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_tools", raising=False)
    monkeypatch.setenv("RUNS_FILE", str(runs))
    return ToolsSettings(
        dsn=(await database("tools")).dsn,
        workspace=tmp_path / "workspace",
        modules=("own_tools",),
        guardrails=guardrails,
        effect_stop_grace_s=2.0,
    )


@pytest.fixture
async def tools(settings: ToolsSettings, world: World) -> AsyncIterator[ToolsWorld]:
    async with opened(settings, world) as found:
        yield found
