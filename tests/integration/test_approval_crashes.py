"""Policy is killed at each write about an approval, and what people approved happens once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from remit.api.agent.v1 import run_pb2
from remit.api.audit.v1 import event_pb2
from tests.integration.approving import DOWN, approving_mesh, waiting_run
from tests.integration.conftest import RunningMesh
from tests.integration.crash_hook import sitecustomize as crash_hook
from tests.integration.storming import Kill, arm
from tests.integration.test_approvals import bobs_key, end_of, recorded
from tests.waiting import eventually

assert bobs_key  # the fixture of a member's key

POINTS = crash_hook.points("policy", {"policy": crash_hook.APPROVING})


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where points are armed."""
    folder = tmp_path_factory.mktemp("orders")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, orders: Path) -> Iterator[RunningMesh]:
    """A mesh that asks people, and whose policy dies where it is told to."""
    hook = Path(crash_hook.__file__).parent
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path, "PYTHON_CRASH_FOLDER": str(orders)}
    with approving_mesh(tmp_path_factory.mktemp("policies"), environment) as mesh:
        yield mesh


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", POINTS)
async def test_an_approved_effect_happens_once_whenever_policy_dies(
    guarded: RunningMesh, bobs_key: str, orders: Path, point: str
) -> None:
    number = POINTS.index(point)
    _, fired = arm(orders, Kill("policy-0", "policy", point, 0), number=number)
    file = f"approved-{number}.md"
    run, approval = await waiting_run(guarded, bobs_key, file)

    def decided() -> bool:
        arguments = ("approvals", "approve", approval, "--request-id", f"a{number}")
        return guarded.run(*arguments).returncode == 0

    assert await eventually(decided, 60)
    assert await eventually(fired.exists, 60), "policy died there"

    async def ends() -> list[run_pb2.RunEvent]:
        try:
            return await end_of(guarded, bobs_key, run.name)
        except grpc.aio.AioRpcError as error:
            if error.code() not in DOWN:
                raise
            return []

    events = await eventually(ends, 60)
    ended = events[-1].ended.run
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED, ended
    assert [artifact.name for artifact in ended.artifacts] == [file]
    assert len([event for event in events if event.HasField("tool_call_ended")]) == 1

    async def all_recorded() -> bool:
        found = await recorded(guarded, approval)
        succeeded = {action for action, outcome in found if outcome == event_pb2.OUTCOME_SUCCEEDED}
        return {"approvals.ask", "approvals.decide", "approvals.use"} <= succeeded

    assert await eventually(all_recorded, 30)
