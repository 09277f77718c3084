"""The benchmark itself still runs: everything that it measures, once; the figures say nothing."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.bench.trees import REPOSITORY

TIMEOUT_S = 540.0

pytestmark = [pytest.mark.storm, pytest.mark.timeout(TIMEOUT_S + 30)]


async def test_a_quick_round_measures_everything() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.mesh", "--quick"),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        process.terminate()
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode()
    for what in ("health check, direct over mTLS", "runs/s", "chunks/s", "PSS loaded"):
        assert what in output.decode()
