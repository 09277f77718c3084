"""Every dependency has its reason in ADR 2, and the floors that the generated stubs demand hold."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "services" / "remit" / "api"
REASON = re.compile(r"^\| (?P<name>[a-z0-9][a-z0-9-]*) \| (?P<why>[^|]+) \|$", re.MULTILINE)
FLOOR = re.compile(r"^(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[0-9.]+)")
GRPC_FLOOR = re.compile(r"GRPC_GENERATED_VERSION = '([0-9.]+)'")
PROTOBUF_FLOOR = re.compile(r"Domain\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+),")

Version = tuple[int, ...]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> list[str]:
    declared = project()
    found: list[str] = [*declared["project"]["dependencies"], *declared["build-system"]["requires"]]
    for group in declared["project"]["optional-dependencies"].values():
        found += group
    for group in declared["dependency-groups"].values():
        found += group
    return found


def normal_name(requirement: str) -> str:
    """Return the package's name in the normal form of PEP 503."""
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def reasons() -> dict[str, str]:
    text = (ROOT / "docs/adr/0002-dependencies.md").read_text(encoding="utf-8")
    return {row["name"]: row["why"] for row in REASON.finditer(text)}


def floors() -> dict[str, Version]:
    matches = [FLOOR.match(requirement) for requirement in requirements()]
    return {normal_name(m["name"]): version(m["version"]) for m in matches if m}


def version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))


def demanded(pattern: re.Pattern[str], files: str) -> Version:
    """Return the highest version that a generated stub demands when it is imported."""
    found = [
        version(".".join(match if isinstance(match, tuple) else (match,)))
        for path in STUBS.rglob(files)
        for match in pattern.findall(path.read_text(encoding="utf-8"))
    ]
    assert found, f"no stub states a version; has {files} another form now?"
    return max(found)


@pytest.mark.parametrize("requirement", requirements())
def test_each_dependency_has_its_reason(requirement: str) -> None:
    assert normal_name(requirement) in reasons(), "add its line to docs/adr/0002-dependencies.md"


def test_no_reason_is_left_over() -> None:
    assert set(reasons()) <= {normal_name(requirement) for requirement in requirements()}


def test_the_floor_of_protobuf_is_what_the_stubs_demand() -> None:
    assert floors()["protobuf"] >= demanded(PROTOBUF_FLOOR, "*_pb2.py")


def test_the_floor_of_grpcio_is_what_the_stubs_demand() -> None:
    assert floors()["grpcio"] >= demanded(GRPC_FLOOR, "*_pb2_grpc.py")


def test_no_two_distributions_install_the_same_file() -> None:
    """Which of the two stays is the order of installation, and so is chance."""
    owners: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            if file.suffix != ".pyc":
                owners.setdefault(str(file), set()).add(distribution.metadata["Name"])
    assert {file: names for file, names in owners.items() if len(names) > 1} == {}
