"""The ends of runs that are still to be told: claimed by one replica, recorded by the same.

The commit that ends a run writes the row (`statements.WRITE`), so an end that was committed is told
whatever dies. A claim is a lease: it lapses by this database's clock, and who lost it records
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.rpc import status_pb2

from remit import names
from remit.agent.records import run_id
from remit.agent.sealing import KEY_COLUMNS, SEALED, Key, KeyRef, Keys, key_ref
from remit.agent.webhooks import Verdict
from remit.api.agent.v1 import run_pb2
from remit.postgres import Database
from remit.rpc.errors import RemitError
from remit.subject_keys import is_erased


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery that this replica may try now."""

    run: str
    claim: int
    """Number of the claim; a later one takes the delivery away."""
    tries: int
    age_s: float
    """Since the run ended."""
    fencing_token: int
    """Of the run's last worker: its remits are the only ones that policy takes."""
    org: str
    traceparent: str
    key: KeyRef
    """What the run is sealed with."""


class Outbox:
    """The deliveries; every method raises DEPENDENCY_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database, keys: Keys, *, owner: str, lease_s: float) -> None:
        self._database = database
        self._keys = keys
        self._owner = owner
        self._lease_s = lease_s

    async def claim(self, limit: int, here: Mapping[str, int], *, most_of_an_org: int) -> list[Due]:
        """Up to `limit` deliveries that are due, each org's oldest first, orgs in turn.

        `here` counts those under way in this replica by org: of one org no more than
        `most_of_an_org` are.
        """
        rows = await self._database.fetch(
            _CLAIM,
            self._owner,
            self._lease_s,
            limit,
            list(here),
            list(here.values()),
            most_of_an_org,
        )
        return [
            Due(
                names.run_name(str(row["run"])),
                row["claims"],
                row["tries"],
                row["age_s"],
                row["fencing_token"],
                row["org"],
                row["traceparent"] or "",
                key_ref(row),
            )
            for row in rows
        ]

    async def record(self, due: Due, verdict: Verdict) -> bool:
        """Records a try and gives the claim back; False if it was another's by then."""
        error = await self._stored_error(due, verdict.error)
        row = await self._database.fetchrow(
            _RECORD,
            run_id(due.run),
            due.claim,
            verdict.state,
            verdict.tries,
            verdict.wait_s,
            error,
        )
        return row is not None

    async def release(self, due: Due) -> None:
        """Gives a claim back with nothing recorded, so that another replica may try at once."""
        await self._database.execute(_RELEASE, run_id(due.run), due.claim)

    async def _stored_error(self, due: Due, error: RemitError | None) -> bytes | None:
        """An error as it is stored: sealed, for it says where the run's end was told."""
        if error is None:
            return None
        stored = error.to_status().SerializeToString()
        if is_erased(error):
            return stored  # nobody's, and the key is gone
        key = await self._keys.to_read(due.key, run_id(due.run))
        return stored if key is None else key.seal(_ERROR, stored)


_ERROR: Final = "webhook error"

DELIVERY: Final = """
(SELECT (d.state, d.tries, d.next_try_time, d.end_time, d.error)
 FROM webhook_deliveries d WHERE d.run = runs.run) AS delivery
"""
"""A column of a query on `runs`, for `fill`; NULL before the run has ended."""


def fill(
    webhook: run_pb2.Webhook,
    delivery: tuple[run_pb2.WebhookState.ValueType, int, datetime, datetime | None, bytes | None],
    key: Key | None,
) -> None:
    """Says in a run's webhook how far the delivery is; `key` is the run's. Raises DATA_CORRUPT."""
    webhook.state, webhook.tries, next_try_time, end_time, error = delivery
    if end_time is not None:
        webhook.end_time.FromDatetime(end_time)
    else:
        webhook.next_try_time.FromDatetime(next_try_time)
    if error is not None and error[0] != SEALED:
        webhook.error.CopyFrom(status_pb2.Status.FromString(error))
    elif error is not None and key is not None:
        webhook.error.CopyFrom(status_pb2.Status.FromString(key.open(_ERROR, error)))


# The outer conditions are checked again on the locked row: two replicas never take the same one.
_CLAIM: Final = f"""
WITH ranked AS (
    SELECT d.run, r.org, d.next_try_time,
           row_number() OVER (PARTITION BY r.org ORDER BY d.next_try_time, d.run) AS place
    FROM webhook_deliveries d JOIN runs r USING (run)
    WHERE d.state = 2 AND d.next_try_time <= clock_timestamp()
      AND (d.lease_expire_time IS NULL OR d.lease_expire_time <= clock_timestamp())
), candidates AS (
    SELECT run, place + coalesce(here.started, 0) AS turn, next_try_time
    FROM ranked LEFT JOIN unnest($4::text[], $5::int[]) AS here (org, started) USING (org)
    WHERE place <= $6 - coalesce(here.started, 0)
    ORDER BY turn, next_try_time, run LIMIT 2 * $3::bigint
), picked AS (
    SELECT d.run FROM webhook_deliveries d JOIN candidates c USING (run)
    WHERE d.state = 2
      AND (d.lease_expire_time IS NULL OR d.lease_expire_time <= clock_timestamp())
    ORDER BY c.turn, c.next_try_time, d.run LIMIT $3::bigint
    FOR UPDATE OF d SKIP LOCKED
)
UPDATE webhook_deliveries d SET
    owner = $1,
    claims = d.claims + 1,
    lease_expire_time = clock_timestamp() + make_interval(secs => $2::float8)
FROM picked JOIN runs USING (run)
WHERE d.run = picked.run
RETURNING d.run, d.claims, d.tries, runs.fencing_token, runs.org, runs.traceparent, {KEY_COLUMNS},
          extract(epoch FROM clock_timestamp() - d.create_time)::float8 AS age_s
"""  # noqa: S608 - made of constants

_RECORD: Final = """
UPDATE webhook_deliveries SET
    state = $3::smallint,
    tries = $4,
    next_try_time = clock_timestamp() + make_interval(secs => $5::float8),
    end_time = CASE WHEN $3::smallint > 2 THEN clock_timestamp() END,
    error = $6::bytea,
    owner = NULL,
    lease_expire_time = NULL
WHERE run = $1 AND claims = $2 AND state = 2
RETURNING run
"""

_RELEASE: Final = """
UPDATE webhook_deliveries SET owner = NULL, lease_expire_time = NULL
WHERE run = $1 AND claims = $2 AND state = 2
"""
