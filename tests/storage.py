"""What PostgreSQL really stores: tables with their TOAST and indexes, over all areas' databases.

Measured after VACUUM, so that what was deleted or replaced does not count where it can be given
back; pages that stay half empty count in full.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from remit.postgres import DATABASES

_TABLES: Final = """
SELECT c.relname AS name, pg_total_relation_size(c.oid) AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname = 'public'
"""

_UNREST: Final = """
SELECT count(*) FROM effect_attempts WHERE closed_time IS NULL
    OR (outcome = 'SUCCEEDED' AND result IS NOT NULL)
"""
_GATES: Final = ("inference", "tools")


async def at_rest(socket: str) -> bool:
    """Whether every effect is closed and every result is in the journal of its run alone."""
    for area in _GATES:
        connection = await asyncpg.connect(host=socket, user="postgres", database=f"remit_{area}")
        try:
            if await connection.fetchval(_UNREST):
                return False
        finally:
            await connection.close()
    return True


async def stored(socket: str) -> dict[str, int]:
    """Bytes of each table, `database.table`, of the server at a unix socket's folder."""
    found: dict[str, int] = {}
    for database in DATABASES:
        connection = await asyncpg.connect(
            host=socket, user="postgres", database=f"remit_{database}"
        )
        try:
            await connection.execute("VACUUM")
            rows = await connection.fetch(_TABLES)
        finally:
            await connection.close()
        found |= {f"{database}.{row['name']}": row["bytes"] for row in rows}
    return found


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was added to each table that grew, the most first."""
    added = {table: size - before.get(table, 0) for table, size in after.items()}
    return {table: size for table, size in sorted(added.items(), key=lambda t: -t[1]) if size}
