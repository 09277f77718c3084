"""The table of the benchmark of revocations, made from its results alone, and its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.bench import tables
from tests.bench.figures import FOLDER, Result

REVOCATION: Final = FOLDER / "revocation.json"
BLOCK: Final = "revocation"
KEY: Final = "key"
USER: Final = "user"
POLICY: Final = "policy"
USER_RUN: Final = "user-run"
GRANT_RUN: Final = "grant-run"
POLICY_RUN: Final = "policy-run"
STREAM: Final = "stream"
MEANINGS: Final = {
    KEY: ("an API key is revoked", "its calls at the edge"),
    USER: ("a user is disabled", "calls with their key at the edge"),
    POLICY: ("a policy forbids a call", "that call at the edge"),
    USER_RUN: ("a user is disabled", "effects of their running run, until it ends"),
    GRANT_RUN: ("a grant is revoked", "the tool's calls by a running run"),
    POLICY_RUN: ("a policy forbids a tool", "its calls by a running run"),
    STREAM: ("an API key is revoked", "a watch that is open with it"),
}
"""What is taken away, and what goes on until when."""


def kept(path: Path = REVOCATION) -> dict[str, str]:
    """The part of the docs from the results that are kept; without any, it says so."""
    text = shown(Result.load(path)) if path.exists() else "Not measured yet."
    return {BLOCK: text}


def shown(result: Result) -> str:
    """A row for each kind, and whether the bounds were kept."""
    head = ["taken away", "what goes on", "bound s", "refused after s", "at most s"]
    head += ["worked until s, at most", "worked after the bound"]
    rows = [_row(result, kind) for kind in MEANINGS if kind in result.effort["bounds"]]
    return f"{_measured(result)}\n\n{tables.table(head, rows)}\n\n{verdict(result)}"


def _row(result: Result, kind: str) -> list[str]:
    refused = result.values(f"{kind}.refused_s")
    return [
        *MEANINGS[kind],
        tables.number(result.effort["bounds"][kind]),
        tables.number(result.spread(f"{kind}.refused_s").median),
        tables.number(max(refused)),
        tables.number(max(result.values(f"{kind}.worked_s"))),
        f"{sum(result.values(f'{kind}.late')):.0f}",
    ]


def _measured(result: Result) -> str:
    return (
        f"Measured {result.measured.partition('T')[0]} of `{result.tree}` on"
        f" {result.machine['CPU']}; {result.effort['rounds']} trials each, load average of the"
        f" minute before {tables.shown(result, 'machine.load')}."
    )


def verdict(result: Result) -> str:
    """Whether every bound was kept, and which were not."""
    failed = exceeded(result)
    if not failed:
        return "Every bound was kept."
    return f"**Bounds that were not kept: {', '.join(failed)}.**"


def exceeded(result: Result) -> list[str]:
    """Kinds of which something worked after the bound."""
    return [
        kind
        for kind, bound_s in result.effort["bounds"].items()
        if max(result.values(f"{kind}.worked_s")) > bound_s or any(result.values(f"{kind}.late"))
    ]
