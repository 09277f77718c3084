"""docs/REST.md shows what happens: its commands run in order, against a real mesh."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest
import yaml

from remit.gateway.topology import Cors
from scripts.protos import ROOT
from tests.integration.conftest import RunningMesh
from tests.programs import program
from tests.waiting import PATIENCE

PAGE = ROOT / "docs/REST.md"
MOST_LINES = 150
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BETWEEN = "----"
# The page's blocks share their variables, so they run as one script.
_PRELUDE = "set -euo pipefail\n"
_COMMAND = re.compile(r"^(?=curl )", re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(PAGE.read_text("utf-8")) if found == language]


@pytest.fixture(scope="module")
def outputs(mesh: RunningMesh) -> list[str]:
    """What each curl of the page prints that is not kept in a variable."""
    program("curl", package="curl")
    script = _COMMAND.sub(f"printf '\\n{_BETWEEN}\\n'\n", "\n".join(blocks("sh")))
    done = subprocess.run(
        ["bash", "-c", _PRELUDE + script],  # noqa: S607 - the shell that the page is read with
        env=os.environ | {"REMIT_ADDRESS": mesh.address, "REMIT_API_KEY": mesh.api_key},
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [text.strip() for text in done.stdout.split(f"\n{_BETWEEN}\n")[1:]]


@pytest.fixture(scope="module")
def answers(outputs: list[str]) -> list[Any]:
    """The same as JSON where it is JSON, else as it is."""
    return [json.loads(text) if text.startswith("{") else text for text in outputs]


def events(text: str) -> list[str]:
    return re.findall(r"^id: (\d+)$", text, re.MULTILINE)


def test_the_page_is_short() -> None:
    assert len(PAGE.read_text("utf-8").splitlines()) <= MOST_LINES


def test_a_key_lists_the_agents(answers: list[Any]) -> None:
    assert "agents/assistant" in {agent["name"] for agent in answers[0]["agents"]}


def test_one_curl_starts_a_run(answers: list[Any]) -> None:
    assert answers[1]["run"]["task"] == "What is 17 * 23?"


def test_the_stream_is_whole_and_of_the_same_run(answers: list[Any]) -> None:
    stream = answers[2]
    assert set(re.findall(r"runs/[0-9a-f-]+", stream)) == {answers[1]["run"]["name"]}
    assert events(stream) == [str(each + 1) for each in range(len(events(stream)))]
    assert "17 * 23 = 391" in stream
    assert stream.endswith("event: end\ndata: {}")


def test_a_stream_is_resumed_both_ways(answers: list[Any]) -> None:
    whole, by_request, by_name = answers[2:5]
    assert events(by_request) == events(by_name) == events(whole)[12:]
    assert by_name.endswith("event: end\ndata: {}")


def test_a_run_is_read_and_listed(answers: list[Any]) -> None:
    read, listed = answers[5:7]
    assert read["run"]["result"] == "17 * 23 = 391"
    assert len(listed["runs"]) == 1
    assert listed["runs"][0]["state"] == "RUN_STATE_SUCCEEDED"


def test_the_next_page_is_another(answers: list[Any]) -> None:
    (second,) = answers[7]["agents"]
    assert second["name"] == answers[0]["agents"][1]["name"]


def test_a_run_is_cancelled_unless_it_has_ended(answers: list[Any]) -> None:
    answer = answers[8]
    if "run" in answer:
        assert answer["run"]["state"] == "RUN_STATE_CANCELLED"
    else:
        assert answer["details"][0]["reason"] == "INVALID_STATE"


def test_effects_money_and_the_record(answers: list[Any]) -> None:
    called, generated, spent, bill, recorded = answers[9:14]
    assert called["result"]["result"] == "42"
    assert generated["message"]["role"] == "ROLE_ASSISTANT"
    assert {"tools/calculator", "models/builtin-rules"} <= {row["key"] for row in spent["rows"]}
    assert [each["run"] for each in bill["runs"]] == [answers[1]["run"]["name"]]
    assert {each["event"]["run"] for each in recorded["events"]} == {answers[1]["run"]["name"]}


def test_an_error_says_what_is_wrong(answers: list[Any]) -> None:
    head, _, body = answers[14].replace("\r", "").partition("\n\n")
    assert head.startswith("HTTP/1.1 404 ")
    assert json.loads(body)["details"][0]["reason"] == "AGENT_NOT_FOUND"
    assert len(answers) == 15


def test_the_topology_takes_the_origins() -> None:
    (block,) = blocks("yaml")
    cors = Cors.model_validate(yaml.safe_load(block)["cors"])
    assert len(cors.origins) == 2
