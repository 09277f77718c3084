"""What is wrong with docker-compose.yml: checks yield faults, so that tests can mutate it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from remit.gateway.topology import Topology
from remit.local.installation import Installation
from remit.rpc.contracts import AREAS
from tests.deployment.compose import ROOT, Compose, Service
from tests.deployment.references import (
    TLS_FILES,
    Place,
    command_faults,
    configuration_faults,
    is_file,
    parties,
    service_faults,
    topology_of,
)

HARDENED: Final[Mapping[str, Any]] = {
    "user": "10001:10001",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}
CONDITIONS: Final = {"service_started", "service_healthy", "service_completed_successfully"}
SERVICE_KEYS: Final = frozenset(
    "build cap_add cap_drop command configs depends_on deploy entrypoint environment healthcheck"  # noqa: SIM905
    " image logging network_mode networks ports profiles read_only restart security_opt shm_size"
    " stop_grace_period tmpfs user volumes".split()
)
TOP_KEYS: Final = {"name", "services", "networks", "volumes", "configs"}
EGRESS: Final = {"inference", "tools", "vllm"}
MASQUERADE: Final = "com.docker.network.bridge.enable_ip_masquerade"


def faults(compose: Compose, installation: Installation) -> list[str]:
    """Everything that is wrong."""
    topology = topology_of(compose.config("topology"))
    return [
        *_unknown(compose),
        *_unused(compose),
        *(f for s in compose.services.values() for f in _form(compose, s)),
        *(f for s in compose.services.values() for f in _needs(compose, s)),
        *_built(compose),
        *(
            f
            for s in compose.services.values()
            if s.is_remit
            for f in _ours(compose, s, topology, installation)
        ),
        *_gateway(compose, topology, installation),
        *_drain(compose, topology),
        *_egress(compose),
        *_reach(compose),
    ]


def _unknown(compose: Compose) -> Iterator[str]:
    for key in compose.document:
        if key not in TOP_KEYS and not key.startswith("x-"):
            yield f"unknown key {key}"
    for name, service in compose.services.items():
        yield from (f"{name}: unknown key {k}" for k in set(service.document) - SERVICE_KEYS)


def _unused(compose: Compose) -> Iterator[str]:
    services = compose.services.values()
    used = {
        "configs": {name for s in services for name in s.configs.values()},
        "volumes": {m.source for s in services for m in s.mounts if m.is_volume},
        "networks": {name for s in services for name in s.networks},
    }
    for kind, names in used.items():
        for name in names ^ set(compose.document[kind]):
            yield f"{kind}: {name} is not declared or not used"


def _form(compose: Compose, service: Service) -> Iterator[str]:
    name = service.name
    if service.document.get("restart") not in {"unless-stopped", "no"}:
        yield f"{name}: restart policy"
    if not _is_limited(service):
        yield f"{name}: no limit of memory, or one of CPUs"
    for config in service.configs.values():
        if service.document.get("read_only") and "content" in compose.document["configs"][config]:
            yield f"{name}: an engine writes {config} into the container, which is read-only"
    for mount in service.mounts:
        if not mount.is_volume and not (ROOT / mount.source).is_dir():
            yield f"{name}: no folder {mount.source}"
    for port in service.document.get("ports", ()):
        if not str(port).startswith("127.0.0.1:"):
            yield f"{name}: publishes {port} beyond loopback"


def _needs(compose: Compose, service: Service) -> Iterator[str]:
    for need, condition in service.needs.items():
        if need not in compose.services or condition not in CONDITIONS:
            yield f"{service.name}: depends on {need} {condition}"
        elif condition.endswith("successfully") and not compose.services[need].is_job:
            yield f"{service.name}: {need} never completes"
    if service.is_job and not any(service.name in s.needs for s in compose.services.values()):
        yield f"{service.name}: nothing waits for it, so that `up --wait` calls its end a failure"


def _built(compose: Compose) -> Iterator[str]:
    """One service builds the image, and whoever uses it comes after that one.

    Several builds of one tag at a time may fail: "image already exists".
    """
    ours = {name: s for name, s in compose.services.items() if s.is_remit}
    builders = [name for name, s in ours.items() if "build" in s.document]
    if len(builders) != 1:
        yield f"the image is built by {builders}"
    for name in set(ours) - set(builders):
        if not set(builders) & _before(compose, name):
            yield f"{name}: does not wait for the image"


def _before(compose: Compose, name: str) -> set[str]:
    """Whatever comes before a service, directly or not."""
    needs = set(compose.services[name].needs) & set(compose.services)
    return needs.union(*(_before(compose, need) for need in needs))


def _is_limited(service: Service) -> bool:
    """Memory is bounded; CPUs are not: an engine refuses more of them than its host has."""
    resources = service.document.get("deploy", {}).get("resources", {})
    limits = resources.get("limits", {})
    if resources.get("reservations", {}).get("devices"):
        return True
    memory = re.fullmatch(r"\d+[MG]", limits.get("memory", ""))
    return memory is not None and "cpus" not in limits


def places(compose: Compose, service: Service, installation: Installation) -> list[Place]:
    """What the service finds at its mounts."""
    made_at = {m.source: m.target for m in compose.services["keys"].mounts}
    seen = [
        Place(str(Path(target).parent), frozenset({Path(target).name}))
        for target in service.configs
    ]
    for mount in service.mounts:
        part = made_at.get(mount.source, "").removeprefix("/installation/")
        if not mount.read_only:
            seen.append(Place(mount.target, None))
        elif part:
            seen.append(Place(mount.target, _files_below(installation.folder / part)))
        else:
            seen.append(Place(mount.target, frozenset({"envoy.json"})))
    return seen


@cache
def _files_below(folder: Path) -> frozenset[str]:
    return frozenset(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def _ours(
    compose: Compose, service: Service, topology: Topology, installation: Installation
) -> Iterator[str]:
    name, words = service.name, service.command
    mounted = places(compose, service, installation)
    yield from (f"{name}: {k}" for k, v in HARDENED.items() if service.document.get(k) != v)
    yield from command_faults(name, words, mounted)
    for target, source in service.configs.items():
        yield from configuration_faults(Path(target).name, compose.config(source))
    if words[0] == "serve":
        yield from _serving(service, mounted, topology)
    elif words[1] == "make" and words[0] in {"secrets", "certificates"}:
        yield from _making(service)
    elif words[0] in {"databases", "migrate"}:
        folder = service.environment["REMIT_SECRETS_DIR"]
        if not is_file(f"{folder}/REMIT_ADMIN_DSN", mounted):
            yield f"{name}: the setup's secrets are not mounted"


def _serving(service: Service, mounted: list[Place], topology: Topology) -> Iterator[str]:
    name = service.name
    if service.command != ["serve", name]:
        yield f"{name}: serves {service.command}"
    yield from service_faults(name, service.environment, mounted, topology)
    prefix = f"REMIT_{name.upper()}_"
    if not service.environment[f"{prefix}MESH_ADDRESS"].startswith("gateway:"):
        yield f"{name}: its mesh address is not the gateway"
    drain_s = float(service.environment[f"{prefix}DRAIN_S"])
    if _seconds(service.document["stop_grace_period"]) < 2 * drain_s + 5:
        yield f"{name}: killed before its drain ends"


def _making(service: Service) -> Iterator[str]:
    targets = {mount.target for mount in service.mounts}
    if targets != {f"{service.command[2]}/{party}" for party in parties()}:
        yield f"{service.name}: does not make each party's part"
    if "--database" in service.command and "postgres:5432" not in service.command:
        yield f"{service.name}: another database"


def _gateway(compose: Compose, topology: Topology, installation: Installation) -> Iterator[str]:
    gateway, render = compose.services["gateway"], compose.services["gateway-configuration"]
    mounted = places(compose, gateway, installation)
    file = Path(_option(gateway, "--config-path"))
    out = Path(_option(render, "--out"))
    volumes = {m.source for m in gateway.mounts if m.target == str(file.parent)}
    if volumes != {m.source for m in render.mounts if m.target == str(out.parent)}:
        yield "gateway: its file comes from nowhere"
    if file.name != out.name:
        yield "gateway: its file has another name"
    for party in ("edge", "mesh"):
        for name in TLS_FILES:
            if not is_file(f"{topology.tls_dir}/{party}/{name}", mounted):
                yield f"gateway: {party}/{name} is not mounted"
    if gateway.restarted_with != {"gateway-configuration", "certificates"}:
        yield f"gateway: is restarted with {gateway.restarted_with}"
    if gateway.document["ports"] != [f"127.0.0.1:8080:{topology.edge.port}"]:
        yield f"gateway: publishes {gateway.document['ports']}"
    if any(topology.replicas[area][0].host != area for area in AREAS):
        yield "topology: a host is no service"


def _drain(compose: Compose, topology: Topology) -> Iterator[str]:
    drain = compose.services["gateway-drain"]
    if drain.document["network_mode"] != "service:gateway":
        yield "gateway-drain: cannot reach Envoy's admin interface"
    if drain.health != ["remit", "probe", str(topology.admin.port)]:
        yield "gateway-drain: its health check asks another port"
    limit_s = float(_option(drain, "--limit")) + float(_option(drain, "--lag"))
    if _seconds(drain.document["stop_grace_period"]) < limit_s + 5:
        yield "gateway-drain: killed before its drain ends"
    if not {"gateway", "agent"} <= set(drain.needs):
        yield "gateway-drain: stopped too late"
    if drain.restarted_with != {"gateway"}:
        yield "gateway-drain: stays in the network of a gateway that is gone"


def _egress(compose: Compose) -> Iterator[str]:
    networks = compose.document["networks"]
    outside = {name for name, network in networks.items() if not (network or {}).get("internal")}
    if outside != {"egress", "front"} or networks["front"]["driver_opts"][MASQUERADE] != "false":
        yield f"networks: {outside} reach out"
    for name, service in compose.services.items():
        if "egress" in service.networks and name not in EGRESS:
            yield f"{name}: reaches out"
        if service.is_remit and "front" in service.networks:
            yield f"{name}: can be published"


def _reach(compose: Compose) -> Iterator[str]:
    services = compose.services
    expected = {area: {"mesh", "data"} for area in AREAS}
    expected["inference"] |= {"egress", "models"}
    expected["tools"] |= {"egress"}
    expected["gateway"] = {"front", "mesh"}
    expected |= {name: {"data"} for name in ("postgres", "databases", "migrations")}
    expected["vllm"] = {"models", "egress"}
    expected |= {"prometheus": {"front", "mesh"}, "jaeger": {"front", "mesh"}}
    for name, networks in expected.items():
        if services[name].networks != networks:
            yield f"{name}: is in {services[name].networks}"
    for name in ("keys", "certificates", "gateway-configuration"):
        if services[name].document.get("network_mode") != "none":
            yield f"{name}: needs no network"


def _option(service: Service, option: str) -> str:
    return dict(pairwise(service.command))[option]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return float(match[1])
