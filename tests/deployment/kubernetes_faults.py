"""What is wrong with Kubernetes manifests: checks yield faults, so that tests can mutate them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Final

from remit.gateway.topology import Topology
from remit.rpc.contracts import AREAS, contracts_of
from remit.rpc.identity import dns_name, spiffe_id
from tests.deployment.compose import Compose
from tests.deployment.references import (
    TLS_FILES,
    Place,
    command_faults,
    configuration_faults,
    is_file,
    probe_pages,
    service_faults,
    topology_of,
)

Document = Mapping[str, Any]
NAMESPACE: Final = "remit"
NAME: Final = "app.kubernetes.io/name"
IMAGE: Final = "remit"
QUEUE: Final = (("agent_queue_length", "10"),)
OPTIONAL_SECRETS: Final = {"remit-providers"}
POD_SECURITY: Final = {
    "runAsNonRoot": True,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or Job."""

    document: Document

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def pod(self) -> Document:
        found: Document = self.document["spec"]["template"]["spec"]
        return found

    @property
    def labels(self) -> Document:
        found: Document = self.document["spec"]["template"]["metadata"]["labels"]
        return found

    @property
    def containers(self) -> list[Document]:
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    @property
    def port_names(self) -> dict[str, int]:
        return {p["name"]: p["containerPort"] for c in self.containers for p in c.get("ports", ())}


class Cluster:
    """Manifests, and the Secrets that an operator makes with the names of their keys."""

    def __init__(
        self, documents: Sequence[Document], secrets: Mapping[str, frozenset[str]]
    ) -> None:
        self.documents = documents
        self.secrets = secrets

    def of_kind(self, *kinds: str) -> list[Document]:
        return [d for d in self.documents if d["kind"] in kinds]

    @cached_property
    def workloads(self) -> list[Workload]:
        return [Workload(d) for d in self.of_kind("Deployment", "StatefulSet", "Job")]

    @cached_property
    def config_maps(self) -> dict[str, dict[str, str]]:
        return {d["metadata"]["name"]: d.get("data") or {} for d in self.of_kind("ConfigMap")}

    @cached_property
    def topology(self) -> Topology:
        return topology_of(self.config_maps["remit-topology"]["topology.yaml"])

    @cached_property
    def certificates(self) -> dict[str, Document]:
        """cert-manager's Certificates by the Secret that they fill."""
        return {d["spec"]["secretName"]: d for d in self.of_kind("Certificate")}

    def names(self, kind: str) -> set[str]:
        return {str(d["metadata"]["name"]) for d in self.of_kind(kind)}

    def with_labels(self, selector: Document) -> list[Workload]:
        return [w for w in self.workloads if selector.items() <= w.labels.items()]


def faults(cluster: Cluster) -> list[str]:
    """Everything that is wrong."""
    found = [
        *_namespaces(cluster),
        *(f for d in cluster.documents for f in _labels(d)),
        *(f for d in cluster.of_kind("Service") for f in _service(cluster, d)),
        *(f for d in cluster.of_kind("PodDisruptionBudget") for f in _budget(cluster, d)),
        *(f for d in cluster.of_kind("HorizontalPodAutoscaler") for f in _scaler(cluster, d)),
        *(f for d in cluster.of_kind("Certificate") for f in _certificate(cluster, d)),
        *_topology(cluster),
        *_completeness(cluster),
    ]
    for workload in cluster.workloads:
        found += [f"{workload.name}: {fault}" for fault in _workload(cluster, workload)]
    for name, data in cluster.config_maps.items():
        if name.startswith("remit-"):
            for file, content in data.items():
                found += [f"{name}: {fault}" for fault in configuration_faults(file, content)]
    return found


def _namespaces(cluster: Cluster) -> Iterator[str]:
    if cluster.names("Namespace") != {NAMESPACE}:
        yield "the namespace is not made"
    for document in cluster.documents:
        metadata = document["metadata"]
        if document["kind"] != "Namespace" and metadata.get("namespace") != NAMESPACE:
            yield f"{metadata['name']}: namespace {metadata.get('namespace')}"


