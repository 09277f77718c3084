"""Rows of orgs. Only SQL and rows here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_RESOURCE_NOT_FOUND
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.store import org_change
from remit.postgres import Database
from remit.rpc.errors import RemitError

_COLUMNS: Final = "name, create_time, disable_time"


@dataclass(frozen=True)
class OrgRow:
    """An org that is known."""

    name: str
    create_time: datetime
    disable_time: datetime | None


class OrgStore:
    """Rows in, rows out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, size: int, after: str) -> list[OrgRow]:
        """Return orgs after the name `after` (empty: from the start), by name."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM principals WHERE kind = 'ORG' AND name > $1"  # noqa: S608 - constants
            " ORDER BY name LIMIT $2",
            after,
            size,
        )
        return [OrgRow(**dict(row.items())) for row in rows]

    async def set_disabled(
        self,
        request: AdminRequest,
        org: str,
        answer: Callable[[OrgRow], bytes],
        *,
        disabled: bool,
    ) -> AdminChange:
        """Disable or enable an org and remember the request in one commit.

        Raises:
            RemitError: KEY_REUSED, or RESOURCE_NOT_FOUND if there is no such org.

        """
        async with org_change(self._database, request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            row = await connection.fetchrow(
                "UPDATE principals SET disable_time ="  # noqa: S608 - constants
                " CASE WHEN $2 THEN coalesce(disable_time, now()) END"
                f" WHERE name = $1 AND kind = 'ORG' RETURNING {_COLUMNS}",
                org,
                disabled,
            )
            if row is None:
                raise RemitError(
                    ERROR_REASON_RESOURCE_NOT_FOUND, f"{org} is not there: nobody of it was seen"
                )
            return await remember(connection, request, answer(OrgRow(**dict(row.items()))))
