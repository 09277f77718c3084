"""What each service is told under `remit up`: addresses, certificates, databases, keys.

Only facts of this machine stand here. Whatever else a service can be told comes from the user's own
environment (`REMIT_COST_PRICES_FILE=... remit up`), of which each service inherits what is its own:
only inference and tools reach out into the world, so only they see keys of providers.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from remit.gateway.topology import Replica, Topology
from remit.local.databases import ARCHIVER, KEYS_ERASER
from remit.local.probes import not_ready
from remit.local.process import ProcessSpec
from remit.local.state import StateDirectory, corrupt, private_folder
from remit.rpc.contracts import AREAS

STOP_MARGIN_S: Final = 5.0
"""How long after its drain a service may take to end before it is killed."""


_REACHING_OUT: Final = ("inference", "tools")
_NEUTRAL: Final = re.compile(
    r"HOME|LANG|LC_\w+|LOGNAME|PATH|PYTHON\w+|SSL_CERT_\w+|TMPDIR|TZ|TZDIR|USER|VIRTUAL_ENV"
    r"|GRPC_\w+|OTEL_\w+"
)
"""Variables that say nothing secret and that any Python process may need."""


@dataclass(frozen=True)
class Secrets:
    """Key files of the services."""

    pepper: Path
    signing: Path
    audit: Path
    webhooks: Path


def ensure_secrets(state: StateDirectory) -> Secrets:
    """Makes the services' keys at the first start, and only then.

    Raises:
        RemitError: DATA_CORRUPT or CONFIGURATION_INVALID naming a file that is missing or damaged
            while there are databases that need it.

    """
    from remit.audit.key_files import LOG_PUBLIC_KEY, make_log_keys  # noqa: PLC0415 - slow
    from remit.policy.key_files import (  # noqa: PLC0415 - only `remit up` needs it
        PEPPER_FILE,
        SIGNING_KEY_FILE,
        make_keys,
        make_pepper,
    )
    from remit.tools.webhook_keys import KEY_FILE, make_webhook_key  # noqa: PLC0415 - slow

    policy, tools = (state.folder / "secrets" / area for area in ("policy", "tools"))
    secrets = Secrets(
        policy / PEPPER_FILE,
        policy / SIGNING_KEY_FILE,
        policy.with_name("audit"),
        tools / KEY_FILE,
    )
    _check_kept(state, secrets)
    state.secret_folder("policy")
    make_pepper(policy)
    make_keys(policy)
    make_log_keys(secrets.audit)
    # Not among those that must be kept: receivers fetch a new public key.
    make_webhook_key(state.secret_folder("tools"))
    if not state.audit_key_file.exists():
        state.audit_key_file.write_bytes((secrets.audit / LOG_PUBLIC_KEY).read_bytes())
    return secrets


def _check_kept(state: StateDirectory, secrets: Secrets) -> None:
    """New keys beside old databases would break API keys, remits and the log without a word."""
    if not state.postgres.exists():
        return
    for path in (secrets.pepper, secrets.signing, secrets.audit):
        if not path.exists():
            raise corrupt(
                path, "it is missing, and the databases need it; restore it from a backup"
            )


def inherited(area: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the user's environment that a service of `area` gets."""
    own, others = (f"REMIT_{area.upper()}_", tuple(f"REMIT_{a.upper()}_" for a in AREAS))
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(own)
        or (not name.startswith(others) and (area in _REACHING_OUT or _NEUTRAL.fullmatch(name)))
    }


class Wiring:
    """Turns the topology into processes."""

    def __init__(
        self,
        state: StateDirectory,
        topology: Topology,
        dsns: Mapping[str, str],
        secrets: Secrets,
        *,
        drain_s: float,
    ) -> None:
        self._state = state
        self._topology = topology
        self._dsns = dsns
        self._secrets = secrets
        self._drain_s = drain_s

    def services(self) -> Iterator[tuple[str, ProcessSpec]]:
        """Every replica of every area, as (area, process)."""
        for area in AREAS:
            for index, replica in enumerate(self._topology.replicas[area]):
                yield area, self._service(area, index, replica)

    def _service(self, area: str, index: int, replica: Replica) -> ProcessSpec:
        name = f"{area}-{index}"
        return ProcessSpec(
            name=name,
            command=(sys.executable, "-m", "remit.cli.main", "serve", area),
            environment=inherited(area, os.environ) | self._environment(area, index, replica),
            log=self._state.log_file(name),
            ready=lambda: not_ready(replica.host, replica.http_port),
            stop_timeout_s=self._drain_s + STOP_MARGIN_S,
            describe=f"on {replica}",
        )

    def _environment(self, area: str, index: int, replica: Replica) -> dict[str, str]:
        facts: dict[str, object] = {
            "dsn": self._dsns[area],
            "host": replica.host,
            "port": replica.port,
            "http_port": replica.http_port,
            "tls_dir": self._state.tls_folder(area),
            "mesh_address": self._topology.mesh,
            "replica": index,
            "drain_s": self._drain_s,
            **self._facts_of(area),
            **self._tracing(),
        }
        prefix = f"REMIT_{area.upper()}_"
        return {f"{prefix}{key.upper()}": str(value) for key, value in facts.items()}

    def _tracing(self) -> dict[str, object]:
        tracing = self._topology.tracing
        if tracing is None:
            return {}
        return {"trace_endpoint": tracing.endpoint, "trace_ratio": tracing.ratio}

    def _issuers(self) -> dict[str, object]:
        issuers = self._topology.oidc_file
        return {"oidc_file": issuers} if issuers else {}

    def _facts_of(self, area: str) -> dict[str, object]:
        if area == "policy":
            return self._issuers() | {
                "pepper_file": self._secrets.pepper,
                "signing_key_file": self._secrets.signing,
            }
        if area == "audit":
            audit: dict[str, object] = {
                "keys_dsn": self._dsns["audit_keys"],
                "keys_eraser_dsn": self._dsns[KEYS_ERASER],
                "archiver_dsn": self._dsns[ARCHIVER],
                "keys_dir": self._secrets.audit,
                "tiles_dir": self._state.tiles,
                "archive_dir": self._state.archive,
            }
            return _not_chosen(area, audit, "tiles_dir", "archive_dir")
        if area == "tools":
            own: dict[str, object] = {
                "webhook_key_files": self._secrets.webhooks,
                "workspace": self._state.folder / "workspace",
            }
            kept = _not_chosen(area, own, *own)
            if "workspace" in kept:
                private_folder(self._state.folder / "workspace")
            return kept
        return {}


def _not_chosen(area: str, facts: dict[str, object], *choices: str) -> dict[str, object]:
    """The facts without those of the choices that the user's environment has made already."""
    made = {name for name in choices if f"REMIT_{area.upper()}_{name.upper()}" in os.environ}
    return {name: value for name, value in facts.items() if name not in made}
