"""Kubernetes manifests: valid for Kubernetes' own schemas, and what they name exists in the code.

No cluster has seen them. Overlays are rendered where kubectl is present.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from prometheus_client import REGISTRY

import remit.agent.metrics  # noqa: F401 - its metrics are looked up
from remit.local.installation import Installation
from remit.rpc.contracts import AREAS
from tests.deployment import flow_faults, kubernetes_faults
from tests.deployment.kubernetes_faults import Cluster, Document, pods_of
from tests.deployment.mutations import leaves, mistyped
from tests.deployment.references import parser_of, scrape_targets
from tests.programs import program

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
VERSION = "1.34"
VALIDATED: set[str] = set()  # overlays share most of what they render
FOREIGN = {"cert-manager.io/v1"}
ISSUERS = """
issuers:
  - name: corporate
    issuer: https://login.example.com
    audiences: [remit]
    jwks_uri: https://login.example.com/keys
    org: acme
"""
NO_MANIFEST = {"prometheus-adapter.yaml", "kustomization.yaml", "configuration.yaml"}


def manifest_files() -> list[Path]:
    """Files of manifests that are whole by themselves."""
    files = [*K8S.glob("base/*.yaml"), *K8S.glob("components/*/*.yaml")]
    whole = [f for f in files if f.name not in NO_MANIFEST or f.parent.name == "base"]
    return sorted(f for f in whole if f.name != "kustomization.yaml")


@cache
def read(file: Path) -> list[Document]:
    return list(yaml.load_all(file.read_text(), yaml.CSafeLoader))


@cache
def base() -> list[Document]:
    return [
        document
        for file in sorted(K8S.glob("base/*.yaml"))
        if file.name != "kustomization.yaml"
        for document in read(file)
    ]


@cache
def rendered(overlay: str) -> list[Document]:
    return kustomized(K8S / "overlays" / overlay)


def kustomized(folder: Path) -> list[Document]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        # Not `missing`: no package source that `.ci/run` installs from has one that is new enough.
        pytest.skip("kubectl is missing (1.27 or newer; it renders the overlays)")
    done = subprocess.run(
        [kubectl, "kustomize", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


@pytest.fixture(scope="session")
def secrets(installation: Installation) -> dict[str, frozenset[str]]:
    """The Secrets that `remit secrets manifests` prints, with the names of their keys."""
    return {
        manifest["metadata"]["name"]: frozenset(manifest["data"])
        for manifest in installation.manifests("remit")
    }


def validate(documents: list[Document]) -> None:
    for document in documents:
        if document["apiVersion"] in FOREIGN:
            continue
        text = json.dumps(document, sort_keys=True)
        if text not in VALIDATED:
            kubernetes_validate.validate(document, VERSION, strict=True)
            VALIDATED.add(text)


@pytest.mark.parametrize("file", manifest_files(), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_manifest_follows_kubernetes_own_schema(file: Path) -> None:
    validate(read(file))


def test_a_misspelt_field_would_not_pass() -> None:
    [document] = [
        d for d in base() if d["kind"] == "Deployment" and d["metadata"]["name"] == "cost"
    ]
    wrong = json.loads(json.dumps(document))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_base_stands_alone_and_names_what_exists(secrets: dict[str, frozenset[str]]) -> None:
    assert kubernetes_faults.faults(Cluster(base(), secrets)) == []
    listed = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())["resources"]
    there = {f.name for f in K8S.glob("base/*.yaml")} - {"kustomization.yaml"}
    assert sorted(listed) == sorted(there)
    assert {f"{area}.yaml" for area in AREAS} <= there


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid_and_names_what_exists(
    overlay: str, secrets: dict[str, frozenset[str]]
) -> None:
    documents = rendered(overlay)
    validate(documents)
    if overlay == "cert-manager":
        secrets = {k: v for k, v in secrets.items() if not k.endswith("-tls")}
    cluster = Cluster(documents, secrets)
    assert kubernetes_faults.faults(cluster) == []
    if cluster.of_kind("NetworkPolicy"):
        assert flow_faults.faults(cluster) == []


def test_the_development_overlay_is_one_of_each() -> None:
    documents = rendered("dev")
    deployments = [d for d in documents if d["kind"] == "Deployment"]
    assert {d["spec"]["replicas"] for d in deployments} == {1}
    assert not [d for d in documents if d["kind"].endswith(("Autoscaler", "Budget"))]
    assert [d for d in documents if d["kind"] == "StatefulSet"]


def test_production_has_the_replicas_and_resources_that_were_asked_for() -> None:
    for document in base():
        if document["kind"] != "Deployment":
            continue
        assert document["spec"]["replicas"] == 3
        if document["metadata"]["name"] == "inference":
            [container] = document["spec"]["template"]["spec"]["containers"]
            assert container["resources"] == {
                "requests": {"cpu": "1", "memory": "2Gi"},
                "limits": {"cpu": "2", "memory": "4Gi"},
            }


def test_one_gpu_serves_the_model_that_inference_declares() -> None:
    documents = rendered("gpu")
    [vllm] = [d for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"] == "vllm"]
    [container] = vllm["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    [models] = [d for d in documents if d["metadata"]["name"] == "remit-models"]
    [local] = [
        m
        for m in yaml.safe_load(models["data"]["models.yaml"])["models"]
        if m["engine"] == "openai"
    ]
    assert local["base_url"] == "http://vllm:8000/v1"
    assert local["provider_model"] in container["args"]
    assert parser_of(container["args"]) == "hermes"
    environment = {e["name"]: e["value"] for e in container["env"]}
    assert environment["USER"] == environment["LOGNAME"] != ""
    written = [environment[n] for n in ("HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR")]
    folders = {m["mountPath"] for m in container["volumeMounts"]}
    assert {f"/{path.split('/')[1]}" for path in written} <= folders
    pod = vllm["spec"]["template"]["spec"]
    assert {t["key"] for t in pod["tolerations"]} == {"nvidia.com/gpu"}
    [prices] = [d for d in documents if d["metadata"]["name"] == "remit-prices"]
    assert f"models/{local['name']}" in yaml.safe_load(prices["data"]["prices.yaml"])["prices"]


# ---------------------------------------------------------------------------- observability


def test_the_autoscalers_metric_exists_and_is_served() -> None:
    values = yaml.safe_load((K8S / "components/queue-scaling/prometheus-adapter.yaml").read_text())
    [rule] = values["rules"]["external"]
    assert rule["name"]["as"] == rule["seriesQuery"] == "agent_queue_length"
    assert rule["metricsQuery"] == f"max({rule['seriesQuery']})"
    assert rule["seriesQuery"] in {metric.name for metric in REGISTRY.collect()}


def metrics_of_agents_autoscaler(documents: list[Document]) -> list[str]:
    [scaler] = [
        d
        for d in documents
        if d["kind"] == "HorizontalPodAutoscaler" and d["metadata"]["name"] == "agent"
    ]
    return [metric["type"] for metric in scaler["spec"]["metrics"]]


def test_agents_scale_by_their_queue_where_the_metric_is_served() -> None:
    assert metrics_of_agents_autoscaler(base()) == ["Resource"]
    assert metrics_of_agents_autoscaler(rendered("production")) == ["Resource", "External"]


def test_prometheus_asks_every_pod(tmp_path: Path) -> None:
    documents = rendered("production")
    config = next(
        d["data"]["prometheus.yml"]
        for d in documents
        if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "prometheus"
    )
    services = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "Service"}
    asked = scrape_targets(yaml.safe_load(config))
    assert {name for name, _ in asked} == {pods_of(name) for name in (*AREAS, "gateway")}
    for name, port in asked:
        assert services[name]["clusterIP"] == "None"
        assert services[name]["publishNotReadyAddresses"], "its metrics end when it must be seen"
        assert port in {p["port"] for p in services[name]["ports"]}
    promtool = program("promtool", package="prometheus")
    file = tmp_path / "prometheus.yml"
    file.write_text(
        config.replace("/etc/prometheus-rules", str(K8S / "components/observability/rules"))
    )
    checked = subprocess.run(
        [promtool, "check", "config", file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_every_dashboard_and_every_rule_is_brought_along() -> None:
    folder = K8S / "components" / "observability"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    files = sorted(file for generator in listed for file in generator["files"])
    there = [*folder.glob("dashboards/*.json"), *folder.glob("rules/*.yaml")]
    assert files == sorted(str(f.relative_to(folder)) for f in there)


# -------------------------------------------------------------------------------- mutations

FREE = re.compile(
    r"\.(image|resources|periodSeconds|failureThreshold|timeoutSeconds|sizeLimit|protocol"
    r"|appProtocol|whenUnsatisfiable|topologyKey|maxSkew|maxSurge|backoffLimit|rollingUpdate"
    r"|activeDeadlineSeconds|ttlSecondsAfterFinished|replicas|behavior|secretRef|restartPolicy"
    r"|accessModes|apiVersion|kind|labels\.pod-security.*|type)(\.|$)"
)
# A label that nothing selects, a name that nobody asks for, a second more of grace, and another
# folder of the same volume.
HARMLESS = re.compile(
    r"metadata\.labels\.|Service/spec\.ports\.[01]\.name$|containers\.0\.name$"
    r"|terminationGracePeriodSeconds$|^tools/.*\.env\.7\.value$"
)


def mutations() -> list[tuple[Any, ...]]:
    """Every text and number of the areas' files and the gateway's that names something of ours."""
    found = []
    for index, document in enumerate(base()):
        name = document["metadata"]["name"]
        if document["kind"] == "ConfigMap" or name not in {*AREAS, "gateway", "edge"}:
            continue
        found += [
            (index, *path)
            for path in leaves(document)
            if not FREE.search("." + ".".join(map(str, path)))
        ]
    return found


def missed_typos(secrets: dict[str, frozenset[str]]) -> Iterator[str]:
    for path in mutations():
        documents = mistyped(base(), path)
        try:
            seen = kubernetes_faults.faults(Cluster(documents, secrets))
        except (KeyError, ValueError, IndexError, AttributeError):
            continue  # a name that is looked up
        if not seen:
            yield f"{base()[path[0]]['metadata']['name']}/{base()[path[0]]['kind']}/" + ".".join(
                map(str, path[1:])
            )


def test_a_typo_anywhere_in_a_manifest_is_found(secrets: dict[str, frozenset[str]]) -> None:
    assert len(mutations()) > 500
    missed = [typo for typo in missed_typos(secrets) if not HARMLESS.search(typo)]
    assert missed == [], missed


SAMPLE = {
    *("remit-cost", "remit-gateway-mesh"),
    *("gateway", "inference", "migrations", "default-deny", "prometheus-adapter"),
}


@pytest.mark.parametrize("kind", ["NetworkPolicy", "Certificate"])
def test_a_typo_in_a_component_is_found(kind: str, secrets: dict[str, frozenset[str]]) -> None:
    folder = {"NetworkPolicy": "network-policies", "Certificate": "cert-manager"}[kind]
    extra = [d for f in sorted((K8S / "components" / folder).glob("[!k]*.yaml")) for d in read(f)]
    base_secrets = {k: v for k, v in secrets.items() if kind == "NetworkPolicy" or "tls" not in k}
    check = flow_faults.faults if kind == "NetworkPolicy" else kubernetes_faults.faults
    clean = set(check(Cluster([*base(), *extra], base_secrets)))
    unseen = []
    for index, document in enumerate(extra):
        if document["kind"] != kind or document["metadata"]["name"] not in SAMPLE:
            continue
        for path in leaves(document["spec"]):
            changed = mistyped(extra, (index, "spec", *path))
            try:
                seen = set(check(Cluster([*base(), *changed], base_secrets))) - clean
            except (KeyError, ValueError):
                continue
            if not seen:
                unseen.append(f"{document['metadata']['name']}.{'.'.join(map(str, path))}")
    free = re.compile(
        r"duration|renewBefore|privateKey|commonName|issuerRef.kind|usages.0|authority|protocol"
        r"|namespaceSelector.matchLabels.kubernetes|k8s-app|policyTypes"
    )
    assert [m for m in unseen if not free.search(m)] == []


def with_component(component: str, overlay: str, folder: Path) -> list[Document]:
    """An overlay with a component that an operator adds."""
    asked = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / "overlays" / overlay, folder)],
        "components": [os.path.relpath(K8S / "components" / component, folder)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(asked))
    return kustomized(folder)


def opened(documents: list[Document], name: str) -> list[list[Document]]:
    """The ports of the flows out of `name` that production does not have by itself."""

    def flows(given: list[Document]) -> list[Document]:
        [policy] = [
            d for d in given if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == name
        ]
        return list(policy["spec"]["egress"])

    before = flows(rendered("production"))
    return [flow["ports"] for flow in flows(documents) if flow not in before]


@pytest.mark.parametrize("overlay", ["dev", "production"])
def test_policy_is_given_the_redis_that_its_replicas_share(
    overlay: str, tmp_path: Path, secrets: dict[str, frozenset[str]]
) -> None:
    documents = with_component("shared-limits", overlay, tmp_path)
    validate(documents)
    shared = {"remit-limits": frozenset({"REMIT_POLICY_LIMITS_URL"})}
    assert kubernetes_faults.faults(Cluster(documents, secrets | shared)) == []
    if overlay == "production":
        assert opened(documents, "policy") == [[{"protocol": "TCP", "port": 6379}]]


@pytest.mark.parametrize("overlay", ["dev", "production"])
def test_policy_reads_the_issuers_that_the_gateway_reads(
    overlay: str, tmp_path: Path, secrets: dict[str, frozenset[str]]
) -> None:
    documents = with_component("sign-in", overlay, tmp_path)
    validate(documents)
    for document in documents:
        if (document["kind"], document["metadata"]["name"]) == ("ConfigMap", "remit-topology"):
            document["data"]["issuers.yaml"] = ISSUERS
    assert kubernetes_faults.faults(Cluster(documents, secrets)) == []
    if overlay == "production":
        assert opened(documents, "gateway") == [[{"protocol": "TCP", "port": 443}]]
