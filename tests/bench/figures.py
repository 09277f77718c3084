"""What a measurement found, as it is kept: every round of every figure, in small JSON files.

The reports are made from these files alone, so that they can be made again, and a later measurement
can be set against an earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.stats import UNLIKELY, Spread, chance_of_signs, ratios

FOLDER: Final = Path(__file__).with_name("results")
BASELINE: Final = FOLDER / "baseline.json"
LATEST: Final = FOLDER / "latest.json"
STEPS: Final = FOLDER / "steps.json"
SIGNIFICANT_DIGITS: Final = 4

Figures = dict[str, list[float]]
"""By name, such as `load_32.p50_ms`: a value for each round."""


@dataclass(frozen=True)
class Result:
    """A measurement of one tree."""

    tree: str
    measured: str
    """When; two results of one time were measured in turn by one run of the program."""
    machine: Mapping[str, str]
    effort: Mapping[str, Any]
    figures: Figures

    def save(self, path: Path) -> None:
        """Writes the file, a line a figure."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {key: value for key, value in asdict(self).items() if key != "figures"}
        lines = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps([rounded(value) for value in values])}"
            for name, values in self.figures.items()
            if any(values)
        )
        text = json.dumps(head, indent=2)[:-2] + ',\n  "figures": {\n' + lines + "\n  }\n}\n"
        path.write_text(text)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises SystemExit if there is no such file yet."""
        if not path.exists():
            raise SystemExit(f"{path.name} is not there yet: nothing was measured")
        return cls(**json.loads(path.read_text()))

    def has(self, name: str) -> bool:
        """Whether a figure was measured, and not zero in all rounds."""
        return name in self.figures

    def values(self, name: str) -> list[float]:
        """The rounds of a figure; a single zero if it was not measured."""
        return self.figures.get(name, [0.0])

    def spread(self, name: str) -> Spread:
        """Median and quartiles of a figure."""
        return Spread.of(self.values(name))

    def parts(self, prefix: str) -> list[str]:
        """What follows `prefix.` in the names of figures, largest median first."""
        names = [name for name in self.figures if name.startswith(f"{prefix}.")]
        names.sort(key=lambda name: -self.spread(name).median)
        return [name.removeprefix(f"{prefix}.") for name in names]


def ratio(before: Result, after: Result, name: str) -> Spread | None:
    """after/before of a figure: round by round if measured in turn, else of the medians.

    None where one of them lacks it.
    """
    if not (before.has(name) and after.has(name)):
        return None
    if before.measured != after.measured:
        first, second = before.spread(name).median, after.spread(name).median
        return Spread.of([second / first]) if first else None
    each = ratios(before.values(name), after.values(name))
    return Spread.of(each) if each else None


def is_unlikely(before: Result, after: Result, name: str) -> bool:
    """Whether so many rounds lie on one side of 1 that chance would seldom do it."""
    if before.measured != after.measured or not (before.has(name) and after.has(name)):
        return False
    return chance_of_signs(ratios(before.values(name), after.values(name))) < UNLIKELY


def rounded(value: float) -> float:
    """Keeps as many digits as mean anything."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
