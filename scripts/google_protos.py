"""Puts the google protos that the contracts import where buf can read them.

A module of buf's workspace is a folder inside the workspace, and buf would otherwise fetch these
protos from the network. They come from the googleapis-common-protos wheel, the very files whose
Python modules run beside our stubs, and are copied to a folder that git ignores.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / ".cache" / "googleapis"
PACKAGES = ("google/api", "google/rpc", "google/type")


def copy_package(package: str) -> int:
    """Copy the protos of one package, without its Python modules; return how many."""
    source = Path(sysconfig.get_path("purelib")) / package
    target = TARGET / package
    target.mkdir(parents=True)
    protos = sorted(source.glob("*.proto"))
    for proto in protos:
        shutil.copyfile(proto, target / proto.name)
    return len(protos)


def main() -> int:
    """Copy every package afresh; return the exit status."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for package in PACKAGES:
        if copy_package(package) == 0:
            print(f"google_protos: the googleapis-common-protos wheel has no {package}/*.proto")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
