"""The first API key: whoever has none cannot ask for one, so `remit up` makes it."""

from __future__ import annotations

from typing import Final

from remit.local.state import StateDirectory, write_private
from remit.local.wiring import Secrets

ORG: Final = "orgs/local"
USER: Final = "orgs/local/users/admin"
"""Whose the first API key is."""


async def ensure_api_key(state: StateDirectory, dsn: str, secrets: Secrets) -> bool:
    """Makes the key unless its file is there; returns whether it did."""
    if state.api_key_file.exists():
        return False
    from remit.policy.api_keys import Pepper  # noqa: PLC0415 - only the first start needs it
    from remit.policy.bootstrap import bootstrap_admin  # noqa: PLC0415
    from remit.postgres import Database  # noqa: PLC0415
    from remit.secret_files import read_secret  # noqa: PLC0415

    async with Database.open(dsn, pool_size=1) as database:
        key = await bootstrap_admin(database, Pepper(read_secret(secrets.pepper)), ORG, USER)
    write_private(state.api_key_file, f"{key}\n")
    return True
