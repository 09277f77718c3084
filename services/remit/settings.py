"""Settings that every service has; each area adds its own in `<area>/settings.py`.

Values come from the environment, `REMIT_<AREA>_<FIELD>`, or from files of that name in the folder
that `REMIT_SECRETS_DIR` names, which is how a container gets what must not stand in its
environment. Every default works under `remit up`; a wrong value stops the start with a message that
names the variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError, Violation

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
SECRETS_VARIABLE: Final = "REMIT_SECRETS_DIR"
"""Names a folder whose files are settings: the file's name is the variable's."""


class ServiceSettings(BaseSettings):
    """What every service of the mesh needs to know."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    dsn: str = Field(default="", description="PostgreSQL DSN of the area's database, service role.")
    host: str = Field(default="127.0.0.1", description="Address that the gRPC server listens on.")
    port: int = Field(default=0, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    http_port: int = Field(
        default=0, ge=0, le=65535, description="Port of /health, /ready and /metrics; 0 picks one."
    )
    tls_dir: Path = Field(
        default=Path(), description="Folder with ca.pem, cert.pem and key.pem of this service."
    )
    mesh_address: str = Field(
        default="127.0.0.1:7400", description="host:port of the gateway's mesh listener."
    )
    replica: str = Field(default="0", description="Name of this replica, for logs and journals.")
    log_level: LogLevel = Field(
        default="info",
        description="Least level that is logged: `debug`, `info`, `warning` or `error`.",
    )
    max_in_flight: int = Field(
        default=1024,
        ge=10,
        description="RPCs in flight per replica; the last fifth is kept for calls that close.",
    )
    drain_s: float = Field(
        default=10.0, gt=0, le=300, description="Seconds that a drain waits for calls in flight."
    )
    pool_size: int = Field(default=8, ge=1, le=100, description="Database connections at most.")
    statement_timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="Limit of one database statement in seconds."
    )
    allow_unsafe_durability: bool = Field(
        default=False,
        description="Start although acknowledged commits can be lost. Never in production.",
    )
    observe_s: float = Field(
        default=5.0,
        gt=0,
        le=300,
        description="Seconds between looks at the state that gauges show, such as open holds.",
    )
    trace_endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^/\s]+)?$",
        description="OTLP collector that spans go to by gRPC, `http://host:port`; none without.",
    )
    trace_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of new traces that are recorded; a call with a trace follows it.",
    )
    trace_queue: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Spans that wait for the collector, at most; then the oldest are lost.",
    )
    trace_content: bool = Field(
        default=False,
        description="Put prompts, answers, arguments and results on spans, and texts of exceptions"
        " in the log.",
    )
    trace_content_chars: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Characters of one content on a span, at most; the rest is cut.",
    )

    @classmethod
    def load(cls, **overrides: Any) -> Self:  # noqa: ANN401 - any field of any subclass
        """Reads the environment. Raises CONFIGURATION_INVALID that names each wrong variable."""
        folder = secrets_folder(os.environ)
        try:
            return cls(**overrides, _secrets_dir=folder)
        except ValidationError as error:
            raise configuration_error(cls.model_config.get("env_prefix", ""), error) from error


def secrets_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder with settings as files, if there is one.

    Raises:
        RemitError: CONFIGURATION_INVALID; it is named and is no folder.

    """
    named = environment.get(SECRETS_VARIABLE)
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{SECRETS_VARIABLE}: {folder} is not a folder",
        )
    return folder


def secret(name: str, environment: Mapping[str, str]) -> str:
    """A setting outside the services' own: from the environment, else from its file, else empty."""
    folder = secrets_folder(environment)
    file = folder / name if folder else None
    if name in environment or file is None or not file.is_file():
        return environment.get(name, "")
    return file.read_text(encoding="utf-8").strip()


def configuration_error(prefix: str, error: ValidationError) -> RemitError:
    """CONFIGURATION_INVALID with one violation a field; `prefix` goes before each field's path."""
    violations = [
        Violation(
            f"{prefix}{'.'.join(str(part) for part in fault['loc'])}".upper()
            if prefix.isupper()
            else f"{prefix}{'.'.join(str(part) for part in fault['loc'])}",
            fault["msg"],
        )
        for fault in error.errors()
    ]
    first = violations[0]
    return RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
        "; ".join(f"{v.field}: {v.description}" for v in violations) or first.description,
        violations=violations,
    )
