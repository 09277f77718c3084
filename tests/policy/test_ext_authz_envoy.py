"""The exchange through a real Envoy: what the service gets and what a refused client reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from remit.api.agent.v1 import agent_catalog_service_pb2, agent_catalog_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.local.envoy_process import find_envoy
from remit.policy.ext_authz import EdgeAuthorization
from remit.rpc.envoy import add_authorization_servicer
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.mesh import Mesh
from remit.rpc.server import build_server
from tests.policy.world import ALICE, World
from tests.ports import free_ports
from tests.waiting import eventually


class Echo(agent_catalog_service_pb2_grpc.AgentCatalogServiceServicer):
    """Answers with the metadata that arrived, as the page token."""

    async def ListAgents(
        self,
        request: agent_catalog_service_pb2.ListAgentsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_catalog_service_pb2.ListAgentsResponse:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        return agent_catalog_service_pb2.ListAgentsResponse(next_page_token=json.dumps(metadata))

    async def GetAgent(
        self,
        request: agent_catalog_service_pb2.GetAgentRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_catalog_service_pb2.GetAgentResponse:
        raise NotImplementedError


def cluster(name: str, port: int) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def config(edge: int, policy: int, upstream: int) -> dict[str, Any]:
    filters = "type.googleapis.com/envoy.extensions.filters"
    ext_authz = {
        "@type": f"{filters}.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "policy"}, "timeout": "2s"},
        "failure_mode_allow": False,
    }
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "codec_type": "HTTP2",
        "http_filters": [
            {"name": "authz", "typed_config": ext_authz},
            {
                "name": "router",
                "typed_config": {"@type": f"{filters}.http.router.v3.Router"},
            },
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
                }
            ]
        },
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": edge}},
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [cluster("policy", policy), cluster("upstream", upstream)],
        }
    }


@contextlib.asynccontextmanager
async def serving(server: grpc.aio.Server, port: int) -> AsyncIterator[None]:
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def running_envoy(folder: Path, bootstrap: dict[str, Any], port: int) -> AsyncIterator[None]:
    path = folder / "envoy.json"
    path.write_text(json.dumps(bootstrap))
    process = await asyncio.create_subprocess_exec(
        str(find_envoy(None)),
        *("-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"),
    )

    async def accepts() -> bool:
        assert process.returncode is None, "envoy refused its configuration"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(accepts)
        yield
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
async def edge(world: World, tmp_path: Path) -> AsyncIterator[int]:
    """The port of an edge that asks the world's policy and routes to an echo."""
    edge, policy, upstream = free_ports(3)
    guard = Guard(
        audience=options_pb2.CALLER_POLICY,
        verifier=world.verifier,
        clock=world.clock,
        max_in_flight=100,
    )
    authorization, _ = build_server(
        guard,
        [
            (
                add_authorization_servicer,
                EdgeAuthorization(world.credentials, world.policies, world.accesses, world.clock),
            )
        ],
        identify=lambda _: options_pb2.CALLER_PUBLIC,
    )
    echo = grpc.aio.server()
    agent_catalog_service_pb2_grpc.add_AgentCatalogServiceServicer_to_server(Echo(), echo)
    async with (
        serving(authorization, policy),
        serving(echo, upstream),
        running_envoy(tmp_path, config(edge, policy, upstream), edge),
    ):
        yield edge


async def call(port: int, *metadata: tuple[str, str]) -> dict[str, str]:
    async with Mesh.connect(f"127.0.0.1:{port}", None) as mesh:
        stub = mesh.stub(agent_catalog_service_pb2_grpc.AgentCatalogServiceStub)
        response = await stub.ListAgents(
            agent_catalog_service_pb2.ListAgentsRequest(), metadata=metadata
        )
    seen: dict[str, str] = json.loads(response.next_page_token)
    return seen


async def test_the_service_gets_the_remit_alone_and_a_refused_client_the_whole_error(
    world: World, edge: int
) -> None:
    secret = await world.admin_secret()
    seen = await call(edge, ("authorization", f"Bearer {secret}"), ("remit-token", "forged"))
    assert secret not in json.dumps(seen)
    assert "authorization" not in seen
    remit = await world.verifier.verify(
        seen["remit-token"], audience=options_pb2.CALLER_AGENT, presenter=options_pb2.CALLER_PUBLIC
    )
    assert remit.subject == ALICE
    seen = await call(edge, ("x-api-key", secret))
    assert "x-api-key" not in seen

    await world.database.execute("UPDATE api_keys SET revoke_time = now()")
    world.credentials.forget(secret.split("_")[1])
    for metadata, reason in (
        ((), error_reason_pb2.ERROR_REASON_CREDENTIAL_MISSING),
        ((("remit-token", "forged"),), error_reason_pb2.ERROR_REASON_CREDENTIAL_MISSING),
        (
            (("authorization", f"Bearer {secret}"),),
            error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED,
        ),
        ((("authorization", "Bearer x"),), error_reason_pb2.ERROR_REASON_CREDENTIAL_INVALID),
    ):
        with pytest.raises(RemitError) as refused:
            await call(edge, *metadata)
        assert refused.value.reason == reason
        assert refused.value.next_step
        assert refused.value.message


async def test_without_its_database_clients_are_asked_to_come_again(
    world: World, edge: int
) -> None:
    secret = await world.admin_secret()
    await world.database._pool.close()
    with pytest.raises(RemitError) as refused:
        await call(edge, ("authorization", f"Bearer {secret}"))
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert refused.value.code == grpc.StatusCode.UNAVAILABLE
    assert refused.value.retry_after_s == 1.0