def _labels(document: Document) -> Iterator[str]:
    metadata = document["metadata"]
    if metadata.get("labels", {}).get("app.kubernetes.io/part-of", "remit") != "remit":
        yield f"{metadata['name']}: part of something else"


def _completeness(cluster: Cluster) -> Iterator[str]:
    """Each account and each ConfigMap is used by somebody, and each area is there."""
    accounts = {w.pod["serviceAccountName"] for w in cluster.workloads}
    if accounts != cluster.names("ServiceAccount"):
        yield f"service accounts: {accounts ^ cluster.names('ServiceAccount')}"
    for account in cluster.of_kind("ServiceAccount"):
        if account["automountServiceAccountToken"] is not False:
            yield f"{account['metadata']['name']}: its token is mounted"
    used = {
        v["configMap"]["name"] for w in cluster.workloads for v in _volumes(w) if "configMap" in v
    }
    if used != set(cluster.config_maps):
        yield f"config maps: {used ^ set(cluster.config_maps)}"
    workloads = {w.name for w in cluster.workloads}
    if not {*AREAS, "gateway", "migrations"} <= workloads:
        yield f"workloads: {workloads}"
    for area in (*AREAS, "gateway"):
        budgets = cluster.names("PodDisruptionBudget")
        if budgets and area not in budgets:
            yield f"{area}: no disruption budget"
    claims = {
        v["persistentVolumeClaim"]["claimName"]
        for w in cluster.workloads
        for v in _volumes(w)
        if "persistentVolumeClaim" in v
    }
    if claims != cluster.names("PersistentVolumeClaim"):
        yield f"claims: {claims}"


def _volumes(workload: Workload) -> list[Document]:
    return list(workload.pod.get("volumes", ()))


# ------------------------------------------------------------------------------ services


def _service(cluster: Cluster, document: Document) -> Iterator[str]:
    name = document["metadata"]["name"]
    targets = cluster.with_labels(document["spec"]["selector"])
    if len(targets) != 1:
        yield f"service {name}: selects {len(targets)} workloads"
        return
    if name not in {targets[0].name, pods_of(targets[0].name), "edge"}:
        yield f"service {name}: is named after nothing"
    for port in document["spec"]["ports"]:
        if targets[0].port_names.get(port["targetPort"]) != port["port"]:
            yield f"service {name}: port {port['port']} is not {port['targetPort']}"
    yield from _addresses(name, targets[0], document["spec"])


def pods_of(workload: str) -> str:
    """The Service by which Prometheus finds every pod of a workload, ready or not."""
    return f"{workload}-pods"


def _addresses(name: str, workload: Workload, spec: Document) -> Iterator[str]:
    """Whoever balances or scrapes sees every pod; only who scrapes sees one that is not ready."""
    scraped = name == pods_of(workload.name)
    if (scraped or name in AREAS) and spec.get("clusterIP") != "None":
        yield f"service {name}: shows one address"
    if spec.get("publishNotReadyAddresses", False) is not scraped:
        yield f"service {name}: what it says of pods that are not ready"


def _budget(cluster: Cluster, document: Document) -> Iterator[str]:
    name = document["metadata"]["name"]
    if [w.name for w in cluster.with_labels(document["spec"]["selector"]["matchLabels"])] != [name]:
        yield f"disruption budget {name}: selects something else"
    if document["spec"].get("maxUnavailable") != 1:
        yield f"disruption budget {name}: takes more than one away"


def _scaler(cluster: Cluster, document: Document) -> Iterator[str]:
    spec, name = document["spec"], document["metadata"]["name"]
    target = spec["scaleTargetRef"]
    if target != {"apiVersion": "apps/v1", "kind": "Deployment", "name": name} or name not in AREAS:
        yield f"autoscaler {name}: scales {target}"
        return
    [replica] = cluster.topology.replicas[name]
    if spec["maxReplicas"] > replica.processes:
        yield f"autoscaler {name}: more than the gateway admits"
    if spec["minReplicas"] != 3:
        yield f"autoscaler {name}: fewer than three"
    resource, *others = spec["metrics"]
    if resource["resource"] != {
        "name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 70},
    }:
        yield f"autoscaler {name}: CPU"
    allowed = QUEUE if name == "agent" else ()
    external = [m["external"] for m in others]
    if not {(e["metric"]["name"], e["target"]["averageValue"]) for e in external} <= set(allowed):
        yield f"autoscaler {name}: {others}"


