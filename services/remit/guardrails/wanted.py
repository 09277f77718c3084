"""What policy wants on top of the settings: read from an annotation, carried in a remit.

It only tightens. Of all that is wanted for a place, by policies and by the settings of the service,
the strictest counts; so an order in which they are taken together does not matter, and nothing that
is added takes anything away. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from remit.guardrails.builtin import BUILT_IN
from remit.guardrails.rules import Direction, Mode, Rules, fault_of

AGENT: Final = "agent"
INFERENCE: Final = "inference"
TOOLS: Final = "tools"
SERVICES: Final = (AGENT, INFERENCE, TOOLS)
MAX_TEXT_CHARS: Final = 4_096
"""More than every place needs."""
_FORM: Final = '"tools.personal_data.output=redact, secrets.input=refuse"'
_PLACES: Final = (
    (AGENT, Direction.INPUT),
    (INFERENCE, Direction.INPUT),
    (INFERENCE, Direction.OUTPUT),
    (TOOLS, Direction.INPUT),
    (TOOLS, Direction.OUTPUT),
)
"""Where texts are screened; a claim has a digit for each, in this order."""
_CLAIMED: Final = re.compile(rf"([a-z_]{{1,40}}):([0-3]{{{len(_PLACES)}}})")

Spot = tuple[str, str, Direction]
"""A service, a detector and a direction."""


@dataclass(frozen=True)
class Wanted:
    """The least strict mode that is allowed of each spot; what is not named is left to settings."""

    modes: Mapping[Spot, Mode] = field(default_factory=dict)

    @classmethod
    def of(cls, several: Iterable[Wanted]) -> Wanted:
        """All of them together: of each spot the strictest."""
        modes: dict[Spot, Mode] = {}
        for wanted in several:
            for spot, mode in wanted.modes.items():
                modes[spot] = Mode.strictest(mode, modes.get(spot, Mode.OFF))
        return cls(modes)

    @classmethod
    def from_claim(cls, text: str) -> Wanted:
        """What a remit says. Raises ValueError for what `claim` does not write."""
        modes: dict[Spot, Mode] = {}
        for part in text.split():
            match = _CLAIMED.fullmatch(part)
            if match is None or match[1] not in BUILT_IN:
                message = f"guardrails that are not understood: {part[:80]!r}"
                raise ValueError(message)
            for (service, direction), digit in zip(_PLACES, match[2], strict=True):
                if digit != "0":
                    modes[service, match[1], direction] = tuple(Mode)[int(digit)]
        found = cls(modes)
        if found.claim != text:
            message = "guardrails that are not in their one form"
            raise ValueError(message)
        return found

    @property
    def claim(self) -> str:
        """As a remit says it: `personal_data:00002`; a few dozen characters for each detector.

        Digits are modes from `off` to `refuse`, one for each place.
        """
        return " ".join(
            f"{name}:{digits}" for name in BUILT_IN if (digits := self._digits(name)).strip("0")
        )

    def rules(self, service: str) -> Rules:
        """What is wanted of one service."""
        return Rules(
            {
                (detector, direction): mode
                for (where, detector, direction), mode in self.modes.items()
                if where == service
            }
        )

    def __hash__(self) -> int:
        """As two are equal."""
        return hash(self.claim)

    def __str__(self) -> str:
        """As an annotation says it, sorted; `nothing` for nothing."""
        return (
            ", ".join(
                f"{service}.{detector}.{direction}={mode}"
                for (service, detector, direction), mode in sorted(self.modes.items())
            )
            or "nothing"
        )

    def _digits(self, detector: str) -> str:
        modes = (
            self.modes.get((service, detector, direction), Mode.OFF)
            for service, direction in _PLACES
        )
        return "".join(str(mode.strictness) for mode in modes)


def parse_wanted(text: str) -> Wanted:
    """Reads `tools.personal_data.output=redact, secrets.input=refuse`.

    Without a service a part is of all three. Raises ValueError that names every part that is wrong,
    and what it might be.
    """
    if len(text) > MAX_TEXT_CHARS:
        message = f"has {len(text)} characters; {MAX_TEXT_CHARS} are the most"
        raise ValueError(message)
    parts = [part for part in map(str.strip, text.split(",")) if part]
    faults: list[str] = []
    found: list[Wanted] = []
    said: set[str] = set()
    for part in parts:
        place, is_set, mode = (piece.strip() for piece in part.partition("="))
        fault = _fault(place, is_set, mode) or (f"{place} is said twice" if place in said else "")
        said.add(place)
        if fault:
            faults.append(f"`{part[:80]}`: {fault}")
        else:
            found.append(Wanted({spot: Mode(mode) for spot in _spots(place)}))
    if not parts:
        faults.append(f"says nothing; it is written {_FORM}")
    if faults:
        raise ValueError("; ".join(faults))
    return Wanted.of(found)


def _fault(place: str, is_set: str, mode: str) -> str:
    service, detector, direction = _split(place)
    if service and service not in SERVICES:
        return f"there is no service {service}; there are {', '.join(SERVICES)}"
    fault = fault_of(is_set, (detector, direction, mode), tuple(Direction))
    if fault:
        return fault
    if mode == Mode.OFF:
        return "a policy only tightens: the mode must be flag, redact or refuse"
    if not any(_spots(place)):
        return f"the service {service} screens no {direction}"
    return ""


def _spots(place: str) -> Iterator[Spot]:
    service, detector, direction = _split(place)
    for where, way in _PLACES:
        if way == direction and service in {"", where}:
            yield where, detector, way


def _split(place: str) -> tuple[str, str, str]:
    """Service, detector and direction; the service is empty where none is named."""
    *service, detector, direction = place.split(".") if "." in place else (place, "")
    return ".".join(service), detector, direction
