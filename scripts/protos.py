"""Makes the Python stubs of the contracts, and tells when the committed ones have drifted.

The stubs under ``services/remit/api`` are committed, so that installing Remit needs no compiler and
a reviewer sees what a change of a contract does to the code. They are never edited: this script is
their only author. The path of a proto below ``protos/`` is its path as a Python module, which makes
rewriting imports needless.

Usage: ``python scripts/protos.py`` writes the stubs; ``--check`` writes nothing and exits 1 when
they differ from what the contracts say.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SOURCES = ROOT / "services"
STUBS = Path("remit/api")
PACKAGE_DOCSTRING = '"""Generated from {source} by `make protos`; never edited."""\n'


def contracts() -> list[Path]:
    """Return every contract, relative to ``protos/``, in a stable order."""
    return sorted(path.relative_to(PROTOS) for path in (PROTOS / STUBS).rglob("*.proto"))


def include_paths() -> list[str]:
    """Return where imports are looked up: ours, protobuf's own, then googleapis-common-protos'."""
    bundled = str(files("grpc_tools") / "_proto")
    return [str(PROTOS), bundled, sysconfig.get_path("purelib")]


def plugins() -> list[str]:
    """Return the stub generators of this environment, which need not be on PATH."""
    folder = Path(sysconfig.get_path("scripts"))
    names = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    return [f"--plugin={name}={folder / name}" for name in names]


def compile_contracts(target: Path) -> None:
    """Compile every contract into the source root ``target``.

    gRPC code is made for ``*_service.proto`` alone, and typed for grpc.aio alone: Remit has no
    synchronous client or server.

    Raises:
        SystemExit: protoc refused a contract; it has printed why.

    """
    sources = [str(path) for path in contracts()]
    services = [path for path in sources if path.endswith("_service.proto")]
    run_protoc([f"--python_out={target}", f"--mypy_out=quiet:{target}"], sources)
    if services:
        grpc_outputs = [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet,only_async:{target}"]
        run_protoc(grpc_outputs, services)


def run_protoc(outputs: list[str], sources: list[str]) -> None:
    """Run protoc in this process.

    Raises:
        SystemExit: protoc failed.

    """
    includes = [f"--proto_path={path}" for path in include_paths()]
    if protoc.main(["protoc", *plugins(), *includes, *outputs, *sources]) != 0:
        sys.exit("protos: protoc refused the contracts; see above")


def write_packages(target: Path) -> None:
    """Make every folder of stubs a package that says where it comes from."""
    api = target / STUBS
    folders = [api, *(path for path in sorted(api.rglob("*")) if path.is_dir())]
    for folder in folders:
        source = f"protos/{folder.relative_to(target).as_posix()}"
        (folder / "__init__.py").write_text(PACKAGE_DOCSTRING.format(source=source))


def generate(target: Path) -> None:
    """Write all stubs into the source root ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    compile_contracts(target)
    write_packages(target)


def listing(root: Path) -> set[Path]:
    """Return the stub files below ``root``, without what Python caches beside them."""
    return {
        path.relative_to(root)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def drift(fresh: Path, committed: Path) -> list[str]:
    """Return one line for each stub that is missing, left over or different."""
    wanted, present = listing(fresh), listing(committed)
    missing = [f"missing: {path}" for path in sorted(wanted - present)]
    left_over = [f"left over: {path}" for path in sorted(present - wanted)]
    changed = [
        f"different: {path}"
        for path in sorted(wanted & present)
        if not filecmp.cmp(fresh / path, committed / path, shallow=False)
    ]
    return missing + left_over + changed


def replace(fresh: Path, committed: Path) -> None:
    """Write what differs and remove what is left over, touching nothing else.

    Stubs that did not change keep their time stamps, so that caches built on them stay warm.
    """
    wanted, present = listing(fresh), listing(committed)
    for path in present - wanted:
        (committed / path).unlink()
    for path in wanted:
        source, goal = fresh / path, committed / path
        if goal.exists() and filecmp.cmp(source, goal, shallow=False):
            continue
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, goal)


def main() -> int:
    """Generate the stubs, or with ``--check`` compare them; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the Python stubs of the contracts.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on drift")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = Path(folder) / STUBS, SOURCES / STUBS
        differences = drift(fresh, committed)
        if not check:
            replace(fresh, committed)
    for line in differences:
        print(line)
    if check and differences:
        print("protos: the stubs have drifted from the contracts; run `make protos` and commit")
        return 1
    print(f"protos: {len(contracts())} contracts, {len(differences)} stubs differed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