def _topology(cluster: Cluster) -> Iterator[str]:
    """Hosts are headless Services, and their ports are the pods'."""
    for area in AREAS:
        [replica] = cluster.topology.replicas[area]
        if replica.host != area or area not in cluster.names("Service"):
            yield f"topology: {area} is at {replica.host}"
        ports = {w.name: w.port_names for w in cluster.workloads}.get(area)
        if ports != {"grpc": replica.port, "http": replica.http_port}:
            yield f"topology: {area}: {ports}"


def _certificate(cluster: Cluster, document: Document) -> Iterator[str]:
    spec, name = document["spec"], document["metadata"]["name"]
    if spec.get("isCA"):
        return
    party = spec["secretName"].removeprefix("remit-").removeprefix("gateway-").removesuffix("-tls")
    if party not in {*AREAS, "edge", "mesh"}:
        yield f"certificate {name}: fills {spec['secretName']}"
    if spec["uris"] != [spiffe_id(party)] or spec["dnsNames"] != [dns_name(party)]:
        yield f"certificate {name}: names {spec['uris']} {spec['dnsNames']}"
    if not {"server auth", "client auth"} <= set(spec["usages"]):
        yield f"certificate {name}: usages"
    if spec["issuerRef"]["name"] not in cluster.names("Issuer"):
        yield f"certificate {name}: no issuer {spec['issuerRef']['name']}"


# ------------------------------------------------------------------------------ workloads


def _workload(cluster: Cluster, workload: Workload) -> Iterator[str]:
    yield from _pod(workload)
    yield from _volume_faults(cluster, workload)
    for container in workload.containers:
        yield from _container(workload, container)
        mounted = places(cluster, workload, container)
        if container["image"].rpartition(":")[0].endswith(IMAGE):
            yield from _ours(cluster, workload, container, mounted)
    if workload.name in AREAS:
        yield from _grace(workload)
    if workload.name == "gateway":
        yield from _envoy(cluster, workload)


def _pod(workload: Workload) -> Iterator[str]:
    pod, spec = workload.pod, workload.document["spec"]
    if not POD_SECURITY.items() <= pod["securityContext"].items():
        yield "the pod's security context"
    user = 10001 if workload.name in {*AREAS, "gateway", "migrations", "databases"} else None
    ids = {pod["securityContext"][k] for k in ("runAsUser", "runAsGroup", "fsGroup")}
    if len(ids) != 1 or 0 in ids or (user is not None and ids != {user}):
        yield f"runs as {ids}"
    if pod["automountServiceAccountToken"] is not False or pod["enableServiceLinks"] is not False:
        yield "a token or links are mounted"
    if pod["serviceAccountName"] != workload.name:
        yield f"runs under {pod['serviceAccountName']}"
    if workload.labels.get(NAME) != workload.name:
        yield f"is labelled {workload.labels}"
    if "selector" in spec and spec["selector"]["matchLabels"] != {NAME: workload.name}:
        yield "selects others"
    for constraint in pod.get("topologySpreadConstraints", ()):
        if constraint["labelSelector"]["matchLabels"] != {NAME: workload.name}:
            yield "spreads others"


def _volume_faults(cluster: Cluster, workload: Workload) -> Iterator[str]:
    for volume in _volumes(workload):
        for secret in _secrets(volume):
            if secret["secretName"] not in _known_secrets(cluster):
                yield f"no secret {secret['secretName']}"
            if secret["defaultMode"] != 0o440:
                yield f"secret {secret['secretName']} is open to others"
        name = volume.get("configMap", {}).get("name")
        if name is not None and name not in cluster.config_maps:
            yield f"no config map {name}"
    declared = {v["name"] for v in _volumes(workload)}
    declared |= {
        t["metadata"]["name"] for t in workload.document["spec"].get("volumeClaimTemplates", ())
    }
    used = {m["name"] for c in workload.containers for m in c["volumeMounts"]}
    if declared != used:
        yield f"volumes: {declared ^ used}"


