"""Settings of the cost service; each is `REMIT_COST_<FIELD>` in the environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from remit.cost.admission import DefaultBudget
from remit.cost.ledger import Rules
from remit.cost.periods import Period
from remit.cost.prices import Unlisted
from remit.cost.terms import percents_fault
from remit.pricing import INT64_MAX
from remit.settings import ServiceSettings


class CostSettings(ServiceSettings):
    """What the cost service can be told."""

    model_config = SettingsConfigDict(env_prefix="REMIT_COST_", frozen=True, extra="ignore")

    prices_file: Path | None = Field(
        default=None,
        description="YAML file with prices of one's own models and tools; they go before the"
        " shipped ones.",
    )
    unlisted_models: Unlisted = Field(
        default=Unlisted.REFUSE,
        description="What happens to a model that no price list knows: `refuse` or `free`.",
    )
    unlisted_tools: Unlisted = Field(
        default=Unlisted.FREE,
        description="What happens to a tool that no price list knows: `free` (a tool of one's own"
        " runs on one's own machine) or `refuse`.",
    )
    default_limit_nanos: int = Field(
        default=100_000_000_000,
        ge=0,
        le=INT64_MAX,
        description="What an org may spend in a period while nobody has set a budget for the org"
        " itself, in nano-USD; the default is 100 USD.",
    )
    default_period: Literal["TOTAL", "DAY", "MONTH"] = Field(
        default="MONTH", description="Period of the default budget: TOTAL, DAY or MONTH."
    )
    default_alert_percents: Annotated[tuple[int, ...], NoDecode] = Field(
        default=(80, 100),
        description="At how many percent of its limit the default budget, and a budget that says"
        " nothing else, fires an alert: 1 to 8 different ones from 1 to 1000, separated by commas.",
    )
    clock_tolerance_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="How far this replica's clock may lie behind the ledger's latest hold; beyond"
        " it, new holds are refused.",
    )
    max_batch: int = Field(
        default=256, ge=1, le=1024, description="Operations in one commit at most."
    )
    max_queue: int = Field(
        default=4096,
        ge=1,
        description="Operations that wait for a commit at most, opening and closing each.",
    )
    price_cache_size: int = Field(
        default=1024, ge=1, description="Public list prices that are remembered at most."
    )
    record_retry_s: float = Field(
        default=5.0,
        gt=0,
        le=300,
        description="Seconds between attempts to record alerts of budgets, and changes of budgets"
        " that audit has not taken.",
    )
    open_limit_s: float = Field(
        default=900.0,
        gt=0,
        description="Age of an open effect in seconds from which a check of the ledger names it;"
        " longer than any model or tool call lasts.",
    )
    check_books_timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=500,
        description="Seconds that a check may take to read all transfers and balances; their sums"
        " are one statement each.",
    )
    watch_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds between looks at holds that stay open, each of which is compared with"
        " its claim.",
    )

    @field_validator("prices_file", mode="before")
    @classmethod
    def _no_file(cls, value: object) -> object:
        """An empty variable names no file."""
        return value or None

    @field_validator("default_alert_percents", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("default_alert_percents")
    @classmethod
    def _percents(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        fault = percents_fault(value) or ("" if value else "is empty")
        if fault:
            raise ValueError(fault)
        return tuple(sorted(value))

    @property
    def rules(self) -> Rules:
        """What the ledger needs to know."""
        return Rules(
            DefaultBudget(
                Period[self.default_period], self.default_limit_nanos, self.default_alert_percents
            ),
            timedelta(seconds=self.clock_tolerance_s),
        )
