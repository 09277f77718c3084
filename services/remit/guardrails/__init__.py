"""Guardrails: what texts must not hold on their way in or out, and what happens if they do.

Detectors find markup that a browser would run, secrets and personal data. Rules say for each
detector and direction whether what is found is left alone, counted, replaced or refused: the
settings of a service, and what policy wants on top of them, which a remit carries. All of it is
bounded: each pattern reads a window of fixed length, so that a text that comes in pieces is
screened while it comes, and gives the same as the whole. Which texts are screened is for the
services to say, which know theirs; `docs/GUARDRAILS.md`.
"""

from remit.guardrails.builtin import BUILT_IN
from remit.guardrails.detector import Detector, Finding, Pattern, Tail
from remit.guardrails.rules import Direction, Mode, Rules, parse_rules
from remit.guardrails.screening import Names, Screening, find
from remit.guardrails.stream import StreamFilter
from remit.guardrails.tightening import ServiceRules, wanted_of
from remit.guardrails.wanted import AGENT, INFERENCE, TOOLS, Wanted, parse_wanted

__all__ = [
    "AGENT",
    "BUILT_IN",
    "INFERENCE",
    "TOOLS",
    "Detector",
    "Direction",
    "Finding",
    "Mode",
    "Names",
    "Pattern",
    "Rules",
    "Screening",
    "ServiceRules",
    "StreamFilter",
    "Tail",
    "Wanted",
    "find",
    "parse_rules",
    "parse_wanted",
    "wanted_of",
]
