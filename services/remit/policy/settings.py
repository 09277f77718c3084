"""Settings of the policy service; each is `REMIT_POLICY_<FIELD>` in the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from remit.settings import ServiceSettings


class PolicySettings(ServiceSettings):
    """What the policy service can be told."""

    model_config = SettingsConfigDict(env_prefix="REMIT_POLICY_", frozen=True, extra="ignore")

    pepper_file: Path = Field(
        default=Path("api-keys.pepper"),
        description="File (0600) with the pepper of the API keys: 64 hex digits.",
    )
    signing_key_file: Path = Field(
        default=Path("signing-keys.key"),
        description="File (0600) with the key that seals the signing keys: 64 hex digits.",
    )
    policies_dir: Path | None = Field(
        default=None,
        description="Folder whose *.cedar files are the policies until some are pushed; unset:"
        " those that Remit ships.",
    )
    oidc_file: Path | None = Field(
        default=None,
        description="File of the identity providers whose tokens clients may present, and whom they"
        " speak for (docs/OIDC.md); the gateway's topology names the same. Unset: API keys alone.",
    )
    operator_org: str = Field(
        default="",
        max_length=400,
        description="Org whose admins change the policies, which hold for every org of the mesh;"
        " unset: the org that was set up first.",
    )
    remit_lifetime_s: int = Field(
        default=600, ge=300, le=600, description="Seconds that a remit lives."
    )
    signing_key_period_s: float = Field(
        default=604_800.0, ge=3600, description="Seconds after which a new key signs remits."
    )
    refresh_s: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="Seconds between looks for new signing keys of other replicas.",
    )
    policies_refresh_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Seconds within which the edge follows policies and grants that another"
        " replica accepted. It looks twice in them, so that half is left to load what is new; what"
        " takes longer is late by that, but never later than EDGE_CACHE_S. Decisions about effects"
        " follow at once.",
    )
    edge_cache_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="Seconds that the edge's answer for an API key is reused: the bound within"
        " which a key revoked on another replica stops working. 0 turns reuse off.",
    )
    edge_cache_size: int = Field(
        default=10_000, ge=1, description="API keys whose answer is kept at most."
    )
    run_limit_of_user: int = Field(
        default=10,
        ge=0,
        le=10_000,
        description="Runs that a user may start in any window of RUN_LIMIT_WINDOW_S; 0: no limit.",
    )
    run_limit_of_api_key: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Runs that may be started with one API key in any such window; 0: no limit.",
    )
    run_limit_of_org: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Runs that all users of an org may start in any such window; 0: no limit.",
    )
    run_limit_window_s: int = Field(
        default=60, ge=1, le=86_400, description="Seconds of the window of these limits."
    )
    unfinished_runs_of_user: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Runs that have not ended that a user may have at once; 0: any number.",
    )
    unfinished_runs_of_org: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Runs that have not ended that all users of an org may have; 0: any number.",
    )
    limits_url: str = Field(
        default="",
        pattern=r"^((redis|rediss|unix)://.+)?$",
        description="Redis or Valkey in which all replicas count against rate limits,"
        " `redis://host:6379`; without one, each replica counts on its own.",
    )
    limits_timeout_s: float = Field(
        default=0.5, gt=0, le=2, description="Limit of one question to that store in seconds."
    )
    limits_fail_open: bool = Field(
        default=False,
        description="Let runs start uncounted while that store is away; they are refused without.",
    )
    limits_max_entries: int = Field(
        default=200_000,
        ge=1000,
        description="Starts of runs that a replica remembers at most where it counts on its own;"
        " then none starts until one of them no longer counts.",
    )
    decision_valid_s: float = Field(
        default=10.0, gt=0, le=30, description="Seconds that a decision may be acted on."
    )
    max_batch: int = Field(
        default=256, ge=1, le=256, description="Runs registered or fenced in one commit at most."
    )
    max_queue: int = Field(
        default=4096, ge=1, description="Runs that wait to be registered or fenced at most."
    )
    access_flush_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Seconds between appends of decisions to the audit log; equal ones share an"
        " entry. A crash loses what was gathered since, but no effect's intent.",
    )
    access_interval_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="Seconds for which equal decisions outside of runs are counted before the next"
        " entry about them.",
    )
    access_max_entries: int = Field(
        default=16_384,
        ge=64,
        le=1_000_000,
        description="Decisions kept for the audit log at most. Beyond it nothing is allowed;"
        " refusals, which get half of the room, are counted without particulars.",
    )
    record_retry_s: float = Field(
        default=5.0,
        gt=0,
        le=300,
        description="Seconds between attempts to record admin changes that audit has not taken.",
    )
    decision_retention_days: int = Field(
        default=7,
        ge=0,
        le=28,
        description="Days for which decisions are kept, so that policies can be tried on them"
        " before they are pushed. 0 keeps none.",
    )
    decision_queue: int = Field(
        default=20_000,
        ge=1,
        description="Decisions that wait to be stored at most; more are not stored.",
    )
    decision_interval_s: float = Field(
        default=0.5, gt=0, le=60, description="Seconds between two stores of decisions."
    )
    shadow_queue: int = Field(
        default=20_000,
        ge=1,
        description="Decisions that wait to be shown to policies in shadow at most; more are not.",
    )
    simulation_processes: int = Field(
        default=2, ge=1, le=16, description="Processes that try policies on recorded decisions."
    )
    approval_look_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Seconds between looks for approvals whose time is over, and for changes that"
        " those who follow approvals are told.",
    )
    max_open_approvals: int = Field(
        default=1000, ge=1, description="Approvals of an org that wait for people at most."
    )
    heartbeat_s: float = Field(
        default=10.0,
        gt=0,
        le=10,
        description="Seconds without a change after which a watch of approvals sends a heartbeat.",
    )