def _secrets(volume: Document) -> list[Document]:
    """The secrets in a volume: one, or several that are projected into it."""
    together = volume.get("projected", {})
    mode = together.get("defaultMode")
    return (
        [volume["secret"]]
        if "secret" in volume
        else [
            {"secretName": source["secret"]["name"], "defaultMode": mode}
            for source in together.get("sources", ())
        ]
    )


def _known_secrets(cluster: Cluster) -> set[str]:
    return {*cluster.secrets, *cluster.certificates}


def places(cluster: Cluster, workload: Workload, container: Document) -> list[Place]:
    """What the container finds at its mounts."""
    volumes = {v["name"]: v for v in _volumes(workload)}
    return [
        Place(mount["mountPath"], _content(cluster, volumes.get(mount["name"], {})))
        for mount in container["volumeMounts"]
    ]


def _content(cluster: Cluster, volume: Document) -> frozenset[str] | None:
    if "projected" in volume:
        names = [secret["secretName"] for secret in _secrets(volume)]
        return frozenset[str]().union(*(cluster.secrets.get(n, frozenset()) for n in names))
    if "secret" in volume:
        name, items = volume["secret"]["secretName"], volume["secret"].get("items", ())
        keys = cluster.secrets.get(name, frozenset())
        if name in cluster.certificates:
            keys = frozenset({"ca.crt", "tls.crt", "tls.key"})
        return frozenset(i["path"] for i in items if i["key"] in keys) if items else keys
    if "configMap" in volume:
        return frozenset(cluster.config_maps.get(volume["configMap"]["name"], ()))
    return None


def _container(workload: Workload, container: Document) -> Iterator[str]:
    name = container["name"]
    if container["securityContext"] != CONTAINER_SECURITY:
        yield f"{name}: security context"
    resources = container["resources"]
    for kind in ("cpu", "memory"):
        if not (resources["requests"].get(kind) and resources["limits"].get(kind)):
            yield f"{name}: no {kind}"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        yield from (f"{name}: {probe} {f}" for f in _probe(workload, container, probe))


def _probe(workload: Workload, container: Document, probe: str) -> Iterator[str]:
    found = container.get(probe, {})
    ports = {p["name"] for p in container.get("ports", ())}
    for way in ("httpGet", "tcpSocket"):
        if way in found and found[way]["port"] not in ports:
            yield f"port {found[way]['port']}"
    party = workload.name if workload.name in AREAS else container["name"]
    if "httpGet" in found and party in {*AREAS, "envoy"}:
        page = {"readinessProbe": "/ready"}.get(probe, "/ready" if party == "envoy" else "/health")
        if found["httpGet"]["path"] != page or page not in probe_pages(party):
            yield f"asks for {found['httpGet']['path']}"
    if party in AREAS and "httpGet" not in found:
        yield "is missing"
    if party in AREAS and found.get("httpGet", {}).get("port") != "http":
        yield "asks the wrong port"


def _ours(
    cluster: Cluster, workload: Workload, container: Document, mounted: list[Place]
) -> Iterator[str]:
    words = container["args"]
    yield from command_faults(container["name"], words, mounted)
    environment = {e["name"]: e.get("value", "x") for e in container.get("env", ())}
    if words[0] == "serve" and words != ["serve", workload.name]:
        yield f"serves {words}"
    elif words[0] == "serve" and workload.name in AREAS:
        yield from service_faults(workload.name, environment, mounted, cluster.topology)
        yield from _fields(container)
        yield from _writable(mounted)
        address = environment[f"REMIT_{workload.name.upper()}_MESH_ADDRESS"]
        yield from _addressed(cluster, address)
        if f"REMIT_{workload.name.upper()}_TRACE_ENDPOINT" in environment:
            endpoint = environment[f"REMIT_{workload.name.upper()}_TRACE_ENDPOINT"]
            yield from _addressed(cluster, endpoint.removeprefix("http://"))
    if words[0] in {"migrate", "databases"}:
        folder = environment["REMIT_SECRETS_DIR"]
        for file in ("REMIT_COST_OWNER_DSN", "REMIT_COST_DSN"):
            if not is_file(f"{folder}/{file}", mounted):
                yield f"{file} is not mounted"
    for source in container.get("envFrom", ()):
        if source["secretRef"]["name"] not in OPTIONAL_SECRETS:
            yield f"no secret {source['secretRef']['name']}"


