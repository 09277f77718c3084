"""Settings of the audit service; each is `REMIT_AUDIT_<FIELD>` in the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from remit.settings import ServiceSettings


class AuditSettings(ServiceSettings):
    """What the audit service can be told."""

    model_config = SettingsConfigDict(env_prefix="REMIT_AUDIT_", frozen=True, extra="ignore")

    keys_dsn: str = Field(
        default="", description="PostgreSQL DSN of the database of subjects' keys, service role."
    )
    keys_eraser_dsn: str = Field(
        default="",
        description="PostgreSQL DSN of the same database for the role that may delete keys and do"
        " nothing else. Without it nobody can be erased.",
    )
    keys_dir: Path = Field(
        default=Path("audit-keys"),
        description="Folder with log.key, log.pub, subject_master.key and pseudonym.key.",
    )
    anchor_file: Path | None = Field(
        default=None,
        description="File outside the database that holds the newest checkpoint, which the log must"
        " extend at the next start; log.anchor in the folder of keys without it.",
    )
    checkpoint_interval_ms: int = Field(
        default=1000,
        ge=10,
        le=3_600_000,
        description="Milliseconds between looks at whether the log grew and needs a checkpoint.",
    )
    tiles_dir: Path | None = Field(
        default=None,
        description="Folder that the log is written to as static files (C2SP tlog-tiles), for"
        " mirrors and for auditors; not written without. `remit up` sets `tiles` of its state.",
    )
    tiles_interval_ms: int = Field(
        default=1000,
        ge=10,
        le=3_600_000,
        description="Milliseconds between looks at whether a checkpoint needs new tiles.",
    )
    tiles_per_round: int = Field(
        default=256,
        ge=1,
        le=4096,
        description="Tiles of 256 leaves that one look writes at most; the next look goes on.",
    )
    archiver_dsn: str = Field(
        default="",
        description="PostgreSQL DSN of the log's database for the role that may drop archived"
        " months and do nothing else. Without it no month is dropped.",
    )
    archive_dir: Path | None = Field(
        default=None,
        description="Folder that the payloads of old months are archived in, still encrypted: a"
        " file a month. Needs `tiles_dir`, which has the entries themselves. `remit up` sets"
        " `archive` of its state.",
    )
    retention_months: int = Field(
        default=0,
        ge=0,
        le=1200,
        description="Whole months before this one whose events stay in the database; older ones"
        " are archived and dropped. 0 keeps all for ever; 1 and more need `archive_dir`.",
    )
    archive_check_s: float = Field(
        default=3600.0,
        gt=0,
        le=86_400,
        description="Seconds between looks for months older than the retention.",
    )
    max_entries: int = Field(
        default=256, ge=1, le=256, description="Entries of one append request at most."
    )
    max_detail_bytes: int = Field(
        default=16_384, ge=2, le=16_384, description="Bytes of an event's detail at most, in UTF-8."
    )
    max_text_chars: int = Field(
        default=512,
        ge=128,
        le=2048,
        description="Characters of any other text of an event at most.",
    )
    max_future_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="Seconds by which an event's time may be ahead of this service's clock.",
    )
    open_limit_s: float = Field(
        default=900.0,
        gt=0,
        description="Age of an open effect in seconds from which a check of the log's completeness"
        " names it; longer than any model or tool call lasts.",
    )
    max_batch: int = Field(default=1024, ge=1, le=4096, description="Events of one commit at most.")
    max_queue: int = Field(
        default=16_384, ge=256, description="Events that wait for a commit at most."
    )
    subject_key_cache_size: int = Field(
        default=10_000, ge=256, description="Subjects' keys remembered at most."
    )
    subject_key_cache_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="Seconds that a subject's key is remembered, here and by the services that are"
        " given keys derived from it: the bound within which an erasure takes effect everywhere.",
    )
    erasure_check_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Seconds between looks for erasures that are in the log and were not finished.",
    )
    access_flush_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Seconds between appends of what the gateway refused by itself, and of which"
        " area was given a key of whom; equal ones share an entry. A crash loses what was gathered"
        " since.",
    )
    access_interval_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="Seconds for which equal refusals of the gateway are counted before the next"
        " entry about them.",
    )
    access_max_entries: int = Field(
        default=16_384,
        ge=64,
        le=1_000_000,
        description="Refusals of the gateway kept until they are appended: half as many at most."
        " Beyond it they are counted without particulars. As many uses of subjects' keys; beyond it"
        " no key is given.",
    )
    key_use_interval_s: float = Field(
        default=3600.0,
        ge=0,
        le=86_400,
        description="Seconds for which it is counted how often an area is given a subject's key"
        " before the next entry about it.",
    )
    default_page_size: int = Field(
        default=50, ge=1, le=200, description="Events of a page when the request states no number."
    )
    max_page_size: int = Field(default=200, ge=1, le=200, description="Events of a page at most.")
    page_looked_at_events: int = Field(
        default=10_000,
        ge=256,
        le=100_000,
        description="Events looked at for one page at most; a page of rare events is short, and its"
        " token goes on behind them.",
    )
    tail_look_ms: int = Field(
        default=200,
        ge=10,
        le=5000,
        description="Milliseconds between looks at whether the log grew, while somebody tails it.",
    )
    heartbeat_s: float = Field(
        default=10.0,
        gt=0,
        le=10,
        description="Seconds without an event after which a tail sends a heartbeat.",
    )
    export_leaves_per_message: int = Field(
        default=256, ge=1, le=512, description="Leaves of one message of an export at most."
    )
    partition_check_s: float = Field(
        default=3600.0,
        gt=0,
        le=86_400,
        description="Seconds between looks at whether next month's partition exists.",
    )
