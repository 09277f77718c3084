"""Settings of the inference service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from remit.effects import EffectSettings
from remit.guardrails import Rules, parse_rules
from remit.inference.declarations import SHIPPED_FILE
from remit.inference.screening import SHIPPED_GUARDRAILS
from remit.inference.supervision import Terms


class InferenceSettings(EffectSettings):
    """What the inference service needs to know; read from `REMIT_INFERENCE_*`."""

    model_config = SettingsConfigDict(env_prefix="REMIT_INFERENCE_")

    models_file: Path = Field(
        default=SHIPPED_FILE, description="YAML file that declares the models; docs/MODELS.md."
    )
    max_answer_bytes: int = Field(
        default=1_048_576,
        ge=1_024,
        le=3_145_728,
        description="Largest answer of a model in bytes; a provider that sends more is cut off.",
    )
    max_provider_connections: int = Field(
        default=256, ge=1, le=10_000, description="Connections to the provider of one model."
    )
    lease_tokens: int = Field(
        default=2_048,
        ge=1,
        le=10_000_000,
        description="Output tokens that are held at first, and ahead of what came, for a model"
        " whose `stop_stops_bill` is true; of others all of max_output_tokens is held.",
    )
    lease_s: float = Field(
        default=8.0,
        ge=0,
        le=300,
        description="A lease lasts so many seconds at least, at the pace of its stream; more is"
        " asked for when half of it is used.",
    )
    lease_wait_s: float = Field(
        default=2.0,
        ge=0,
        le=30,
        description="How long a stream that outran its lease waits for the ledger before it is"
        " cut, in seconds.",
    )
    permission_recheck_s: float = Field(
        default=30.0,
        ge=0.1,
        le=300,
        description="Longest time in seconds that a generation goes on by one answer of policy.",
    )
    heartbeat_s: float = Field(
        default=10.0,
        gt=0,
        le=25,
        description="Longest silence of a stream; below the 30 s that its contract allows.",
    )
    guardrails: str = Field(
        default="",
        description="What happens to what is found in prompts and answers, such as"
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

    @property
    def terms(self) -> Terms:
        """What generations that go on need to know."""
        return Terms(self.lease_tokens, self.lease_s, self.lease_wait_s, self.permission_recheck_s)
