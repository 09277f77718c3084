"""The settings of audit for an operator's command: its environment, or a mesh that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remit.audit.settings import AuditSettings


def audit_settings(state: Path | None) -> AuditSettings:
    """The settings of audit's own environment, or with `state` those of the mesh in that folder.

    Raises CONFIGURATION_INVALID where they are not whole.
    """
    from remit.audit.settings import AuditSettings  # noqa: PLC0415 - slow
    from remit.local.postgres_server import operator_dsn  # noqa: PLC0415 - slow
    from remit.local.state import StateDirectory  # noqa: PLC0415 - slow

    if state is None:
        return AuditSettings.load()
    folder = StateDirectory.existing(state)
    return AuditSettings.load(
        dsn=operator_dsn(folder.postgres, "audit"),
        keys_dsn=operator_dsn(folder.postgres, "audit_keys"),
        archiver_dsn=operator_dsn(folder.postgres, "audit"),
        keys_dir=folder.folder / "secrets" / "audit",
        tiles_dir=folder.tiles,
        archive_dir=folder.archive,
    )
