"""The topology file: which replicas of which service listen where, and what Envoy listens on.

Everything else about the gateway follows from the contracts. The defaults are the ports that the
documentation names, so that a laptop needs no file.

    replicas:
      policy:
        - {host: 127.0.0.1, port: 7450}
        - {host: 127.0.0.1, port: 7451}
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

import pydantic
import yaml

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT_BASE: Final = 7400
DEFAULT_EDGE_PORT: Final = 8080
MAX_REPLICAS: Final = 10
MAX_PROCESSES: Final = 100
HTTP_PORT_OFFSET: Final = 1000
"""A replica's plain HTTP port (health, readiness, metrics) follows its gRPC port."""
MAX_ORIGINS: Final = 50
_LAST_PORT: Final = 65_535
_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_ORIGIN: Final = rf"https?://({_LABEL}(\.{_LABEL})*|\*(\.{_LABEL}){{2,}})(:[0-9]{{1,5}})?"
Origin = Annotated[str, pydantic.StringConstraints(pattern=rf"^{_ORIGIN}$", max_length=253)]


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Address(_Section):
    """Where something listens: a host name or IP address, and a TCP port."""

    host: str = pydantic.Field(default=LOOPBACK, min_length=1, max_length=253)
    port: int = pydantic.Field(ge=1, le=_LAST_PORT)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address rather than a name to resolve."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


class Replica(Address):
    """One process of a service: its gRPC address, and its plain HTTP port on the same host.

    A host name may stand for several processes, such as a headless Service of Kubernetes for its
    pods: the gateway looks the name up every five seconds and balances over every address.
    """

    http_port: int = pydantic.Field(default=0, ge=0, le=_LAST_PORT, validate_default=True)
    processes: int = pydantic.Field(
        default=1,
        ge=1,
        le=MAX_PROCESSES,
        description="processes behind the host name at most; what they admit together is admitted",
    )

    @pydantic.field_validator("http_port")
    @classmethod
    def _default_http_port(cls, value: int, info: pydantic.ValidationInfo) -> int:
        return value or info.data.get("port", 0) + HTTP_PORT_OFFSET


class Resilience(_Section):
    """How fast the gateway notices trouble and how often it tries again. Durations in seconds."""

    connect_timeout_s: float = pydantic.Field(
        default=1.0, gt=0, description="one TCP and TLS set-up"
    )
    max_retries: int = pydantic.Field(
        default=2, ge=0, le=5, description="tries after the first one"
    )
    retry_base_s: float = pydantic.Field(
        default=0.025, gt=0, description="first back-off, jittered"
    )
    retry_max_s: float = pydantic.Field(default=0.25, gt=0, description="longest back-off")
    health_interval_s: float = pydantic.Field(
        default=1.0, gt=0, description="between health checks"
    )
    health_timeout_s: float = pydantic.Field(default=2.0, gt=0, description="of one health check")
    health_failures: int = pydantic.Field(default=3, ge=1, description="failures that shut one out")
    outlier_failures: int = pydantic.Field(
        default=5, ge=1, description="connections or calls lost in a row that eject a replica"
    )
    outlier_errors: int = pydantic.Field(
        default=20, ge=1, description="server errors in a row that eject a replica"
    )
    ejection_s: float = pydantic.Field(
        default=5.0, gt=0, description="first ejection; then it grows"
    )
    keepalive_interval_s: float = pydantic.Field(default=30.0, gt=0, description="HTTP/2 PING")
    keepalive_timeout_s: float = pydantic.Field(
        default=5.0, gt=0, description="wait for its answer"
    )


def _stats_beside_admin(known: dict[str, Any]) -> Address:
    """On loopback, as far from the admin interface as a replica's plain port from its gRPC port."""
    admin = known.get("admin")
    return Address(port=(admin.port if admin else DEFAULT_PORT_BASE + 1) + HTTP_PORT_OFFSET)


class Cors(_Section):
    """Which web pages may call the edge from a browser (WHATWG Fetch, CORS); none by default.

    An origin is `https://console.example.com`, with its port where it has one, or
    `https://*.example.com` for every host below a domain of at least two labels.
    """

    origins: tuple[Origin, ...] = pydantic.Field(default=(), max_length=MAX_ORIGINS)
    max_age_s: int = pydantic.Field(
        default=600, ge=0, le=86_400, description="how long a browser keeps a permission"
    )


class Tracing(_Section):
    """Where spans go, and how many."""

    endpoint: str = pydantic.Field(
        pattern=r"^http://([^/\s:\[\]]+|\[[0-9a-f:]+\]):\d{1,5}$",
        description="OTLP collector (gRPC without TLS), http://host:port",
    )
    ratio: float = pydantic.Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of calls without a trace that begin a recorded one",
    )

    @property
    def address(self) -> Address:
        """The collector's address."""
        host, _, port = self.endpoint.removeprefix("http://").rpartition(":")
        return Address(host=host.strip("[]"), port=int(port))

    @pydantic.model_validator(mode="after")
    def _has_a_port(self) -> Self:
        assert self.address  # noqa: S101 - validates the port's range
        return self


