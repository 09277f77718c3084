"""The tools service: every tool call of the mesh is made here, through the effect gate.

It owns the registry of tools, their execution and the workspaces they write to. It must never call
a tool that the gate has not let through, answer a call twice with two results, or show a tool's
traceback to anybody.

A tool of one's own needs the names of this package; `docs/TOOLS.md` shows them at work.
"""

from remit.tools.context import NothingDoneError, ToolContext, ToolError
from remit.tools.definition import tool
from remit.tools.results import File, ToolResult

__all__ = ["File", "NothingDoneError", "ToolContext", "ToolError", "ToolResult", "tool"]
