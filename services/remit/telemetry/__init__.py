"""What a service tells of itself while it works: log lines and spans that name the same trace.

Logs are one JSON object a line on standard error (`logs`). Spans leave by OTLP where a collector is
named (`export`), under the names of one table (`table`). Metrics stand beside what they measure.
What every command imports is light: libraries are loaded by the process that needs them.
"""

from __future__ import annotations

from typing import Any

from remit.telemetry.spans import (
    Span,
    annotate,
    call_failed,
    name_runs,
    served,
    span,
    work_failed,
)
from remit.telemetry.trace import Trace, current, enter, fresh, parse, resumed, within

__all__ = [
    "Span",
    "Trace",
    "annotate",
    "call_failed",
    "configure_logging",
    "current",
    "enter",
    "fresh",
    "logger",
    "name_runs",
    "name_service",
    "parse",
    "resumed",
    "served",
    "span",
    "watch_loop",
    "within",
    "work_failed",
]


def configure_logging(*, area: str, replica: str, level: str, content: bool = False) -> None:
    """Sends structlog and the standard library's records to standard error as JSON lines.

    `content` lets the messages of exceptions that a call causes into the log.
    """
    from remit.telemetry.logs import configure  # noqa: PLC0415 - structlog takes long to import

    configure(area=area, replica=replica, level=level, content=content)


def watch_loop() -> None:
    """Logs what fails in the running event loop and nobody waits for, without its words."""
    import asyncio  # noqa: PLC0415 - see above

    from remit.telemetry.logs import unhandled  # noqa: PLC0415 - see above

    asyncio.get_running_loop().set_exception_handler(unhandled)


def name_service(area: str) -> None:
    """Names the service of the current task and all that it begins, in its log lines."""
    import structlog  # noqa: PLC0415 - see above

    structlog.contextvars.bind_contextvars(service=area)


def logger(name: str) -> Any:  # noqa: ANN401 - structlog's loggers are duck-typed
    """A structured logger; `name` is the module's."""
    import structlog  # noqa: PLC0415 - see above

    return structlog.get_logger(logger_name=name)