class Topology(_Section):
    """Every address of a mesh."""

    edge: Address = Address(port=DEFAULT_EDGE_PORT)
    mesh: Address = Address(port=DEFAULT_PORT_BASE)
    admin: Address = Address(port=DEFAULT_PORT_BASE + 1)
    stats: Address = pydantic.Field(
        default_factory=_stats_beside_admin,
        description="Envoy's /stats/prometheus and /ready, for Prometheus and probes",
    )
    cors: Cors = Cors()
    tls_dir: str = pydantic.Field(
        default="/etc/remit/tls",
        description="holds edge/ and mesh/, each with ca.pem, cert.pem and key.pem",
    )
    replicas: dict[str, tuple[Replica, ...]] = pydantic.Field(default_factory=dict)
    resilience: Resilience = Resilience()
    oidc_file: str = pydantic.Field(
        default="",
        max_length=400,
        description="file of the identity providers whose tokens clients may present"
        " (docs/OIDC.md); policy reads the same one",
    )
    tracing: Tracing | None = pydantic.Field(
        default=None, description="no spans without it; each service is told by its own settings"
    )

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Self:
        unknown = sorted(set(self.replicas) - set(AREAS))
        if unknown:
            message = f"replicas: unknown area {unknown[0]}; the areas are {', '.join(AREAS)}"
            raise ValueError(message)
        for area in AREAS:
            if not 1 <= len(self.replicas.get(area, ())) <= MAX_REPLICAS:
                message = f"replicas.{area}: list 1 to {MAX_REPLICAS} replicas"
                raise ValueError(message)
        return self

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> Self:
        used = Counter(str(address) for _, address in self.listeners())
        twice = sorted(address for address, count in used.items() if count > 1)
        if twice:
            message = f"{twice[0]} is used twice"
            raise ValueError(message)
        return self

    @pydantic.model_validator(mode="after")
    def _private_admin(self) -> Self:
        if not (self.admin.is_ip and ipaddress.ip_address(self.admin.host).is_loopback):
            message = (
                "admin.host: Envoy's admin interface has no authentication; use a loopback address"
            )
            raise ValueError(message)
        return self

    @classmethod
    def default(
        cls,
        *,
        replicas: Mapping[str, int] | None = None,
        port_base: int = DEFAULT_PORT_BASE,
        edge_port: int = DEFAULT_EDGE_PORT,
        tls_dir: str | None = None,
    ) -> Topology:
        """A mesh on loopback: mesh listener at `port_base`, admin next, then ten ports an area.

        Raises:
            RemitError: CONFIGURATION_INVALID; an area is unknown or a number is out of range.

        """
        counts = dict.fromkeys(AREAS, 1) | dict(replicas or {})
        document: dict[str, object] = {
            "edge": {"port": edge_port},
            "mesh": {"port": port_base},
            "admin": {"port": port_base + 1},
            "stats": {"port": port_base + 1 + HTTP_PORT_OFFSET},
            "replicas": {area: _ports(area, counts[area], port_base) for area in counts},
        }
        if tls_dir is not None:
            document["tls_dir"] = tls_dir
        return cls.parse(document, source="--replicas or --port-base")

    @classmethod
    def load(cls, path: Path) -> Topology:
        """Reads a topology file.

        Raises:
            RemitError: CONFIGURATION_INVALID naming the file and the field.

        """
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _invalid(str(path), " ".join(str(error).split())) from error
        return cls.parse(document, source=str(path))

    @classmethod
    def parse(cls, document: object, *, source: str) -> Topology:
        """Validates a topology; `source` is where to correct it. Raises as `load` does."""
        try:
            return cls.model_validate(document)
        except pydantic.ValidationError as error:
            raise _invalid(source, _first_fault(error)) from error

    def traced(self, endpoint: str, ratio: float) -> Topology:
        """The same mesh with its spans sent to a collector. Raises as `load` does."""
        document = self.model_dump(mode="json")
        document["tracing"] = {"endpoint": endpoint, "ratio": ratio}
        return self.parse(document, source="--trace-endpoint")

    def dump(self) -> str:
        """The file that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def listeners(self) -> Iterator[tuple[str, Address]]:
        """Everything that listens, with the setting that moves it."""
        yield "edge.port", self.edge
        yield "mesh.port", self.mesh
        yield "admin.port", self.admin
        yield "stats.port", self.stats
        for area in AREAS:
            for index, replica in enumerate(self.replicas.get(area, ())):
                setting = f"replicas.{area}[{index}]"
                yield f"{setting}.port", replica
                yield f"{setting}.http_port", Address(host=replica.host, port=replica.http_port)


def _ports(area: str, count: int, port_base: int) -> list[dict[str, int]]:
    if area not in AREAS:
        return [{"port": port_base}]  # refused by name when the whole is validated
    first = port_base + 10 * (AREAS.index(area) + 1)
    return [{"port": first + index} for index in range(count)]


def _first_fault(error: pydantic.ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _invalid(source: str, message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, f"{source}: {message}")
