"""What is wrong with network policies: exactly the flows of the mesh must be open, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from remit.gateway.topology import Topology
from remit.rpc.contracts import AREAS
from tests.deployment.kubernetes_faults import NAME, Cluster, Document

Flow = tuple[str, str, int]
ANYWHERE: Final = "*"
SCRAPERS: Final = "scrapers"
ADAPTER: Final = "prometheus-adapter"
API_SERVER: Final = {443, 6443}
"""Its Service's port, and its own on most clusters."""
OUT: Final = {
    "inference": {443},
    "tools": {443, 465, 587},
    "vllm": {443},
    ADAPTER: API_SERVER,
}
POSTGRES: Final = 5432
PRIVATE: Final = {
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    *("100.64.0.0/10", "169.254.0.0/16"),
}


def expected(topology: Topology) -> set[Flow]:
    """Who may open a connection to whom, from the topology."""
    flows: set[Flow] = {(ANYWHERE, "gateway", topology.edge.port)}
    for area in AREAS:
        [replica] = topology.replicas[area]
        flows |= {
            (area, "gateway", topology.mesh.port),
            ("gateway", area, replica.port),
            ("prometheus", area, replica.http_port),
            (SCRAPERS, area, replica.http_port),
            (area, "postgres", POSTGRES),
            (area, "collector", 4317),
        }
    flows |= {(job, "postgres", POSTGRES) for job in ("migrations", "databases")}
    return flows | {
        ("gateway", "collector", 4317),
        ("prometheus", "gateway", topology.stats.port),
        (SCRAPERS, "gateway", topology.stats.port),
        ("inference", "vllm", 8000),
        ("grafana", "prometheus", 9090),
        (ADAPTER, "prometheus", 9090),
        (ANYWHERE, ADAPTER, 6443),
    }


def faults(cluster: Cluster) -> list[str]:
    """Flows that are open and should not be, or the other way round."""
    policies = cluster.of_kind("NetworkPolicy")
    into = {flow for policy in policies for flow in _flows(policy, "ingress", "from")}
    out_of = {flow for policy in policies for flow in _flows(policy, "egress", "to")}
    wanted = expected(cluster.topology)
    inner = {f for f in wanted if f[0] not in {ANYWHERE, SCRAPERS}}
    return [
        *(f"ingress: {flow}" for flow in into ^ wanted),
        *(f"egress: {flow}" for flow in {f for f in out_of if f[1] != ANYWHERE} ^ inner),
        *_world(cluster, {f for f in out_of if f[1] == ANYWHERE}),
        *_default(policies),
    ]


def _world(cluster: Cluster, flows: set[Flow]) -> Iterator[str]:
    """Only those with egress leave the cluster; the database may be anywhere."""
    reached = {(source, port) for source, _, port in flows if port != POSTGRES}
    for odd in reached ^ {(name, port) for name, ports in OUT.items() for port in ports}:
        yield f"egress: {odd}"
    for policy in cluster.of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("egress", ()):
            for peer in rule.get("to", ()):
                yield from _block(rule, peer)


def _block(rule: Document, peer: Document) -> Iterator[str]:
    block = peer.get("ipBlock")
    if block is None:
        return
    kept_out = set(block.get("except", ()))
    ports = {p["port"] for p in rule["ports"]}
    anywhere = ports in ({POSTGRES}, API_SERVER)
    if block["cidr"] != "0.0.0.0/0" or kept_out != ({"169.254.0.0/16"} if anywhere else PRIVATE):
        yield f"egress: {block}"


def _default(policies: list[Document]) -> Iterator[str]:
    everything = [p["spec"] for p in policies if not p["spec"]["podSelector"]]
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in everything:
        yield "nothing is denied by default"
    dns = [s for s in everything if "egress" in s]
    ports = [{(p["protocol"], p["port"]) for r in s["egress"] for p in r["ports"]} for s in dns]
    if ports != [{("UDP", 53), ("TCP", 53)}]:
        yield "names are not resolved"


def _flows(policy: Document, direction: str, side: str) -> Iterator[Flow]:
    spec = policy["spec"]
    if not spec["podSelector"]:
        return
    own = spec["podSelector"]["matchLabels"][NAME]
    kind = direction.capitalize()
    if direction in spec and kind not in spec["policyTypes"]:
        yield ("a policy without its type", own, 0)
    for rule in spec.get(direction, ()):
        for peer in rule.get(side, [{}]):
            for port in rule["ports"]:
                flow = (_peer(peer), own, int(port["port"]))
                yield flow if direction == "ingress" else (flow[1], flow[0], flow[2])


def _peer(peer: dict[str, Any]) -> str:
    if "podSelector" in peer:
        return str(peer["podSelector"]["matchLabels"][NAME])
    if "namespaceSelector" in peer:
        labels = peer["namespaceSelector"]["matchLabels"]
        return SCRAPERS if labels == {"remit.internal/scrapes": "true"} else str(labels)
    return ANYWHERE
