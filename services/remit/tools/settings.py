"""Settings of the tools service: which tools there are, where they may reach, and every bound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from remit.effects import EffectSettings
from remit.guardrails import Rules, parse_rules
from remit.tools.execution import ExecutionLimits
from remit.tools.mail import EMAIL_PATTERN
from remit.tools.results import ResultLimits
from remit.tools.screening import SHIPPED_GUARDRAILS


class ToolsSettings(EffectSettings):
    """What the tools service needs to know; read from `REMIT_TOOLS_*`."""

    model_config = SettingsConfigDict(env_prefix="REMIT_TOOLS_")

    modules: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Python modules with tools of your own, separated by commas."
    )
    folders: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Folders that read_file and search may read besides the workspace, separated "
        "by commas. Everybody who may call these tools can read them.",
    )
    workspace: Path = Field(
        default=Path.home() / ".local/state/remit/workspace",
        description="Folder below which each user has a workspace, orgs/{org}/users/{user}.",
    )
    workspace_max_bytes: int = Field(
        default=256 * 2**20, ge=1, description="Bytes that one user's workspace may hold."
    )
    workspace_max_files: int = Field(
        default=10_000, ge=1, description="Files that one user's workspace may hold."
    )
    file_max_bytes: int = Field(
        default=2**20, ge=1, le=2**26, description="Largest file that read_file and search open."
    )
    search_max_files: int = Field(
        default=5_000,
        ge=1,
        description="Files that one search looks at; it says if there are more.",
    )
    search_max_bytes: int = Field(
        default=32 * 2**20, ge=1, description="Bytes that one search reads; it says if it is cut."
    )
    smtp_host: str = Field(default="127.0.0.1", description="Mail server of send_email.")
    smtp_port: int = Field(default=25, ge=1, le=65_535, description="Port of the mail server.")
    smtp_security: Literal["none", "starttls", "tls"] = Field(
        default="none", description="How the connection to the mail server is secured."
    )
    smtp_ca_file: Path | None = Field(
        default=None, description="PEM file of the CA of the mail server; the system's by default."
    )
    smtp_username: str = Field(default="", description="User at the mail server; empty: no login.")
    smtp_password: SecretStr = Field(
        default=SecretStr(""), description="Password at the mail server."
    )
    smtp_from: str = Field(
        default="remit@localhost.localdomain",
        pattern=EMAIL_PATTERN,
        description="Sender of every mail; models cannot choose it.",
    )
    webhook_key_files: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Files (0600) with secrets of 64 hex digits from which the keys that sign "
        "webhooks derive, the newest first, separated by commas. Without one no webhook is sent.",
    )
    webhook_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        default=(),
        description="Private networks that webhooks may reach, such as `10.20.0.0/16,127.0.0.0/8`, "
        "separated by commas; the agent service must be told the same.",
    )
    webhook_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the CA of webhooks' receivers; the system's by default.",
    )
    webhook_timeout_s: float = Field(
        default=10.0, gt=0, le=30, description="Seconds that a webhook's receiver has to answer."
    )
    max_running: int = Field(
        default=256, ge=1, le=10_000, description="Tools that run at once in this replica."
    )
    max_blocking: int = Field(
        default=16, ge=1, le=256, description="Of them, those that run in a thread."
    )
    max_result_bytes: int = Field(
        default=256 * 2**10, ge=1_024, le=2**20, description="Largest result of a tool."
    )
    max_artifacts: int = Field(default=2, ge=0, le=2, description="Files that one call may return.")
    max_artifact_bytes: int = Field(
        default=2**20, ge=0, le=2**20, description="Largest file that a call may return."
    )
    guardrails: str = Field(
        default="",
        description="What happens to what is found in arguments and results, such as"
        " `secrets.output=redact`, separated by commas: `off`, `flag`, `redact` or `refuse`;"
        f" what is not named stays `{SHIPPED_GUARDRAILS}`; docs/GUARDRAILS.md.",
    )

    @field_validator("guardrails")
    @classmethod
    def _known(cls, value: str) -> str:
        parse_rules(value)
        return value

    @property
    def guardrail_rules(self) -> Rules:
        """What happens to what is found."""
        return Rules.of(self.guardrails, SHIPPED_GUARDRAILS)

    @field_validator("modules", "folders", "webhook_key_files", "webhook_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("folders")
    @classmethod
    def _existing(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        for folder in folders:
            if not folder.is_dir():
                message = f"{folder} is not a folder"
                raise ValueError(message)
        return folders

    @model_validator(mode="after")
    def _no_password_in_clear(self) -> Self:
        if self.smtp_username and self.smtp_security == "none":
            message = (
                "smtp_username needs smtp_security starttls or tls: a password is not sent in clear"
            )
            raise ValueError(message)
        return self

    def result_limits(self) -> ResultLimits:
        """Bounds of one result."""
        return ResultLimits(self.max_result_bytes, self.max_artifacts, self.max_artifact_bytes)

    def execution_limits(self) -> ExecutionLimits:
        """Bounds of all running tools."""
        return ExecutionLimits(self.max_running, self.max_blocking)
