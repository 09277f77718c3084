"""Golden files: what Remit renders, kept in the repository and compared.

What Remit renders (Envoy's configuration, the help of a command, a table in the docs) is reviewed
as a diff of its golden file. Tests that compare one carry ``@pytest.mark.golden``; `make check`
runs them, and `make golden` rewrites the files, for a person to read the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

RENEW_VARIABLE = "REMIT_GOLDEN"


def assert_golden(path: Path, rendered: str) -> None:
    """Compare ``rendered`` with the file at ``path``, or write it under ``make golden``.

    Raises:
        AssertionError: the file is missing or differs.

    """
    if os.environ.get(RENEW_VARIABLE) == "renew":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rendered, encoding="utf-8")
        return
    assert path.exists(), f"{path} is missing; run `make golden`, read the diff and commit it"
    assert path.read_text(encoding="utf-8") == rendered, f"{path} differs; run `make golden`"
