"""Logs, metrics and traces, set up once per process.

Logs are one JSON object a line on standard error. Metrics go to the default Prometheus registry,
which the plain HTTP port serves. Tracing is off until it is asked for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from remit.rpc.calls import current_call_or_none


def configure_logging(*, area: str, replica: str, level: str) -> None:
    """Sends structlog and the standard library's records to standard error as JSON lines."""
    least = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_call,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=area, replica=replica)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def configure_tracing(*, area: str, replica: str) -> None:
    """Writes each finished span to standard error, as one JSON object a line.

    A collector reads them from the log. The OTLP exporter is no dependency: its messages and those
    of xds-protos install the same files, and which of them stay is chance.
    """
    # A third of a second to import, and only where tracing is on.
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        ConsoleSpanExporter,
    )

    resource = Resource.create(
        {"service.name": f"remit-{area}", "service.instance.id": f"{area}-{replica}"}
    )
    provider = TracerProvider(resource=resource)
    exporter = ConsoleSpanExporter(
        out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n"
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def logger(name: str) -> Any:  # noqa: ANN401 - structlog's loggers are duck-typed
    """A structured logger; `name` is the module's."""
    return structlog.get_logger(module=name)


def _add_call(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Trace and run ids on every line that a call causes."""
    call = current_call_or_none()
    if call is not None:
        event.setdefault("trace_id", call.trace_id)
        if call.remit is not None and call.remit.run:
            event.setdefault("run", call.remit.run)
    return event
