"""The clients in other languages: what each needs, how it is built and how it is started.

A client is built by its own build.sh into a folder below .cache/ that is named by a digest of all
that it is made from: contracts, program and the versions of its tools. Nothing of it is committed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from scripts.protos import PROTOS, ROOT
from tests.programs import missing, program
from tests.waiting import PATIENCE

CLIENTS: Final = Path(__file__).parent
_CACHE: Final = ROOT / ".cache" / "clients"
_PURELIB: Final = sysconfig.get_path("purelib")
_BUILD_TIMEOUT_S: Final = 300.0
# The contracts import google/protobuf/*.proto, which Debian's protoc takes from libprotobuf-dev.
_PROTOC: Final = ("libprotobuf-dev", "protobuf-compiler")


@dataclass(frozen=True)
class Language:
    """A client. `packages` are Debian's, `distributions` Python's."""

    title: str
    source: str
    packages: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In paths and in the names of tests."""
        return self.title.lower().replace("+", "p")

    @property
    def folder(self) -> Path:
        """Where its sources are."""
        return CLIENTS / self.name

    @property
    def shown(self) -> tuple[Path, Path]:
        """The files whose marked regions docs/CLIENTS.md shows."""
        return self.folder / "build.sh", self.folder / self.source

    def versions(self) -> dict[str, str]:
        """Installed versions of all that it needs; skips the test where a package is missing."""
        return debian_versions(self.packages) | {
            name: metadata.version(name) for name in self.distributions
        }

    def command(self, built: Path) -> list[str]:
        """What starts the client."""
        match self.name:
            case "python":  # -S: the stubs just made are imported, not those of this repository
                return [sys.executable, "-S", str(self.folder / self.source)]
            case "java":
                return ["java", "-classpath", (built / "classpath").read_text(), "Client"]
            case "ruby":
                return ["ruby", "-I", str(built), str(self.folder / self.source)]
            case _:
                return [str(built / "client")]

    def environment(self, built: Path) -> dict[str, str]:
        """In which the client is started."""
        if self.name == "python":
            return os.environ | {"PYTHONPATH": os.pathsep.join([str(built), _PURELIB])}
        return dict(os.environ)


LANGUAGES: Final = {
    language.name: language
    for language in (
        Language("Python", "client.py", distributions=("grpcio", "grpcio-tools", "protobuf")),
        Language(
            "Go",
            "main.go",
            (
                *_PROTOC,
                "golang-github-golang-protobuf-1-5-dev",
                "golang-go",
                "golang-google-genproto-dev",
                "golang-google-grpc-dev",
                "protoc-gen-go",
                "protoc-gen-go-grpc",
            ),
        ),
        Language(
            "C++",
            "client.cc",
            (*_PROTOC, "g++", "libgrpc++-dev", "pkgconf", "protobuf-compiler-grpc"),
        ),
        Language(
            "Java",
            "Client.java",
            (
                *_PROTOC,
                "libgeronimo-annotation-1.3-spec-java",
                "libgoogle-gson-java",
                "libgrpc-java",
                "libguava-java",
                "libnetty-java",
                "libperfmark-java",
                "libprotobuf-java",
                "openjdk-17-jdk-headless",
                "protobuf-compiler-grpc-java-plugin",
            ),
        ),
        Language("Ruby", "client.rb", (*_PROTOC, "ruby", "ruby-grpc", "ruby-grpc-tools")),
    )
}


def debian_versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions without epochs; skips the test, or fails it, where one is missing."""
    if not packages:
        return {}
    query = program("dpkg-query", package="dpkg")
    answer = subprocess.run(
        [query, "--show", "--showformat=${Package} ${Status} ${Version}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    # A line is `g++ install ok installed 4:12.2.0-3`.
    lines = [line.split() for line in answer.stdout.splitlines()]
    found = {line[0]: line[-1].split(":")[-1] for line in lines if line[3] == "installed"}
    if absent := sorted(set(packages) - set(found)):
        missing(f"Debian packages are missing: {' '.join(absent)}")
    return found


def build(language: Language) -> Path:
    """The folder with the stubs and the program, made when the cache has none of this digest.

    Raises:
        AssertionError: it could not be built; the message is what the tools printed.

    """
    _CACHE.mkdir(parents=True, exist_ok=True)
    target = _CACHE / f"{language.name}-{_digest(language)}"
    with _lock(language):
        done = target / "done"
        if not done.exists():
            for old in _CACHE.glob(f"{language.name}-*/"):
                shutil.rmtree(old)
            _run_build(language, target)
            done.touch()
    return target


def _run_build(language: Language, target: Path) -> None:
    tools = {"GOOGLEAPIS": _PURELIB, "GOCACHE": str(_CACHE / "go-build")}
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    built = subprocess.run(
        [language.folder / "build.sh", target],
        cwd=ROOT,
        env=os.environ | tools | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S * PATIENCE,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr


def _digest(language: Language) -> str:
    digest = hashlib.sha256(repr(sorted(language.versions().items())).encode())
    for folder in (PROTOS, language.folder):
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(ROOT)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _lock(language: Language) -> Iterator[None]:
    """One test process builds a client, the others wait for it."""
    with (_CACHE / f"{language.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
