"""Which detector does what, in which direction: plain data, read from one line of a setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from remit.guardrails.builtin import BUILT_IN


class Direction(StrEnum):
    """Which way a text goes."""

    INPUT = "input"
    """To an agent, a model or a tool."""
    OUTPUT = "output"
    """From a model or a tool."""


class Mode(StrEnum):
    """What happens to what is found; what stands later is stricter."""

    OFF = "off"
    FLAG = "flag"
    """It is counted and logged."""
    REDACT = "redact"
    """It is replaced by its kind."""
    REFUSE = "refuse"
    """The whole text is refused."""

    @property
    def strictness(self) -> int:
        """0 for the mildest, one more for each that is stricter."""
        return list(Mode).index(self)

    @classmethod
    def strictest(cls, *modes: Mode) -> Mode:
        """The strictest of some."""
        return max(modes, key=lambda mode: mode.strictness)


Place = tuple[str, Direction]
BOTH: Final = (Direction.INPUT, Direction.OUTPUT)


@dataclass(frozen=True)
class Rules:
    """The mode of each detector in each direction; what is not named is off."""

    modes: Mapping[Place, Mode] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, defaults: str) -> Rules:
        """The rules of a setting: what it does not name stays as the defaults say."""
        return cls(parse_rules(defaults) | parse_rules(text))

    def mode(self, detector: str, direction: Direction) -> Mode:
        """What happens to what a detector finds."""
        return self.modes.get((detector, direction), Mode.OFF)

    def tightened(self, other: Rules) -> Rules:
        """Both together: of each place the stricter mode."""
        places = {*self.modes, *other.modes}
        return Rules(
            {place: Mode.strictest(self.mode(*place), other.mode(*place)) for place in places}
        )

    def beyond(self, other: Rules) -> Rules:
        """What is stricter here than in other rules."""
        return Rules(
            {
                place: mode
                for place, mode in self.modes.items()
                if mode.strictness > other.mode(*place).strictness
            }
        )


def parse_rules(text: str, directions: Iterable[Direction] = BOTH) -> dict[Place, Mode]:
    """Reads `secrets.output=redact, personal_data.input=flag`.

    Raises ValueError that names every part that is wrong, and what it might be.
    """
    modes: dict[Place, Mode] = {}
    faults = []
    allowed = {str(each): each for each in directions}
    for part in filter(None, map(str.strip, text.split(","))):
        place, is_set, mode = (piece.strip() for piece in part.partition("="))
        detector, _, direction = place.partition(".")
        fault = fault_of(is_set, (detector, direction, mode), allowed)
        if fault:
            faults.append(f"`{part[:80]}`: {fault}")
        elif (detector, allowed[direction]) in modes:
            faults.append(f"`{part[:80]}`: {place} is set twice")
        else:
            modes[detector, allowed[direction]] = Mode(mode)
    if faults:
        raise ValueError("; ".join(faults))
    return modes


def fault_of(is_set: str, said: tuple[str, str, str], allowed: Iterable[str]) -> str:
    """What is wrong with one part: its sign, and detector, direction and mode; empty if nothing."""
    detector, direction, mode = said
    if not is_set:
        return "must be DETECTOR.DIRECTION=MODE, such as secrets.output=redact"
    if detector not in BUILT_IN:
        return f"there is no detector {detector}; there are {', '.join(BUILT_IN)}"
    if direction not in allowed:
        return f"the direction must be {' or '.join(allowed)}"
    if mode not in set(Mode):
        return f"the mode must be one of {', '.join(Mode)}"
    return ""
