"""Every client command against the real mesh, and the whole demo."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import REMIT, RunningMesh, remit
from tests.waiting import PATIENCE, eventually

DEMO_TIMEOUT_S = 110


def documents(mesh: RunningMesh, *arguments: str) -> list[dict[str, Any]]:
    """The JSON objects that a command prints; it must succeed."""
    done = mesh.run(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def run_summary(mesh: RunningMesh) -> dict[str, Any]:
    """The summary of a run that ended well."""
    return documents(mesh, "run", "What is 17 * 23?")[-1]


def test_a_run_ends_with_answer_cost_and_position(run_summary: dict[str, Any]) -> None:
    assert run_summary["type"] == "summary"
    assert "391" in run_summary["result"]
    assert run_summary["cost_nanos"] > 0
    assert run_summary["usage"]["input_tokens"] > 0
    assert run_summary["last_leaf_index"] >= 0


def test_people_see_tool_calls_and_the_answer(mesh: RunningMesh) -> None:
    done = mesh.run("run", "What is 17 * 23?")
    assert done.returncode == 0
    assert "→ calculator(" in done.stdout
    assert re.search(r"^cost    0\.0*[1-9][0-9]* USD$", done.stdout, re.MULTILINE)
    assert re.search(r"^audit   leaf [0-9]+;", done.stdout, re.MULTILINE)


def test_runs_are_listed_shown_and_watched(mesh: RunningMesh, run_summary: dict[str, Any]) -> None:
    name = run_summary["run"]
    (listed,) = documents(mesh, "runs", "list")
    assert name in {run["name"] for run in listed["runs"]}
    (shown,) = documents(mesh, "runs", "show", name)
    assert shown["run"]["result"] == run_summary["result"]
    watched = documents(mesh, "runs", "watch", name.removeprefix("runs/"))
    assert watched[-1] == run_summary
    assert [d["sequence"] for d in watched[:-1]] == list(range(1, len(watched)))


def test_the_catalogues_name_what_is_shipped(mesh: RunningMesh) -> None:
    (agents,) = documents(mesh, "agents")
    (tools,) = documents(mesh, "tools")
    (models,) = documents(mesh, "models")
    assert "agents/assistant" in {agent["name"] for agent in agents["agents"]}
    assert "tools/calculator" in {tool["name"] for tool in tools["tools"]}
    assert "models/builtin-rules" in {model["name"] for model in models["models"]}
    assert "expression" in mesh.run("tools", "show", "calculator").stdout


@pytest.mark.parametrize("dimension", ["user", "team", "agent", "item", "run", "day", "month"])
def test_spend_by_every_dimension_has_the_same_total(
    mesh: RunningMesh, run_summary: dict[str, Any], dimension: str
) -> None:
    (spend,) = documents(mesh, "spend", "--by", dimension, "--limit", "10000")
    assert spend["total"]["posted_nanos"] >= run_summary["cost_nanos"]
    assert sum(row["posted_nanos"] for row in spend["rows"]) == spend["total"]["posted_nanos"]


async def test_models_and_tools_are_all_that_is_paid_for(
    mesh: RunningMesh, run_summary: dict[str, Any]
) -> None:
    def totals() -> dict[str, int]:
        found = {by: documents(mesh, "spend", "--by", by)[0] for by in ("model", "tool", "item")}
        return {by: spend["total"]["posted_nanos"] for by, spend in found.items()}

    def add_up() -> bool:
        """An effect may be settled between two looks."""
        found = totals()
        return 0 < found["item"] == found["model"] + found["tool"]

    await eventually(add_up)


async def test_the_bill_of_a_run_is_its_cost(
    mesh: RunningMesh, run_summary: dict[str, Any]
) -> None:
    def bill() -> list[dict[str, Any]]:
        (document,) = documents(mesh, "spend", "--run", run_summary["run"])
        return list(document["runs"])

    def is_settled() -> bool:
        return bool(bill()[0]["whole"]["posted_nanos"] == run_summary["cost_nanos"])

    await eventually(is_settled)
    (only,) = bill()
    assert only["agent"] == "agents/assistant"
    assert only["own"] == only["whole"]
    assert only["own"]["usage"]["output_tokens"] == run_summary["usage"]["output_tokens"]


async def test_a_run_is_explained_with_all_that_stands_behind_it(
    mesh: RunningMesh, run_summary: dict[str, Any]
) -> None:
    name = run_summary["run"]

    def explained() -> dict[str, Any]:
        (document,) = documents(mesh, "explain", name)
        return document

    def is_closed() -> bool:
        told = explained()
        bill = told["bill"]
        attempts = [a for entry in told["entries"] for a in entry["attempts"]]
        is_told = all(a["outcomes"] and a["decision"]["policy_epoch"] for a in attempts)
        return bill["posted_nanos"] == run_summary["cost_nanos"] and is_told

    await eventually(is_closed)
    told = explained()
    assert (told["missing"], told["bill"]["differences"]) == ([], [])
    effects = [entry for entry in told["entries"] if entry["attempts"]]
    assert [e["resource"] for e in effects] == [
        "models/builtin-rules",
        "tools/calculator",
        "models/builtin-rules",
    ]
    attempts = [attempt for entry in effects for attempt in entry["attempts"]]
    assert all(a["decision"]["allowed"] and a["decision"]["name"] for a in attempts)
    assert sum(a["reservation"]["posted_nanos"] for a in attempts) == run_summary["cost_nanos"]
    assert [a["decision"]["policy_ids"] for a in attempts] == [["admins-do-everything"]] * 3
    (listed,) = documents(mesh, "audit", "list", "--run", name)
    in_log = {e["leaf_index"]: e["event"]["action"] for e in listed["events"]}
    leaves = {leaf["leaf_index"] for a in attempts for leaf in [a["intent"], *a["outcomes"]]}
    leaves |= {index for a in attempts for index in a["decision"]["leaf_indices"]}
    assert [action for index, action in in_log.items() if index not in leaves] == ["agents.run"]
    assert leaves <= in_log.keys()
    assert max(a["intent"]["leaf_index"] for a in attempts) == run_summary["last_leaf_index"]
    assert {a["trace_id"] for a in attempts} == set(told["trace_ids"])
    story = mesh.run("explain", name)
    assert (story.returncode, story.stdout.splitlines()[-1]) == (0, "that adds up to the nano")


async def test_what_is_exported_in_focus_is_what_was_spent(
    mesh: RunningMesh, run_summary: dict[str, Any]
) -> None:
    def exported_nanos() -> Fraction:
        done = mesh.run("spend", "--focus")
        assert done.returncode == 0, done.stderr
        rows = csv.DictReader(io.StringIO(done.stdout))
        return sum((Fraction(row["BilledCost"]) for row in rows), Fraction(0)) * 10**9

    def is_all() -> bool:
        (spend,) = documents(mesh, "spend")
        return bool(exported_nanos() == spend["total"]["posted_nanos"] > 0)

    await eventually(is_all)


def test_budgets_are_set_and_listed(mesh: RunningMesh) -> None:
    account = f"{mesh.org}/users/thrifty"
    documents(mesh, "budgets", "set", account, "0.25", "--per", "day")
    (listed,) = documents(mesh, "budgets", "list", "--limit", "1000")
    mine = [b for b in listed["budgets"] if b["account"] == account]
    assert [(b["limit_nanos"], b["period"]) for b in mine] == [(250_000_000, "PERIOD_DAY")]


def _until_refused(visitor: dict[str, str]) -> subprocess.CompletedProcess[str]:
    give_up = time.monotonic() + 20 * PATIENCE
    while (tried := remit(visitor, "agents")).returncode == 0:
        assert time.monotonic() < give_up, "a revoked key still works"
    return tried


def test_a_key_works_until_it_is_revoked(mesh: RunningMesh) -> None:
    user = f"{mesh.org}/users/visitor"
    (made,) = documents(mesh, "keys", "create", "a visit", "--user", user)
    name = made["api_key"]["name"]
    visitor = mesh.environment | {"REMIT_API_KEY": made["secret"]}
    assert remit(visitor, "agents").returncode == 0
    denied = remit(visitor, "keys", "list")
    assert denied.returncode == 4
    assert "[PERMISSION_DENIED]" in denied.stderr
    documents(mesh, "keys", "revoke", name)
    # The other replica of policy may know the key for as long as it keeps an edge's answer.
    revoked = _until_refused(visitor)
    assert revoked.returncode == 4
    assert "[CREDENTIAL_REVOKED]" in revoked.stderr
    (listed,) = documents(mesh, "keys", "list")
    assert "revoke_time" in next(k for k in listed["api_keys"] if k["name"] == name)


def test_the_log_is_listed_exported_and_verified(
    mesh: RunningMesh, run_summary: dict[str, Any], tmp_path: Path
) -> None:
    (listed,) = documents(mesh, "audit", "list", "--run", run_summary["run"])
    leaves = {event["leaf_index"] for event in listed["events"]}
    assert run_summary["last_leaf_index"] in leaves
    export, key, note = (tmp_path / name for name in ("log.export", "audit.pub", "checkpoint"))
    key.write_bytes((mesh.state / "audit.pub").read_bytes())
    note.write_text(mesh.run("audit", "checkpoint").stdout, encoding="utf-8")
    documents(mesh, "run", "What is 2 + 2?")
    documents(mesh, "audit", "export", str(export))
    arguments = ("audit", "verify", str(export), "--key", str(key))
    verified = remit(os.environ, *arguments, "--checkpoint", str(note))
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.startswith("audit: verified ")
    tiles = ("audit", "verify", str(mesh.state / "tiles"), "--key", str(key))
    mirrored = (*tiles, "--checkpoint", str(note))
    asyncio.run(eventually(lambda: remit(os.environ, *mirrored).returncode == 0))
    data = bytearray(export.read_bytes())
    data[len(data) // 2] ^= 1
    export.write_bytes(data)
    refuted = remit(os.environ, *arguments)
    assert refuted.returncode == 1
    assert re.match(r"audit: NOT verified: line [0-9]+ \(leaf [0-9]+\): ", refuted.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("run", "--agent", "asistant", "hello"), 5, "AGENT_NOT_FOUND"),
        (("run", ""), 7, "INVALID_REQUEST"),
        (("run", "<script>alert(1)</script>"), 7, "SUSPICIOUS_INPUT"),
        (("run", "--max-cost", "0", "What is 1 + 1?"), 6, ""),
        (("runs", "show", "01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"), 5, "RUN_NOT_FOUND"),
        (("tools", "show", "calculater"), 5, "TOOL_NOT_FOUND"),
        (("keys", "revoke", "orgs/local/apiKeys/none"), 5, "RESOURCE_NOT_FOUND"),
        (("agents", "--api-key", "rmt_wrong"), 4, "CREDENTIAL_INVALID"),
    ],
)
def test_failures_have_their_codes(
    mesh: RunningMesh, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    done = mesh.run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert reason in done.stdout + done.stderr


def test_the_demo_shows_the_whole_promise() -> None:
    done = remit(os.environ, "demo", timeout_s=DEMO_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^answer  .*\b391\b", done.stdout, re.MULTILINE)
    assert re.search(r"^cost    0\.0*[1-9][0-9]* USD$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("audit: verified ")
    folder = Path(re.findall(r" in (/\S+)$", done.stdout, re.MULTILINE)[0])
    assert not folder.exists()


def test_an_interrupted_demo_leaves_no_process() -> None:
    process = subprocess.Popen([*REMIT, "demo"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    time_limit = time.monotonic() + DEMO_TIMEOUT_S * PATIENCE
    while "postgres ready" not in process.stdout.readline():
        assert time.monotonic() < time_limit
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEMO_TIMEOUT_S * PATIENCE)
    assert process.returncode == 130, out
    folder = re.findall(r" in (/\S+)$", first, re.MULTILINE)[0]
    assert [line for line in command_lines() if folder in line] == []
    assert not Path(folder).exists()


def command_lines() -> list[str]:
    """The command line of every process, on Linux: without /proc this proves nothing."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines
