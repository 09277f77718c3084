"""What users, models and tools wrote, as attributes of spans: only where a setting asks for it.

The form is that of the OpenTelemetry conventions for generative AI: JSON text, of which a setting
bounds the length. What is longer is cut, and says so by its last character.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from remit.telemetry.spans import Span, current_tracer

CUT: Final = "…"


def capture(span: Span, name: str, content: Callable[[], object]) -> None:
    """Puts content on a recorded span, if this service captures any; else it is not even made."""
    tracer = current_tracer()
    if span.place is None or tracer is None or not tracer.content_chars:
        return
    text = json.dumps(content(), ensure_ascii=False, separators=(",", ":"))
    limit = tracer.content_chars
    span.set(name, text if len(text) <= limit else text[: limit - 1] + CUT)
