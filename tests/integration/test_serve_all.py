"""`remit serve all`: six services in one process behave as six processes do."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remit.cli import exit_codes
from remit.gateway.bootstrap import render_binary
from remit.gateway.topology import Topology
from remit.local.certificates import ensure_certificates
from remit.local.envoy_process import EnvoyProcess, find_envoy
from remit.local.first_key import ensure_api_key
from remit.local.postgres_server import EmbeddedPostgres
from remit.local.probes import not_ready
from remit.local.process import ProcessSpec, Supervised
from remit.local.progress import PlainReporter
from remit.local.state import StateDirectory, write_private
from remit.local.wiring import Wiring, ensure_secrets
from remit.rpc.clock import SystemClock
from tests.integration.conftest import REMIT, make_topology, remit
from tests.ordering import one_at_a_time
from tests.scratch import scratch_folder
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder("remit-all-") as made:
        yield made


async def test_six_services_in_one_process_run_an_agent(folder: Path) -> None:
    state, clock = StateDirectory.open(folder / "state"), SystemClock()
    topology = make_topology({}).model_copy(update={"tls_dir": str(state.folder / "tls")})
    write_private(state.topology_file, topology.dump())
    ensure_certificates(state, clock)
    secrets = ensure_secrets(state)
    state.envoy_file.write_bytes(render_binary(topology))
    reporter = PlainReporter(io.StringIO())
    postgres = await EmbeddedPostgres.prepare(state.postgres)
    envoy = EnvoyProcess(topology)
    parts: list[Supervised] = []

    async def start(spec: ProcessSpec) -> None:
        parts.append(Supervised(spec, reporter, clock))
        await parts[-1].start()

    try:
        await start(postgres.spec(max_connections=80, log=state.log_file("postgres")))
        dsns = await postgres.provision()
        await ensure_api_key(state, dsns["policy"], secrets)
        specs = [spec for _, spec in Wiring(state, topology, dsns, secrets, drain_s=5).services()]
        environment = {
            key: value for spec in specs for key, value in (spec.environment or {}).items()
        }
        with one_at_a_time():
            await start(envoy.spec(state, find_envoy(None)))
            await start(
                ProcessSpec(
                    name="all",
                    command=(*REMIT, "serve", "all"),
                    environment=environment,
                    log=state.log_file("all"),
                    ready=lambda: all_ready(topology),
                )
            )
            await eventually(lambda: routed(envoy), timeout_s=60)
        result = remit(
            os.environ | {"REMIT_STATE": str(state.folder)},
            "run",
            "--address",
            str(topology.edge),
            "What is 17 * 23?",
        )
        assert result.returncode == exit_codes.OK, result.stdout + result.stderr
        assert "391" in result.stdout
    finally:
        for part in reversed(parts):
            await part.stop()
        postgres.forget_socket_folder()


async def all_ready(topology: Topology) -> str:
    for replicas in topology.replicas.values():
        if reason := await not_ready(replicas[0].host, replicas[0].http_port):
            return reason
    return ""


async def routed(envoy: EnvoyProcess) -> bool:
    return not await envoy.unhealthy_replicas()
