"""The plain port: statistics and readiness, and nothing that changes Envoy."""

from __future__ import annotations

from tests.gateway.conftest import World
from tests.rest import Client


async def test_two_pages_and_no_other(world: World) -> None:
    client = Client(str(world.topology.stats))
    statistics = await client.get("/stats/prometheus")
    assert statistics.status == 200
    assert b"envoy_cluster_upstream_rq_total" in statistics.body
    ready = await client.get("/ready")
    assert (ready.status, ready.body) == (200, b"LIVE\n")
    for path in ("/", "/stats", "/clusters", "/config_dump", "/stats/prometheus/", "/help"):
        assert (await client.get(path)).status == 404
    for path in ("/quitquitquit", "/healthcheck/fail", "/drain_listeners", "/logging"):
        assert (await client.call("POST", path)).status == 404
    for path in ("/stats/../quitquitquit", "//quitquitquit", "/ready/%2e%2e/quitquitquit"):
        assert (await client.call("POST", path)).status in {400, 404}
    assert (await client.get("/ready")).status == 200, "Envoy goes on"


async def test_pages_are_read_alone_and_follow_envoy(world: World) -> None:
    client = Client(str(world.topology.stats))
    for verb in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        async with client.stream(verb, "/stats/prometheus") as stream:
            assert stream.answer.status == 405
    await Client(str(world.topology.admin)).call("POST", "/healthcheck/fail")
    assert (await client.get("/ready")).status == 503
