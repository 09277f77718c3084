"""Settings of the two services that perform effects."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from remit.rpc.contracts import contract_of
from remit.settings import ServiceSettings

_CLOSINGS: Final = (
    "/remit.api.cost.v1.CostService/BatchSettleReservations",
    "/remit.api.cost.v1.CostService/BatchReleaseReservations",
    "/remit.api.audit.v1.AuditService/AppendOutcomes",
)


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

    @property
    def closing_bound_s(self) -> float:
        """Seconds after which the money of an attempt is where it belongs, whatever died.

        While a replica of this service, cost, audit and their databases live: the lease of an owner
        that is gone lapses; a sweep finds it; it is left to its gate for two sweeps, as every end
        is; a further sweep closes it. A round of the sweeper lasts as long as its slowest closing.
        """
        closing_s = self.effect_closing_linger_s + max(
            contract.deadline_s for path in _CLOSINGS if (contract := contract_of(path))
        )
        return self.effect_lease_s + 4 * self.effect_sweep_s + 3 * closing_s
