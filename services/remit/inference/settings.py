"""Settings of the inference service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from remit.effects import EffectSettings
from remit.inference.declarations import SHIPPED_FILE


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
    heartbeat_s: float = Field(
        default=10.0,
        gt=0,
        le=25,
        description="Longest silence of a stream; below the 30 s that its contract allows.",
    )
