"""The TypeScript client in Node runs an agent over gRPC, through a connection that breaks."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.clients.relay import relay
from tests.clients.typescript_workspace import SCRIPTS, SOURCES, environment, run_tool, workspace
from tests.integration.conftest import RunningMesh
from tests.waiting import in_time

README = SOURCES / "README.md"
# The first test installs packages where the cache has none.
pytestmark = pytest.mark.timeout(300)
CLIENT_TIMEOUT_S = 60.0
_BLOCK = re.compile(r"^```ts\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder() -> Path:
    return workspace()


async def output_of(folder: Path, program: str, address: str, key: str) -> str:
    process = await asyncio.create_subprocess_exec(
        SCRIPTS / "node",
        program,
        cwd=folder,
        env=environment(folder) | {"REMIT_ADDRESS": address, "REMIT_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await in_time(process.communicate(), CLIENT_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def run_client(folder: Path, address: str, key: str) -> Any:
    return json.loads(await output_of(folder, "src/node.ts", address, key))


def test_the_clients_are_well_typed(folder: Path) -> None:
    run_tool(folder, "tsc", "--project", ".", "--noEmit")


async def test_a_run_is_followed_over_a_connection_that_breaks(
    folder: Path, mesh: RunningMesh
) -> None:
    async with relay(mesh.address, 1_000) as broken:
        told = await run_client(folder, broken.address, mesh.api_key)
    assert broken.cuts == 1
    assert told["state"] == "SUCCEEDED"
    assert told["result"].endswith("391")
    assert int(told["costNanos"]) > 0
    # Every event once, although the stream broke behind some of them.
    assert told["sequences"] == list(range(1, len(told["sequences"]) + 1))
    assert told["kinds"][0] == "created"
    assert "toolCallEnded" in told["kinds"]
    assert told["kinds"][-1] == "ended"
    (resumed_after,) = told["resumedAfter"]
    assert 0 < int(resumed_after) < len(told["sequences"])
    assert told["behind"] == 0


async def test_an_idempotency_key_names_one_run(folder: Path, mesh: RunningMesh) -> None:
    told = await run_client(folder, mesh.address, mesh.api_key)
    assert told["resumedAfter"] == []
    assert told["again"] == told["run"]
    assert told["refusal"] == "KEY_REUSED"


async def test_a_refusal_is_not_tried_again(folder: Path, mesh: RunningMesh) -> None:
    with pytest.raises(AssertionError, match="unauthenticated"):
        await run_client(folder, mesh.address, "nonsense")


_READS = """
import { events } from "./events.ts";
for (const last of ["event: end\\ndata: {}\\n\\n", 'event: error\\ndata: {"code": 13}\\n\\n', ""]) {
  const seen: string[] = [];
  const answer = new Response(`id: 1\\ndata: a\\n\\n${last}`);
  try {
    for await (const { data } of events(answer)) seen.push(data);
  } catch (error) {
    seen.push(`${error}`);
  }
  console.log(JSON.stringify(seen));
}
"""


async def test_an_error_in_a_stream_is_no_event(folder: Path, tmp_path: Path) -> None:
    for name in ("node_modules", "package.json", "tsconfig.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/events.ts").write_bytes((folder / "src/events.ts").read_bytes())
    (tmp_path / "src/reads.ts").write_text(_READS)
    told = (await output_of(tmp_path, "src/reads.ts", "", "")).splitlines()
    assert [json.loads(line) for line in told] == [
        ["a"],
        ["a", 'Error: the stream failed: {"code": 13}'],
        ["a", "Error: the stream broke off"],
    ]


async def test_the_lines_of_the_readme_run(folder: Path, mesh: RunningMesh, tmp_path: Path) -> None:
    for name in ("node_modules", "gen", "package.json", "tsconfig.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/follow.ts").write_bytes((folder / "src/follow.ts").read_bytes())
    names = ("src/node.ts", "src/browser.ts")
    text = README.read_text("utf-8").replace("127.0.0.1:8080", mesh.address)
    text = text.replace("rmt_of_a_member", mesh.api_key)
    for name, lines in zip(names, _BLOCK.findall(text), strict=True):
        (tmp_path / name).write_text(lines)
    run_tool(tmp_path, "tsc", "--project", ".", "--noEmit", "--skipLibCheck")
    for name in names:  # gRPC-Web needs no more than fetch: Node runs the browser's lines too.
        told = (await output_of(tmp_path, name, mesh.address, mesh.api_key)).splitlines()
        assert told[0].split() == ["1n", "created"]
        assert told[-1] == "17 * 23 = 391"


def test_the_lock_names_no_registry() -> None:
    lock = (SOURCES / "package-lock.json").read_text("utf-8")
    assert json.loads(lock)["packages"]
    assert not re.search(r"https?://|\"resolved\"", lock)
