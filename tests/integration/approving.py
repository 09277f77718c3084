"""A mesh whose policies want an approval before a file is written, and runs that wait for it.

They also want what `docs/policies/guardrails.cedar` says of what is screened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.policy.schema import SHIPPED_POLICIES
from tests.integration.clients import a_run, bearer, channel
from tests.integration.conftest import RunningMesh, started_mesh
from tests.waiting import eventually

POLICY = """
@id("files-with-approval")
@reason("files are written only with approval")
@approval("role:admin; expires=1h")
forbid (principal, action == Action::"tools.call", resource == Tool::"tools/write_file");
"""

GUARDRAILS = Path(__file__).parents[2] / "docs" / "policies" / "guardrails.cedar"

DOWN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
"""What a call meets while a part is down."""


@contextlib.contextmanager
def approving_mesh(
    folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[RunningMesh]:
    """A mesh with the shipped policies and these, which lie in `folder`."""
    folder.chmod(0o755)
    shipped = SHIPPED_POLICIES / "default.cedar"
    (folder / shipped.name).write_text(shipped.read_text("utf-8"))
    (folder / "files.cedar").write_text(POLICY)
    guardrails = GUARDRAILS.read_text("utf-8").replace("orgs/acme", "orgs/local")
    (folder / GUARDRAILS.name).write_text(guardrails)
    policies = {"REMIT_POLICY_POLICIES_DIR": str(folder)}
    with started_mesh(environment=policies | dict(environment or {})) as mesh:
        yield mesh


async def waiting_run(mesh: RunningMesh, key: str, file: str) -> tuple[run_pb2.Run, str]:
    """A run of bob's that waits for people, and the approval that it waits for."""
    request = a_run(f"Write the file {file} with the text hello", agent="agents/clerk")
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        name = (await agents.CreateRun(request, metadata=bearer(key))).run.name

        async def waits() -> run_pb2.Run | None:
            asked = agent_service_pb2.GetRunRequest(name=name)
            try:
                run = (await agents.GetRun(asked, metadata=bearer(key))).run
            except grpc.aio.AioRpcError as error:  # while policy is down nobody is let in
                if error.code() not in DOWN:
                    raise
                return None
            return run if run.approvals else None

        run = await eventually(waits, 60)
    assert run is not None
    return run, run.approvals[0]