def _writable(mounted: list[Place]) -> Iterator[str]:
    if not any(place.path == "/tmp" and place.files is None for place in mounted):  # noqa: S108
        yield "nothing temporary can be written"


def _fields(container: Document) -> Iterator[str]:
    for entry in container["env"]:
        field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "metadata.name")
        if field != "metadata.name" or ("value" in entry) == ("valueFrom" in entry):
            yield f"{entry['name']}: {field}"


def _addressed(cluster: Cluster, address: str) -> Iterator[str]:
    host, _, port = address.partition(":")
    services = {d["metadata"]["name"]: d for d in cluster.of_kind("Service")}
    ports = {p["port"] for p in services[host]["spec"]["ports"]} if host in services else set()
    if not (port.isdigit() and int(port) in ports):
        yield f"{address} is no Service"


def _grace(workload: Workload) -> Iterator[str]:
    [container] = workload.pod["containers"]
    environment = {e["name"]: e.get("value", "") for e in container["env"]}
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    if command[0] != "sleep" or not 5 <= float(command[1]) <= 30:
        yield f"preStop {command}"
        return
    drain_s = float(environment[f"REMIT_{workload.name.upper()}_DRAIN_S"])
    if workload.pod["terminationGracePeriodSeconds"] < float(command[1]) + 2 * drain_s + 10:
        yield "killed before its drain ends"
    effects = [c.deadline_s for c in contracts_of(workload.name) if c.is_effect and not c.stream]
    if drain_s < max(effects, default=0):
        yield "its drain cuts effects that are within their deadline"


def _envoy(cluster: Cluster, workload: Workload) -> Iterator[str]:
    """The file that Envoy reads is the one that was rendered; its ports are the topology's."""
    containers = {c["name"]: c for c in workload.containers}
    render, envoy, drain = (containers[name] for name in ("configuration", "envoy", "drain"))
    topology = cluster.topology
    yield from _drained(workload, envoy, drain)
    yield from _certified(topology, places(cluster, workload, envoy))
    if envoy["command"] != ["/usr/local/bin/envoy"]:
        yield f"Envoy is {envoy['command']}"
    if envoy["args"] != rehearsed_envoy():
        yield "Envoy has other arguments than those that were rehearsed"
    rendered = _volume_of(render, _option(render, "--out"))
    if _volume_of(envoy, _option(envoy, "--config-path")) != rendered:
        yield "Envoy reads another file"
    listeners = ("edge", "mesh", "stats")
    if workload.port_names != {name: getattr(topology, name).port for name in listeners}:
        yield f"ports {workload.port_names}"
    for word in render["args"]:
        if word.startswith("--trace-endpoint="):
            yield from _addressed(cluster, word.removeprefix("--trace-endpoint=http://"))


@cache
def rehearsed_envoy() -> list[str]:
    """Envoy's arguments on one host, with which the rehearsal runs a real one."""
    return Compose.load().services["gateway"].command


def _drained(workload: Workload, envoy: Document, drain: Document) -> Iterator[str]:
    if envoy.get("restartPolicy") != "Always" or envoy not in workload.pod["initContainers"]:
        yield "Envoy is stopped before it is drained"
    wait_s = float(_option(drain, "--lag")) + float(_option(drain, "--limit"))
    if workload.pod["terminationGracePeriodSeconds"] < wait_s + 10:
        yield "killed before its drain ends"


def _certified(topology: Topology, mounted: list[Place]) -> Iterator[str]:
    for party in ("edge", "mesh"):
        for file in TLS_FILES:
            if not is_file(f"{topology.tls_dir}/{party}/{file}", mounted):
                yield f"{topology.tls_dir}/{party}/{file} is not mounted"


def _volume_of(container: Document, path: str) -> tuple[str, str]:
    folder, _, file = path.rpartition("/")
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    return mounts.get(folder, ""), file


def _option(container: Document, option: str) -> str:
    return str(dict(pairwise(container["args"]))[option])
