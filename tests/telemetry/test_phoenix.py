"""A run seen whole in Phoenix, an observability server from PyPI, as its own API tells it.

`make phoenix` puts it into a folder of its own: it brings half of PyPI, and nothing here needs it
but this test.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.rpc.contracts import AREAS
from tests.integration.clients import a_run, bearer, channel, result_of
from tests.integration.conftest import started_mesh
from tests.ports import free_ports
from tests.programs import missing
from tests.waiting import PATIENCE, eventually

PROGRAM = Path(__file__).parents[2] / ".cache" / "phoenix" / "bin" / "phoenix"
START_TIMEOUT_S = 360.0
"""It imports half of PyPI, beside a mesh that starts and other tests."""


@dataclass(frozen=True)
class Phoenix:
    """A running server."""

    process: subprocess.Popen[bytes]
    http: str
    endpoint: str
    log: Path

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.http}/healthz", timeout=5) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace, from Phoenix's REST interface."""
        url = f"{self.http}/v1/projects/default/spans?limit=1000&trace_id={trace_id}"
        try:
            with urllib.request.urlopen(url, timeout=10 * PATIENCE) as answer:  # noqa: S310 - loopback
                spans: list[dict[str, Any]] = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            assert error.code == 404, error  # noqa: PT017 - no project before the first span
            return []
        return spans


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[Phoenix]:
    if not PROGRAM.exists():
        missing("Phoenix is missing (make phoenix)")
    http_port, grpc_port = free_ports(2)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(http_port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_WORKING_DIR": str(tmp_path),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "serve"], env=environment, cwd=tmp_path, stdout=output, stderr=output
        )
    try:
        yield Phoenix(
            process, f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{grpc_port}", log
        )
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.timeout(600)
async def test_phoenix_shows_a_run_whole(phoenix: Phoenix) -> None:
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    with started_mesh(options=("--trace-endpoint", phoenix.endpoint)) as mesh:
        await eventually(phoenix.is_up, START_TIMEOUT_S)
        async with channel(mesh.address) as edge:
            stub = agent_service_pb2_grpc.AgentServiceStub(edge)
            traceparent = ("traceparent", f"00-{trace_id}-{span_id}-01")
            stream = stub.StreamRun(
                agent_service_pb2.StreamRunRequest(request=a_run()),
                metadata=(*bearer(mesh.api_key), traceparent),
                timeout=60 * PATIENCE,
            )
            run = result_of([answer.event async for answer in stream if answer.HasField("event")])
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED

        def shown() -> list[dict[str, Any]]:
            spans = phoenix.trace(trace_id)
            return spans if _is_whole(spans, span_id) else []

        spans = await eventually(shown, 120)
    by_id = {span["context"]["span_id"]: span for span in spans}
    by_kind = {kind: [s for s in spans if s["span_kind"] == kind] for kind in _KINDS}
    assert {kind: len(found) for kind, found in by_kind.items()} == _KINDS
    (agent,), (tool,) = by_kind["AGENT"], by_kind["TOOL"]
    assert agent["name"] == "invoke_agent assistant"
    assert tool["name"] == "execute_tool calculator"
    above, at = [], tool
    while (at := by_id.get(at["parent_id"], {})) and at:
        above.append(at["name"])
    assert agent["name"] in above
    tokens = sum(s["attributes"]["llm.token_count.completion"] for s in by_kind["LLM"])
    assert tokens == run.usage.output_tokens


_KINDS = {"AGENT": 1, "LLM": 2, "TOOL": 1}
"""How Phoenix reads our spans: it knows the conventions for generative AI."""


def _is_whole(spans: list[dict[str, Any]], client: str) -> bool:
    """Whether spans of every service are there, with their parents, and the closings of effects."""
    ids = {span["context"]["span_id"] for span in spans}
    services = {s["attributes"].get("remit.service") or _node(s) for s in spans}
    recorded = [s for s in spans if s["name"].endswith("/AppendOutcomes")]
    closed = {s["attributes"].get("remit.service") or _node(s) for s in recorded}
    return (
        services == {*AREAS, "gateway"}
        and all(span["parent_id"] in ids | {client} for span in spans)
        and closed == {"inference", "tools", "gateway", "audit"}
        and any(span["name"].startswith("invoke_agent") for span in spans)
    )


def _node(span: dict[str, Any]) -> str:
    return "gateway" if span["attributes"].get("component") == "proxy" else "unknown"
