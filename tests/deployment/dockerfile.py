"""Reads the Dockerfile: its stages and their instructions, continued lines joined."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FILE: Final = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One instruction, such as RUN, with the rest of its line."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The exec form, such as ["remit", "probe"]."""
        found = json.loads(self.rest[self.rest.index("[") :])
        assert isinstance(found, list)
        return found


def stages(text: str) -> list[list[Instruction]]:
    """Instructions by stage; those before the first FROM are left out."""
    found: list[list[Instruction]] = []
    for line in _lines(text):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, rest.strip()))
    return found


def one(stage: list[Instruction], name: str) -> Instruction:
    """The only instruction of that name."""
    [instruction] = [i for i in stage if i.name == name]
    return instruction


def variables(stage: list[Instruction]) -> dict[str, str]:
    """What ARG and ENV set, defaults included."""
    found: dict[str, str] = {}
    for instruction in stage:
        if instruction.name in {"ARG", "ENV"}:
            found |= dict(re.findall(r"(\w+)=(\S+)", instruction.rest))
    return found


def _lines(text: str) -> list[str]:
    kept = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [" ".join(line.split()) for line in "\n".join(kept).replace("\\\n", " ").splitlines()]
