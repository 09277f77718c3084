"""The tools that every installation has, one file each.

A tool that needs settings is made by a function that takes them; a tool may import nothing of
the service around it but `definition`, `context` and the cores beside it.
"""

from __future__ import annotations

from collections.abc import Callable

from remit.tools.builtin.calculator import calculator
from remit.tools.builtin.clock import clock
from remit.tools.builtin.read_file import read_file_tool
from remit.tools.builtin.search import search_tool
from remit.tools.builtin.send_email import send_email_tool
from remit.tools.builtin.write_file import write_file_tool
from remit.tools.settings import ToolsSettings


def shipped_tools(settings: ToolsSettings) -> tuple[Callable[..., object], ...]:
    """Those that agents may be given, set up as the settings say; Remit's own is not among them."""
    return (
        calculator,
        clock,
        read_file_tool(settings),
        search_tool(settings),
        send_email_tool(settings),
        write_file_tool(settings),
    )
