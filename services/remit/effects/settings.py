"""Settings of the two services that perform effects."""

from __future__ import annotations

from pydantic import Field

from remit.settings import ServiceSettings


class EffectSettings(ServiceSettings):
    """What the effect gate needs besides what every service needs."""

    effect_lease_s: float = Field(
        default=10.0,
        gt=0.1,
        le=300,
        description="Lease of a claim; lost owners are found after it.",
    )
    effect_sweep_s: float = Field(
        default=2.0, gt=0, le=60, description="How often lapsed and unclosed claims are looked for."
    )
    effect_stop_grace_s: float = Field(
        default=2.0, ge=0, le=60, description="Time an effect has to end once it is asked to stop."
    )
    effect_closing_linger_s: float = Field(
        default=0.1,
        ge=0,
        le=10,
        description="How long a settlement or an outcome waits for others to share its RPC.",
    )
    effect_max_batch: int = Field(
        default=128, ge=1, le=256, description="Effects in one RPC or commit of the gate."
    )
    effect_max_rpcs: int = Field(
        default=4, ge=1, le=64, description="RPCs of one kind that the gate has in flight."
    )
    effect_max_queue: int = Field(
        default=4096, ge=1, description="Effects that wait for an RPC or a commit of the gate."
    )
