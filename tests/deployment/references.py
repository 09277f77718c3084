"""What manifests may name: settings, commands, secrets, ports, paths; checks yield faults."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, Final

import click
import pydantic
import yaml

from remit.agent.definitions import parse_definition
from remit.audit.anchor import ANCHOR_FILE
from remit.cost.price_files import _PriceFile
from remit.gateway.stats import PAGES
from remit.gateway.topology import Topology
from remit.inference.declarations import ModelsFile
from remit.local.installation import SECRETS_MOUNT
from remit.oidc import _File as _IssuersFile
from remit.postgres import DATABASES
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError
from remit.rpc.http import Probes, application
from remit.settings import SECRETS_VARIABLE, ServiceSettings
from tests.cli.command_lines import parse_command_line

TLS_FILES: Final = {"ca.pem", "cert.pem", "key.pem"}
PROBE_PAGES: Final = {"/health", "/ready"}
_SETTING: Final = re.compile(r"REMIT_([A-Z]+)_(\w+)")
_FOLDERS: Final = {"tls_dir": TLS_FILES, "keys_dir": {"log.key", "log.pub", "subject_master.key"}}
_FILES: Final = ("pepper_file", "signing_key_file", "prices_file", "models_file", "oidc_file")
_OFFERS: Final = "--enable-auto-tool-choice"
_PATH_OPTIONS: Final = {"--topology", "--config-path"}


@dataclass(frozen=True)
class Place:
    """What a container finds at a path: these files, or, where it is None, a folder to write in."""

    path: str
    files: frozenset[str] | None


def found(path: str, places: Iterable[Place]) -> frozenset[str] | None:
    """Files below `path` by their names relative to it; None for a folder to write in.

    Raises:
        LookupError: nothing is mounted there.

    """
    wanted = PurePosixPath(path)
    for place in sorted(places, key=lambda p: len(p.path), reverse=True):
        mounted = PurePosixPath(place.path)
        if wanted == mounted or mounted in wanted.parents:
            if place.files is None:
                return None
            prefix = str(wanted.relative_to(mounted))
            below = frozenset(
                str(PurePosixPath(file).relative_to(prefix))
                for file in place.files
                if prefix == "." or PurePosixPath(file).is_relative_to(prefix)
            )
            if below:
                return below
    raise LookupError(path)


def is_file(path: str, places: Iterable[Place]) -> bool:
    """Whether a container finds this file."""
    try:
        return found(path, places) == frozenset({"."})
    except LookupError:
        return False


@cache
def settings_of(area: str) -> type[ServiceSettings]:
    """The settings class of an area."""
    module = importlib.import_module(f"remit.{area}.settings")
    known: type[ServiceSettings] = getattr(module, f"{area.capitalize()}Settings")
    return known


def service_faults(
    area: str, environment: Mapping[str, str], places: Sequence[Place], topology: Topology
) -> Iterator[str]:
    """The environment of a service: each variable is a setting, each value one that it takes."""
    fields = settings_of(area).model_fields
    values: dict[str, str] = {}
    for name, value in environment.items():
        match = _SETTING.fullmatch(name)
        if name == SECRETS_VARIABLE or not name.startswith("REMIT_"):
            continue
        if match is None or match[1] != area.upper() or match[2].lower() not in fields:
            yield f"{area}: {name} is no setting"
            continue
        values[match[2].lower()] = value
    yield from _values_faults(area, values, topology)
    yield from _paths_faults(area, values, places)
    yield from _secrets_faults(area, environment, places)


def _values_faults(area: str, values: Mapping[str, str], topology: Topology) -> Iterator[str]:
    try:
        settings_of(area)(**values)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        yield f"{area}: {error}"
    [replica] = topology.replicas[area]
    expected = {
        "host": "0.0.0.0",  # noqa: S104 - inside a container
        "port": str(replica.port),
        "http_port": str(replica.http_port),
    }
    for name, value in expected.items():
        if values.get(name) != value:
            yield f"{area}: {name} is {values.get(name)}, not {value}"
    if values.get("mesh_address", "").rpartition(":")[2] != str(topology.mesh.port):
        yield f"{area}: mesh_address does not name the mesh listener's port"
    if "tls_dir" not in values:
        yield f"{area}: no tls_dir"


def _paths_faults(area: str, values: Mapping[str, str], places: Sequence[Place]) -> Iterator[str]:
    for name, needed in _FOLDERS.items():
        if name in values and not needed <= _files(values[name], places):
            yield f"{area}: {name} {values[name]} does not hold {sorted(needed)}"
    for name in _FILES:
        if name in values and not is_file(values[name], places):
            yield f"{area}: {name} {values[name]} is not mounted"
    for path in filter(None, values.get("webhook_key_files", "").split(",")):
        if not is_file(path, places):
            yield f"{area}: webhook_key_files {path} is not mounted"
    if "agents_dir" in values and not _is_mounted(values["agents_dir"], places):
        yield f"{area}: agents_dir {values['agents_dir']} is not mounted"
    if "workspace" in values and not _is_writable(values["workspace"], places):
        yield f"{area}: workspace {values['workspace']} cannot be written"
    if "keys_dir" in values:
        yield from _anchor_faults(area, values.get("anchor_file", ""), places)
        yield from _log_folder_faults(area, values, places)


def _secrets_faults(
    area: str, environment: Mapping[str, str], places: Sequence[Place]
) -> Iterator[str]:
    if environment.get(SECRETS_VARIABLE) != str(SECRETS_MOUNT):
        yield f"{area}: {SECRETS_VARIABLE} is not {SECRETS_MOUNT}, where DSNs look for files"
    files = _files(environment.get(SECRETS_VARIABLE, "/nowhere"), places)
    needed = {f"REMIT_{area.upper()}_DSN"}
    of_audit = {"REMIT_AUDIT_KEYS_DSN", "REMIT_AUDIT_KEYS_ERASER_DSN", "REMIT_AUDIT_ARCHIVER_DSN"}
    needed |= of_audit if area == "audit" else set()
    if not needed <= files:
        yield f"{area}: {SECRETS_VARIABLE} does not hold {sorted(needed)}"
    for file in files:
        match = _SETTING.fullmatch(file)
        if match and match[2].lower() not in settings_of(area).model_fields:
            yield f"{area}: the secret {file} is no setting"


def command_faults(where: str, words: Sequence[str], places: Sequence[Place]) -> Iterator[str]:
    """Arguments of `remit`: the real command takes them, and their files are mounted."""
    try:
        parse_command_line(" ".join(["remit", *words]))
    except click.UsageError as error:
        yield f"{where}: {error.message}"
    for option, value in pairwise(words):
        if option in _PATH_OPTIONS and not is_file(value, places):
            yield f"{where}: {option} {value} is not mounted"
        if option == "--out" and not _is_writable(str(PurePosixPath(value).parent), places):
            yield f"{where}: {option} {value} cannot be written"
    if words[0] == "migrate" and words[1] not in {*DATABASES, "all"}:
        yield f"{where}: no database {words[1]}"


@cache
def topology_of(content: str) -> Topology:
    """The topology of a configuration file."""
    return Topology.parse(yaml.safe_load(content), source="topology.yaml")


@cache
def configuration_faults(file: str, content: str) -> tuple[str, ...]:
    """A configuration file that we read: its parser takes it."""
    try:
        if file == "topology.yaml":
            topology_of(content)
        elif file == "models.yaml":
            ModelsFile.model_validate(yaml.safe_load(content))
        elif file == "prices.yaml":
            _PriceFile.model_validate(yaml.safe_load(content))
        elif file == "issuers.yaml":
            _IssuersFile.model_validate(yaml.safe_load(content))
        elif file.endswith("assistant.yaml"):
            parse_definition(content, file)
        else:
            return (f"nothing reads {file}",)
    except (RemitError, pydantic.ValidationError) as error:
        return (f"{file}: {error}",)
    return ()


@cache
def probe_pages(party: str) -> frozenset[str]:
    """Paths that a probe may ask a party for."""
    if party == "envoy":
        return frozenset(PAGES)
    routes = application(Probes()).routes
    return frozenset(getattr(route, "path", "") for route in routes)


def parties() -> tuple[str, ...]:
    """Whoever has a folder of an installation."""
    return (*AREAS, "gateway", "setup", "postgres", "ca")


def _files(path: str, places: Sequence[Place]) -> frozenset[str]:
    try:
        return found(path, places) or frozenset()
    except LookupError:
        return frozenset()


def _is_mounted(path: str, places: Sequence[Place]) -> bool:
    if any(place.path == path for place in places):
        return True
    return bool(_files(path, places))


def _anchor_faults(area: str, path: str, places: Sequence[Place]) -> Iterator[str]:
    """Folders of keys are mounted to be read, so the anchor lies elsewhere, under its own name."""
    if PurePosixPath(path).name != ANCHOR_FILE or not _is_writable(path, places):
        yield f"{area}: anchor_file {path} is no {ANCHOR_FILE} that can be written"


def _log_folder_faults(
    area: str, values: Mapping[str, str], places: Sequence[Place]
) -> Iterator[str]:
    """The log's files lie on a volume that outlives whoever writes them, under their own names."""
    for name in ("tiles", "archive"):
        path = values.get(f"{name}_dir", "")
        if PurePosixPath(path).name != name or not _is_writable(path, places):
            yield f"{area}: {name}_dir {path} is no folder {name} that can be written"


def _is_writable(path: str, places: Sequence[Place]) -> bool:
    try:
        return found(path, places) is None
    except LookupError:
        return False


def scrape_targets(document: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Names and ports that a Prometheus configuration asks."""
    found = set()
    for job in document["scrape_configs"]:
        for source in job.get("dns_sd_configs", ()):
            found |= {(name, int(source["port"])) for name in source["names"]}
        for source in job.get("static_configs", ()):
            for target in source["targets"]:
                host, _, port = target.partition(":")
                found.add((host, int(port)))
    return found


def parser_of(words: Sequence[str]) -> str:
    """How vLLM reads tool calls; empty where it would refuse requests that offer tools."""
    return dict(pairwise(words)).get("--tool-call-parser", "") if _OFFERS in words else ""
