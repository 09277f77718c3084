"""Settings of the agent service; each is `REMIT_AGENT_<FIELD>` in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, IPvAnyNetwork, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from remit.addresses import parse_networks
from remit.agent.validation import SHIPPED_GUARDRAILS
from remit.guardrails import Direction, Rules, parse_rules
from remit.settings import ServiceSettings


class AgentSettings(ServiceSettings):
    """What the agent service can be told."""

    model_config = SettingsConfigDict(env_prefix="REMIT_AGENT_", frozen=True, extra="ignore")

    agents_dir: Path | None = Field(
        default=None,
        description="Folder with agents of your own as YAML; they replace shipped ones by name.",
    )
    max_running: int = Field(
        default=64, ge=1, le=4096, description="Runs that a replica works on at once."
    )
    max_running_per_org: int = Field(
        default=64, ge=1, le=4096, description="Runs of one org that a replica works on at once."
    )
    max_queued_runs: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Runs that wait for a worker, over all replicas; beyond it OVERLOADED.",
    )
    max_scheduled_runs: int = Field(
        default=10_000,
        ge=0,
        le=1_000_000,
        description="Runs that wait for their time, over all replicas; beyond it OVERLOADED.",
    )
    lease_s: float = Field(
        default=10.0,
        ge=0.2,
        le=600,
        description="Seconds that a worker holds a run without renewal; bounds the adoption time.",
    )
    claim_poll_s: float = Field(
        default=2.0,
        ge=0.05,
        le=60,
        description="Seconds between looks for runs whose worker is gone.",
    )
    claim_batch: int = Field(default=16, ge=1, le=256, description="Runs claimed at once at most.")
    hand_over_s: float = Field(
        default=8.0,
        ge=0,
        le=300,
        description="Seconds that a drain lets effects under way end before it hands runs over.",
    )
    max_parallel_tools: int = Field(
        default=8, ge=1, le=64, description="Tool calls of one model turn that are made at once."
    )
    delta_interval_ms: int = Field(
        default=50, ge=1, le=5000, description="Milliseconds of text gathered in one event."
    )
    delta_chars: int = Field(
        default=500, ge=1, le=100_000, description="Characters of text gathered in one event."
    )
    retry_base_s: float = Field(
        default=0.5, gt=0, le=60, description="Backoff of a run's first wait in seconds."
    )
    retry_cap_s: float = Field(
        default=30.0, gt=0, le=3600, description="Longest backoff of a run in seconds."
    )
    max_doubt_attempts: int = Field(
        default=3,
        ge=1,
        le=10,
        description="Times that a tool call in doubt is made, the first included.",
    )
    max_history_runs: int = Field(
        default=50,
        ge=0,
        le=1000,
        description="Earlier exchanges of its conversation that a run sees at most.",
    )
    max_history_bytes: int = Field(
        default=262_144,
        ge=0,
        le=2_097_152,
        description="Bytes of the earlier exchanges that a run sees at most; the newest are kept.",
    )
    heartbeat_s: float = Field(
        default=10.0,
        gt=0,
        le=10,
        description="Seconds of silence after which a stream sends a heartbeat and looks itself.",
    )
    watch_page: int = Field(
        default=200, ge=1, le=1000, description="Events read from the journal at once."
    )
    recent_events: int = Field(
        default=256, ge=16, le=65_536, description="Events per watched run kept in memory."
    )
    offer_cache_size: int = Field(
        default=1024, ge=1, le=1_000_000, description="Offers of tools remembered at most."
    )
    offer_cache_s: float = Field(
        default=30.0, ge=0, le=3600, description="Seconds that an offer of tools is remembered."
    )
    receipt_linger_s: float = Field(
        default=1.0,
        ge=0,
        le=60,
        description="Seconds after which inference and tools are told that a result of theirs is in"
        " a journal, and need not be kept by them.",
    )
    receipt_queue: int = Field(
        default=65_536,
        ge=1,
        le=1_000_000,
        description="Results of a service that wait to be told so; the oldest give way.",
    )
    webhook_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        default=(),
        description="Private networks that webhooks may reach, such as `10.20.0.0/16,127.0.0.0/8`, "
        "separated by commas; the tools service must be told the same.",
    )
    webhook_max_sending: int = Field(
        default=32, ge=1, le=1024, description="Webhooks that a replica posts at once."
    )
    webhook_max_sending_per_org: int = Field(
        default=8, ge=1, le=1024, description="Webhooks of one org that a replica posts at once."
    )
    webhook_max_tries: int = Field(
        default=16, ge=1, le=100, description="Tries of a webhook before it is given up."
    )
    webhook_max_age_s: float = Field(
        default=86_400.0,
        gt=0,
        le=604_800,
        description="Seconds after a run's end at which its webhook is given up.",
    )
    webhook_retry_base_s: float = Field(
        default=5.0, gt=0, le=3600, description="Backoff of a webhook's first retry in seconds."
    )
    webhook_retry_cap_s: float = Field(
        default=3600.0, gt=0, le=86_400, description="Longest backoff of a webhook in seconds."
    )
    webhook_lease_s: float = Field(
        default=90.0,
        ge=0.2,
        le=600,
        description="Seconds after which another replica may try a webhook whose sender is gone.",
    )
    webhook_poll_s: float = Field(
        default=1.0, ge=0.02, le=60, description="Seconds between looks for webhooks that are due."
    )
    erased_poll_s: float = Field(
        default=15.0,
        ge=0.05,
        le=600,
        description="Seconds between looks for unfinished runs whose subject was erased.",
    )
    approval_poll_s: float = Field(
        default=1.0,
        ge=0.02,
        le=60,
        description="Seconds between looks whether the approvals that runs wait for are decided.",
    )
    guardrails: str = Field(
        default="",
        description="What happens to what is found in tasks and contexts, such as"
        " `personal_data.input=redact`, separated by commas: `off`, `flag`, `redact` or `refuse`;"
        f" what is not named stays `{SHIPPED_GUARDRAILS}`; docs/GUARDRAILS.md.",
    )
    max_batch: int = Field(
        default=256, ge=1, le=4096, description="Journal entries in one commit at most."
    )
    max_queue: int = Field(
        default=4096, ge=16, le=1_000_000, description="Journal entries that wait for a commit."
    )

    @property
    def guardrail_rules(self) -> Rules:
        """What happens to what is found."""
        return Rules.of(self.guardrails, SHIPPED_GUARDRAILS)

    @field_validator("guardrails")
    @classmethod
    def _known(cls, value: str) -> str:
        parse_rules(value, (Direction.INPUT,))
        return value

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return parse_networks(value) if isinstance(value, str) else value
