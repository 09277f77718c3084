"""Where a command connects, with which key, and what it says when it cannot."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import agent_catalog_service_pb2, agent_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli.client import DEFAULT_ADDRESS, Listing, address_of, collect
from remit.rpc.errors import RemitError, Violation
from tests.cli.conftest import API_KEY, Remit
from tests.cli.edge_server import EdgeServer
from tests.ports import free_ports

LISTED = agent_catalog_service_pb2.ListAgentsResponse


@pytest.fixture
def listing(edge: EdgeServer) -> EdgeServer:
    edge.answers["ListAgents"] = lambda _: LISTED()
    return edge


def write_key(state: Path, key: str, mode: int = 0o600) -> None:
    file = state / "api-key"
    file.write_text(f"{key}\n", encoding="ascii")
    file.chmod(mode)


def sent_key(edge: EdgeServer) -> str:
    return edge.calls[-1].metadata["authorization"]


def test_the_key_goes_as_a_bearer_token(remit: Remit, listing: EdgeServer) -> None:
    assert remit("agents").code == 0
    assert sent_key(listing) == f"Bearer {API_KEY}"


def test_flag_overrides_environment_overrides_file(
    bare_remit: Remit, listing: EdgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key(tmp_path, "rmt_file")
    address = ("--address", listing.address)
    assert bare_remit("agents", *address).code == 0
    assert sent_key(listing) == "Bearer rmt_file"
    monkeypatch.setenv("REMIT_API_KEY", "rmt_environment")
    bare_remit("agents", *address)
    assert sent_key(listing) == "Bearer rmt_environment"
    bare_remit("agents", *address, "--api-key", "rmt_flag")
    assert sent_key(listing) == "Bearer rmt_flag"


def test_the_address_comes_from_the_environment_or_the_running_mesh(
    bare_remit: Remit, listing: EdgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key(tmp_path, API_KEY)
    (tmp_path / "mesh.json").write_text(json.dumps({"edge": listing.address}), encoding="ascii")
    assert bare_remit("agents").code == 0
    monkeypatch.setenv("REMIT_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")
    assert bare_remit("agents").code == 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"edge": 7}', '{"edge": "x"}'])
def test_a_damaged_mesh_file_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "mesh.json").write_text(content, encoding="ascii")
    assert address_of(tmp_path) == DEFAULT_ADDRESS


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(
    bare_remit: Remit, listing: EdgeServer, tmp_path: Path, mode: int
) -> None:
    write_key(tmp_path, API_KEY, mode)
    outcome = bare_remit("agents", "--address", listing.address)
    assert outcome.code == 7
    assert f"run `chmod 600 {tmp_path / 'api-key'}`" in outcome.err
    assert "[CONFIGURATION_INVALID]" in outcome.err
    assert listing.calls == []


def test_without_a_key_it_says_how_to_get_one(bare_remit: Remit) -> None:
    outcome = bare_remit("agents")
    assert outcome.code == 4
    assert "[CREDENTIAL_MISSING]" in outcome.err
    assert "remit up" in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("key", ["with space", "line\nbreak", "ключ", " "])
def test_what_can_be_no_key_is_never_sent(bare_remit: Remit, listing: EdgeServer, key: str) -> None:
    outcome = bare_remit("agents", "--address", listing.address, "--api-key", key)
    assert outcome.code == 4
    assert "[CREDENTIAL_INVALID]" in outcome.err
    assert key.strip() == "" or key not in outcome.err
    assert listing.calls == []


def test_a_binary_key_file_is_told(bare_remit: Remit, tmp_path: Path) -> None:
    (tmp_path / "api-key").write_bytes(b"\xff\xfe")
    (tmp_path / "api-key").chmod(0o600)
    assert bare_remit("agents").code == 7


@pytest.mark.parametrize("address", ["localhost", "a:b", "127.0.0.1:0", "host:70000", "http://x:1"])
def test_a_wrong_address_is_a_wrong_command_line(bare_remit: Remit, address: str) -> None:
    outcome = bare_remit("agents", "--address", address)
    assert outcome.code == 2
    assert "HOST:PORT" in outcome.err


def test_a_mesh_that_is_not_there_is_told_with_its_address(bare_remit: Remit) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    outcome = bare_remit("agents", "--address", address, "--api-key", API_KEY)
    assert outcome.code == 3
    assert f"nothing answers at {address}" in outcome.err
    assert "next: " in outcome.err
    assert "retry: after 1 s" in outcome.err


def test_an_error_is_told_with_everything_that_it_says(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListAgents"] = refuse
    outcome = remit("agents")
    lines = outcome.err.splitlines()
    assert outcome.code == 7
    assert lines[0] == "error: page_size: must not be negative [INVALID_REQUEST]"
    assert lines[1] == "  page_size: must not be negative"
    assert lines[2].startswith("  next: ")
    assert outcome.out == ""


def test_an_error_is_json_for_machines(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListAgents"] = refuse
    outcome = remit("agents", "--json")
    (document,) = outcome.documents
    assert outcome.code == document["exit_code"] == 7
    assert document["type"] == "error"
    assert document["reason"] == "INVALID_REQUEST"
    assert document["violations"] == [{"field": "page_size", "description": "must not be negative"}]
    assert outcome.err == ""


def test_an_error_cannot_command_the_terminal(remit: Remit, edge: EdgeServer) -> None:
    def hostile(_: Any) -> Any:
        raise RemitError(error_reason_pb2.ERROR_REASON_INTERNAL, "\x1b]0;owned\x07\nerror: fake")

    edge.answers["ListAgents"] = hostile
    outcome = remit("agents")
    assert "\x1b]" not in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("error:")]) == 1


def test_a_method_that_the_mesh_does_not_know(remit: Remit) -> None:
    outcome = remit("agents")
    assert outcome.code == 1
    assert "[METHOD_UNKNOWN]" in outcome.err


def test_a_key_in_plain_text_over_a_network_is_warned_of(bare_remit: Remit) -> None:
    outcome = bare_remit("agents", "--address", "mesh.invalid:1", "--api-key", API_KEY)
    assert "warning: the API key goes to mesh.invalid:1 without encryption" in outcome.err
    assert outcome.code == 3


def refuse(_: Any) -> Any:
    raise RemitError(
        error_reason_pb2.ERROR_REASON_INVALID_REQUEST,
        "page_size: must not be negative",
        violations=[Violation("page_size", "must not be negative")],
    )


async def collected(total: int, limit: int, page_most: int = 200) -> tuple[Listing[str], list[int]]:
    sizes: list[int] = []

    async def fetch(size: int, token: str) -> agent_catalog_service_pb2.ListAgentsResponse:
        sizes.append(size)
        first = int(token or 0)
        last = min(total, first + min(size, page_most))
        agents = [agent_pb2.Agent(name=f"agents/{i}") for i in range(first, last)]
        return LISTED(agents=agents, next_page_token=str(last) if last < total else "")

    listing = await collect(fetch, lambda page: [agent.name for agent in page.agents], limit)
    return listing, sizes


@pytest.mark.parametrize(
    ("total", "limit", "more"),
    [(0, 50, False), (50, 50, False), (51, 50, True), (450, 1_000, False), (450, 250, True)],
)
async def test_lists_are_paged_to_the_limit_and_say_if_there_is_more(
    total: int, limit: int, *, more: bool
) -> None:
    listing, sizes = await collected(total, limit)
    assert listing.items == [f"agents/{i}" for i in range(min(total, limit))]
    assert listing.more is more
    assert max(sizes) <= 200


async def test_pages_smaller_than_asked_for_are_no_end() -> None:
    listing, _ = await collected(25, 20, page_most=7)
    assert len(listing.items) == 20
    assert listing.more


def test_the_state_directory_comes_from_the_environment(
    listing: EdgeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from remit.cli.main import run  # noqa: PLC0415 - without the fixture's --state

    write_key(tmp_path, "rmt_of_state")
    monkeypatch.setenv("REMIT_STATE", os.fspath(tmp_path))
    assert run(["agents", "--address", listing.address]) == 0
    assert sent_key(listing) == "Bearer rmt_of_state"


def test_a_proxy_for_web_pages_is_not_asked_for_a_mesh(
    remit: Remit, listing: EdgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    assert remit("agents").code == 0
