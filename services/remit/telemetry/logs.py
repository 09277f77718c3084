"""Log lines: one JSON object each, with the trace and the runs that caused them.

No content: events are named, their fields are names, counts and reasons. The text of an exception
may quote what a user sent, so of one that a call or a run causes the log keeps its types and its
stack; texts of our own errors, which are written for whoever reads them, stay. Where content is
asked for, all texts do.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import structlog

from remit import telemetry
from remit.rpc.errors import RemitError
from remit.telemetry.trace import current, within

Event = MutableMapping[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

WITHHELD: Final = "(text withheld)"
_MAX_CAUSES: Final = 8

log = telemetry.logger(__name__)


@dataclass
class _Asked:
    """What this process was told to log; a process has one log."""

    content: bool = False


_asked: Final = _Asked()


def configure(*, area: str, replica: str, level: str, content: bool) -> None:
    """Sends structlog and the standard library's records to standard error as JSON lines."""
    _asked.content = content
    least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        functools.partial(_add_service, {"service": area, "replica": replica}),
        add_place,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.ExceptionRenderer(Exceptions(content=content)),
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *shared,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_logger_name,
                *shared,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _add_service(names: Mapping[str, str], _logger: object, _name: str, event: Event) -> Event:
    # Of several services in one process each says its own name: see `remit serve all`.
    for key, value in names.items():
        event.setdefault(key, value)
    if "logger_name" in event:
        event["logger"] = event.pop("logger_name")
    return event


def add_place(_logger: object, _name: str, event: Event) -> Event:
    """Trace, span and run ids on every line that a call or a run causes."""
    place = current()
    if place is None:
        return event
    event.setdefault("trace_id", place.trace_id)
    event.setdefault("span_id", place.span_id)
    if len(place.runs) == 1:
        event.setdefault("run", place.runs[0])
    elif place.runs and "run" not in event:
        event["runs"] = list(place.runs)
    return event


def own_text(error: RemitError) -> str:
    """The text of an error, if it is ours: a provider's or a tool's may quote what it was sent.

    Where content is asked for, the text of any.
    """
    return WITHHELD if error.quotes and not _asked.content else error.message


def unhandled(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Says that something failed for which nobody waited; asyncio's own line quotes it.

    The loop learns of it in the context of whoever runs when it is collected, so it is of no trace.
    """
    error = context.get("exception")
    task = context.get("task") or context.get("future")
    facts = {
        "what": _what(str(context.get("message", ""))),
        "task": task.get_name() if isinstance(task, asyncio.Task) else None,
        "error_type": None if error is None else type(error).__name__,
        "exception": None if error is None else _rendered(error),
    }
    with within(None):
        log.error("unhandled", **{key: value for key, value in facts.items() if value})


def _what(message: str) -> str:
    """What asyncio says happened, up to where it shows a callback with its arguments."""
    head, callback, _ = message.partition(" callback")
    return head + callback


def _rendered(error: BaseException) -> str:
    if _asked.content:
        return "".join(traceback.format_exception(error)).rstrip()
    return "\n".join(_without_texts(error)).rstrip()


class Exceptions:
    """Renders an exception: stack and types always, texts where they can hold no content."""

    def __init__(self, *, content: bool) -> None:
        self._content = content

    def __call__(self, exc_info: ExcInfo) -> str:
        """The exception with its causes, the first cause first."""
        if self._content or current() is None:
            return "".join(traceback.format_exception(*exc_info)).rstrip()
        return "\n".join(_without_texts(exc_info[1])).rstrip()


def _without_texts(error: BaseException) -> Iterator[str]:
    for cause in reversed(list(_causes(error))):
        yield "Traceback (most recent call last):"
        yield "".join(traceback.format_tb(cause.__traceback__)).rstrip()
        kind = type(cause)
        text = own_text(cause) if isinstance(cause, RemitError) else WITHHELD
        yield f"{kind.__module__}.{kind.__qualname__}: {text}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_MAX_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
