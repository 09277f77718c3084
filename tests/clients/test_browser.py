"""A web page runs an agent over gRPC-Web and REST, in a real browser, from another origin.

Whether a page may is decided by the gateway's CORS settings and enforced by the browser, so only a
browser can show that both hold: a page of the listed origin sees every event, the same page of
another origin nothing, and no run of its own starts.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from tests.clients.relay import Cut, before, relay
from tests.clients.typescript_workspace import SCRIPTS, environment, run_tool, workspace
from tests.integration.clients import bearer, channel
from tests.integration.conftest import RunningMesh
from tests.ports import free_ports
from tests.programs import program
from tests.waiting import PATIENCE, in_time

# The first test installs packages where the cache has none.
pytestmark = pytest.mark.timeout(300)
DRIVE_TIMEOUT_S = 90.0
SEEN = "/seen"
"""What the page asks its own server for when it has its first event."""
SEEN_TIMEOUT_S = 30.0
CONNECTIONS = 16
"""More than a browser opens to one host."""


class _Pages(http.server.SimpleHTTPRequestHandler):
    """Serves the page's files, and hears that it has seen an event."""

    seen = threading.Event()

    def do_GET(self) -> None:
        if self.path != SEEN:
            super().do_GET()
            return
        self.seen.set()
        self.send_response(http.HTTPStatus.NO_CONTENT)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's own name
        """Says nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page and its script."""
    folder = workspace()
    target = tmp_path_factory.mktemp("site")
    outputs = [f"--outfile={target / 'page.js'}", "--bundle", "--format=esm", "--log-level=error"]
    run_tool(folder, "esbuild", "src/browser.ts", *outputs)
    (target / "page.html").write_bytes((folder / "page.html").read_bytes())
    return target


@pytest.fixture
def served(site: Path) -> Iterator[Callable[[int], str]]:
    """Serves the page on a port and returns its address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(port: int) -> str:
        handler = functools.partial(_Pages, directory=site)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{port}/page.html"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


async def visited(page: str, gateway: str, key: str, task: str) -> Any:
    """What a browser makes of the page."""
    chromium = program("chromium", package="chromium")
    folder = workspace()
    given = urlencode({"baseUrl": f"http://{gateway}", "key": key, "task": task})
    process = await asyncio.create_subprocess_exec(
        SCRIPTS / "node",
        "src/drive.ts",
        str(chromium),
        f"{page}#{given}",
        cwd=folder,
        env=environment(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await in_time(process.communicate(), DRIVE_TIMEOUT_S)
    except TimeoutError:
        process.terminate()  # It closes its browser then.
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


def once(cut: Cut) -> Cut:
    """Cuts once only, on whichever connection the browser chose."""
    done = False

    def single(chunk: bytes) -> bool:
        nonlocal done
        here = not done and cut(chunk)
        done = done or here
        return here

    return single


async def tasks_of_runs(mesh: RunningMesh) -> set[str]:
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        request = agent_service_pb2.ListRunsRequest(page_size=200)
        page = await agents.ListRuns(request, metadata=bearer(mesh.api_key), timeout=10 * PATIENCE)
    return {run.task for run in page.runs}


async def test_a_page_of_a_listed_origin_runs_an_agent(
    mesh: RunningMesh, served: Callable[[int], str]
) -> None:
    page = served(mesh.pages_port)
    cut = once(before(b"tools/calculator"))
    _Pages.seen.clear()

    async def seen() -> None:
        """Until the page has an event: cut sooner, its browser might hand out none."""
        assert await asyncio.to_thread(_Pages.seen.wait, SEEN_TIMEOUT_S)

    async with relay(mesh.address, *[cut] * CONNECTIONS, ready=seen) as broken:
        told = await visited(page, broken.address, mesh.api_key, "What is 17 * 23?")
    assert told["origin"] in mesh.topology.cors.origins
    web = told["grpcWeb"]
    assert "error" not in web, told
    assert web["result"].endswith("391")
    assert web["sequences"] == list(range(1, len(web["sequences"]) + 1))
    assert broken.cuts == 1
    (resumed_after,) = web["resumedAfter"]
    assert 0 < resumed_after < len(web["sequences"])
    rest = told["rest"]
    assert "error" not in rest, told
    assert rest["result"].endswith("391")
    assert rest["before"] == ["1", "2", "3"]
    ids = [int(each) for each in rest["before"] + rest["behind"]]
    assert ids == list(range(1, len(ids) + 1))


async def test_a_page_of_another_origin_is_shut_out(
    mesh: RunningMesh, served: Callable[[int], str]
) -> None:
    (port,) = free_ports(1)
    task = "What is 40 + 2?"
    told = await visited(served(port), mesh.address, mesh.api_key, task)
    assert told["origin"] not in mesh.topology.cors.origins
    assert "Failed to fetch" in told["grpcWeb"]["error"]
    assert "Failed to fetch" in told["rest"]["error"]
    assert any("CORS policy" in message for message in told["messages"]), told
    assert task not in await tasks_of_runs(mesh)


async def test_a_page_with_a_wrong_key_is_told_so(
    mesh: RunningMesh, served: Callable[[int], str]
) -> None:
    told = await visited(served(mesh.pages_port), mesh.address, "nonsense", "What is 1 + 1?")
    assert "unauthenticated" in told["grpcWeb"]["error"]
    assert "HTTP 401" in told["rest"]["error"]
    assert "CREDENTIAL_INVALID" in told["rest"]["error"]
