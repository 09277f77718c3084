"""States of the source that can be measured: the working tree, or a revision.

Each is a copy in a folder of its own, so that nobody's editing changes what is measured. All of
them run in the same virtual environment: a `PYTHONPATH` that begins with the copy's `services` wins
over what is installed there.
"""

from __future__ import annotations

import compileall
import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]

NO_RUN_LIMITS: Final = {"REMIT_POLICY_RUN_LIMIT_OF_USER": "0"}
"""A benchmark starts runs as fast as it can, as one user."""


@dataclass(frozen=True)
class Tree:
    """One state of the source."""

    label: str
    """The short commit id; `+` follows when the working tree had changes on top."""
    services: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process import this tree."""
        return dict(os.environ) | NO_RUN_LIMITS | {"PYTHONPATH": str(self.services)}


@contextlib.contextmanager
def tree(revision: str | None = None, overlay: Sequence[str] = ()) -> Iterator[Tree]:
    """A copy of a revision, or of the working tree for None; removed at the end.

    `overlay` names files and folders of the working tree that replace those of the revision: one
    change alone can be measured while others are in the making.

    Raises:
        SystemExit: there is no such revision.

    """
    folder = Path(tempfile.mkdtemp(prefix="remit-bench-tree-"))
    folder.chmod(0o755)  # sandboxed tools run as other users and import from here
    try:
        label = _copy_working_tree(folder) if revision is None else _extract(revision, folder)
        for path in overlay:
            label += f" with {path}"
            _replace(REPOSITORY / path, folder / path)
        # The first start would else compile what later ones read.
        compileall.compile_dir(folder / "services", quiet=2, force=True)
        yield Tree(label, folder / "services")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_working_tree(folder: Path) -> str:
    shutil.copytree(
        REPOSITORY / "services", folder / "services", ignore=shutil.ignore_patterns("__pycache__")
    )
    if not (REPOSITORY / ".git").exists():
        return "unversioned"  # a source distribution
    changed = _git("status", "--porcelain", "--", "services")
    return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _extract(revision: str, folder: Path) -> str:
    commit = _git("rev-parse", "--short", f"{revision}^{{commit}}")
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit, "services"],  # noqa: S607 - the git on PATH
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(folder, filter="data")
    return commit


def _replace(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],  # noqa: S607 - the git on PATH
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    return done.stdout.strip()


def with_path(tree_: Tree, *folders: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The tree's environment with more folders to import from, and more variables."""
    path = os.pathsep.join([str(tree_.services), *(str(folder) for folder in folders)])
    return tree_.environment | {"PYTHONPATH": path} | dict(more)
