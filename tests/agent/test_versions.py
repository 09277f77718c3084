"""An agent's definition changes while its runs are alive: each run keeps what it began with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica, World
from tests.agent.outside import Generate, Turn, results, says
from tests.waiting import eventually

DEFINITION = """\
name: tester
display_name: Tester
description: Tests.
instructions: Old.
model: builtin-rules
tools: [calculator]
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The agents before a change and after it."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (old / "tester.yaml").write_text(DEFINITION)
    (new / "tester.yaml").write_text(
        DEFINITION.replace("Old.", "New.").replace("calculator", "clock")
    )
    return old, new


async def _changed_meanwhile(
    replica: StartReplica, world: World, folders: tuple[Path, Path]
) -> tuple[Replica, run_pb2.Run]:
    """A run that began with the old definition; its worker is gone, and the new one is in force."""
    world.tools.effects.hold = asyncio.Event()
    first = await replica(agents_dir=folders[0])
    run = await first.client().create(agent="agents/tester")
    await eventually(lambda: world.tools.effects.held == 1)
    await first.kill()
    world.tools.effects.hold.set()
    return await replica(agents_dir=folders[1]), run


async def test_a_run_keeps_the_version_that_it_began_with(
    replica: StartReplica, world: World, folders: tuple[Path, Path]
) -> None:
    second, run = await _changed_meanwhile(replica, world, folders)
    ended = await second.client().ended(run.name)
    assert ended.result == "The result is 391."
    assert ended.agent_version == run.agent_version
    told = {asked.messages[0].text for asked in world.inference.requests}
    offered = {tool.name for asked in world.inference.requests for tool in asked.tools}
    assert (told, offered) == ({"Old."}, {"tools/calculator"})
    fresh = await second.client().create("no tools here", agent="agents/tester")
    assert fresh.agent_version != run.agent_version
    await second.client().ended(fresh.name)
    assert world.inference.requests[-1].messages[0].text == "New."


async def test_a_run_outlives_the_removal_of_its_agent(
    replica: StartReplica, world: World, folders: tuple[Path, Path]
) -> None:
    (folders[1] / "tester.yaml").unlink()
    second, run = await _changed_meanwhile(replica, world, folders)
    assert (await second.client().ended(run.name)).result == "The result is 391."
    with pytest.raises(RemitError, match="agents/tester does not exist") as caught:
        await second.client().create(agent="agents/tester")
    assert caught.value.reason == reasons.ERROR_REASON_AGENT_NOT_FOUND


async def test_an_agent_that_was_removed_is_no_sub_run_and_the_model_is_told(
    replica: StartReplica, world: World, folders: tuple[Path, Path]
) -> None:
    def think(asked: Generate) -> Turn:
        told = [m for m in asked.messages if m.role == message_pb2.ROLE_TOOL]
        if len(told) < 2:
            # First a tool, so that the run is held there; then the agent that is gone meanwhile.
            what = ("agents/helper", {"task": "Help."}) if told else ("calculator", {})
            return says("", what)
        return says(told[-1].text)

    world.inference.think = think
    world.tools.act = lambda _: results(value=1)
    old, new = folders
    (old / "tester.yaml").write_text(DEFINITION + "agents: [helper]\n")
    (old / "helper.yaml").write_text(DEFINITION.replace("tester", "helper"))
    second, run = await _changed_meanwhile(replica, world, (old, new))
    ended = await second.client().ended(run.name)
    assert ended.result.startswith("AGENT_NOT_FOUND: agents/helper does not exist")
