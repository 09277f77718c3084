"""docker-compose.yml, rehearsed: its jobs, services and stop, and a run by the first key."""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.deployment.compose import FILE, Compose
from tests.deployment.rehearsal import Rehearsal
from tests.ordering import one_at_a_time
from tests.scratch import scratch_folder
from tests.waiting import in_time

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder("remit-compose-") as made:
        yield made


@pytest.fixture
async def rehearsal(folder: Path) -> AsyncIterator[Rehearsal]:
    running = Rehearsal(Compose.load(), folder)
    try:
        yield running
    finally:
        await running.kill()


def first_key_command() -> list[str]:
    """The line at the head of the file, after `docker compose exec`."""
    [line] = [x for x in FILE.read_text().splitlines() if "docker compose exec policy" in x]
    return shlex.split(line.lstrip("# ").removeprefix("docker compose exec policy "))


async def test_the_compose_file_runs_an_agent_with_the_first_key(rehearsal: Rehearsal) -> None:
    with one_at_a_time():
        await rehearsal.up()
    key = (await rehearsal.execute("policy", *first_key_command())).strip()
    await asyncio.gather(
        run_an_agent(rehearsal, key), *map(rehearsal.run_again, ("keys", "databases"))
    )
    assert (await rehearsal.execute("policy", *first_key_command())).strip() == key
    no_secret_is_open_to_others(rehearsal)
    codes = await rehearsal.down()
    assert next(iter(codes)) == "gateway-drain"
    assert list(codes).index("agent") < list(codes).index("policy")
    assert codes == dict.fromkeys(codes, 0)
    assert "drained" in rehearsal.log("gateway-drain")


async def run_an_agent(rehearsal: Rehearsal, key: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remit.cli.main", "run", "--address", rehearsal.edge),
        "What is 17 * 23?",
        env=os.environ | {"REMIT_API_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await in_time(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    assert "391" in output.decode()


def no_secret_is_open_to_others(rehearsal: Rehearsal) -> None:
    for file in (rehearsal.folder / "volumes").rglob("*"):
        if file.is_file() and file.name not in {"log.pub", "envoy.json"}:
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
