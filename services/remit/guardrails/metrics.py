"""What operators watch of guardrails: what was found, never what it was."""

from __future__ import annotations

import functools
from typing import Final

from prometheus_client import Counter

FINDINGS: Final = Counter(
    "remit_guardrail_findings_total",
    "What guardrails found in texts, by detector, direction (`input`, `output`) and mode (`flag`,"
    " `redact`, `refuse`).",
    ["detector", "direction", "mode"],
)


@functools.cache
def findings(detector: str, direction: str, mode: str) -> Counter:
    """The series of one detector; detectors are few."""
    return FINDINGS.labels(detector, direction, mode)
