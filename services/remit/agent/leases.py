"""Who works on which run: leases with fencing tokens, granted by the database's clock.

A lease is a duration. Its holder counts from before it asked, by its own monotonic clock, and stops
at 80 %; the database frees it by its own clock. So neither a frozen process nor a jumping clock
makes two workers write: the newer token wins in every transaction, and at policy for each effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from remit import names
from remit.agent.records import run_id
from remit.agent.sealing import KEY_COLUMNS, KeyRef, key_ref
from remit.agent.store import CHANNEL, IS_DUE, QUEUED
from remit.postgres import Database

_MANY: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Grant:
    """A run that a replica may work on while its lease lasts."""

    run: str
    fencing_token: int
    remaining_s: float
    """Seconds until the run's own deadline; not positive when it has passed."""
    is_orphan: bool
    """Whether another worker held it before, which let its lease lapse or was stopped."""
    org: str
    """`orgs/{org}`."""
    key: KeyRef
    """What it is sealed with."""
    traceparent: str = ""
    """The trace that created it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for a worker."""

    by_org: Mapping[str, int]
    """Runs whose time has come, by org."""
    next_due_s: float | None
    """Seconds until the next run's time comes; None if none waits for its time."""

    @property
    def queue_length(self) -> int:
        """Runs that wait for a worker and nothing else."""
        return sum(self.by_org.values())


@dataclass(frozen=True, slots=True)
class Held:
    """A lease to renew or to give back."""

    run: str
    fencing_token: int


class LeaseStore:
    """Grants, renews and frees leases. `owner` names this process, not just its replica."""

    def __init__(self, database: Database, *, owner: str, lease_s: float) -> None:
        self._database = database
        self.owner = owner
        self.lease_s = lease_s

    async def claim(
        self,
        limit: int,
        *,
        at_work_here: Mapping[str, int] | None = None,
        most_of_an_org: int = _MANY,
    ) -> list[Grant]:
        """Takes up to `limit` runs that wait for a worker or whose worker is gone.

        Fair between orgs: the next run goes to the org with the fewest at work; within an org by
        priority, then by age. Of an org no more than `most_of_an_org`, what this replica works on
        (`at_work_here`) counted in. Raises DEPENDENCY_UNAVAILABLE.
        """
        here = at_work_here or {}
        rows = await self._database.fetch(
            _CLAIM,
            self.owner,
            self.lease_s,
            limit,
            list(here),
            list(here.values()),
            most_of_an_org,
        )
        return [_grant(row) for row in rows]

    async def seize(self, run: str) -> Grant | None:
        """Takes a run from whoever has it, as whoever controls it must; None if it has ended."""
        row = await self._database.fetchrow(_SEIZE, run_id(run), self.owner, self.lease_s)
        return _grant(row) if row else None

    async def renew(self, leases: Sequence[Held]) -> set[str]:
        """Extends leases by their full duration and returns the runs that are still held."""
        rows = await self._database.fetch(
            _RENEW,
            [run_id(lease.run) for lease in leases],
            [lease.fencing_token for lease in leases],
            self.lease_s,
        )
        return {names.run_name(str(row["run"])) for row in rows}

    async def release(self, leases: Sequence[Held]) -> None:
        """Gives leases back, so that another replica may take the runs at once."""
        await self._database.execute(
            _RELEASE,
            [run_id(lease.run) for lease in leases],
            [lease.fencing_token for lease in leases],
        )
        await self._database.execute("SELECT pg_notify($1, $2)", CHANNEL, QUEUED)

    async def park(self, lease: Held) -> None:
        """Gives a lease back until the run's sub-runs have ended or its time is up."""
        await self._database.execute(_PARK, run_id(lease.run), lease.fencing_token)
        # Its sub-runs may have ended meanwhile, and nobody was told of a run that waits.
        await self._database.execute("SELECT pg_notify($1, $2)", CHANNEL, QUEUED)

    async def park_for_approvals(self, lease: Held, approvals: Sequence[str]) -> None:
        """Gives a lease back until one of these approvals is decided or the run's time is up."""
        await self._database.execute(
            _PARK_FOR_APPROVALS, run_id(lease.run), lease.fencing_token, list(approvals)
        )

    async def awaiting(self, after: str, limit: int) -> dict[str, list[str]]:
        """Runs after one of them that wait for approvals, with these, in order."""
        first = run_id(after) if after else UUID(int=0)
        rows = await self._database.fetch(_AWAITING, first, limit)
        return {names.run_name(str(row["run"])): row["awaits_approvals"] for row in rows}

    async def wake(self, runs: Sequence[str]) -> None:
        """Lets runs be taken up that waited for approvals."""
        await self._database.execute(_WAKE, [run_id(run) for run in runs])
        await self._database.execute("SELECT pg_notify($1, $2)", CHANNEL, QUEUED)

    async def waiting(self) -> Waiting:
        """What waits for a worker."""
        rows = await self._database.fetch(_WAITING)
        due = [row["next_due_s"] for row in rows if row["next_due_s"] is not None]
        by_org = {row["org"]: row["runs"] for row in rows if row["runs"]}
        return Waiting(by_org, min(due, default=None))


def _grant(row: asyncpg.Record) -> Grant:
    return Grant(
        names.run_name(str(row["run"])),
        row["fencing_token"],
        row["remaining_s"],
        row["is_orphan"],
        row["org"],
        key_ref(row),
        row["traceparent"] or "",
    )


_MAY_GO_ON: Final = """(
    r.deadline_time <= clock_timestamp()
    OR (r.awaits_approvals IS NULL AND (
        NOT r.awaits_sub_runs
        OR NOT EXISTS (SELECT FROM runs s WHERE s.parent = r.run AND s.state < 3)
    ))
)"""
"""Condition on a run `r` that it waits for no sub-run and no person."""

_WAITING: Final = f"""
SELECT org, count(*) FILTER (WHERE {IS_DUE}) AS runs,
       extract(
           epoch FROM min(schedule_time) FILTER (WHERE NOT {IS_DUE}) - clock_timestamp()
       )::float8 AS next_due_s
FROM runs WHERE state = 1 AND pause_time IS NULL GROUP BY org
"""  # noqa: S608 - made of constants

# The outer WHERE is checked again on the locked row, so that two replicas never take the same run.
_CLAIM: Final = f"""
WITH at_work AS (
    SELECT org, count(*) AS runs FROM runs
    WHERE state < 3 AND lease_expire_time > clock_timestamp() GROUP BY org
), ranked AS (
    SELECT run, org, row_number() OVER (
        PARTITION BY org ORDER BY state DESC, priority, run
    ) AS place
    FROM runs r
    WHERE state < 3 AND pause_time IS NULL AND {IS_DUE}
      AND (lease_expire_time IS NULL OR lease_expire_time <= clock_timestamp())
      AND {_MAY_GO_ON}
), candidates AS (
    SELECT run, coalesce(at_work.runs, 0) + place AS turn
    FROM ranked LEFT JOIN at_work USING (org)
         LEFT JOIN unnest($4::text[], $5::int[]) AS here (org, runs) USING (org)
    WHERE place <= $6 - coalesce(here.runs, 0)
    ORDER BY turn, run LIMIT 2 * $3::bigint
), picked AS (
    SELECT r.run, r.owner FROM runs r JOIN candidates c USING (run)
    WHERE r.state < 3 AND r.pause_time IS NULL
      AND (r.lease_expire_time IS NULL OR r.lease_expire_time <= clock_timestamp())
    ORDER BY c.turn, c.run LIMIT $3::bigint
    FOR UPDATE OF r SKIP LOCKED
)
UPDATE runs SET
    owner = $1,
    awaits_sub_runs = false,
    awaits_approvals = NULL,
    fencing_token = runs.fencing_token + 1,
    lease_expire_time = clock_timestamp() + make_interval(secs => $2::float8)
FROM picked WHERE runs.run = picked.run
RETURNING runs.run, runs.fencing_token,
          extract(epoch FROM runs.deadline_time - clock_timestamp())::float8 AS remaining_s,
          picked.owner IS NOT NULL AS is_orphan, runs.org, runs.traceparent,
          {KEY_COLUMNS}
"""  # noqa: S608 - made of constants

_SEIZE: Final = f"""
UPDATE runs SET
    owner = $2,
    fencing_token = fencing_token + 1,
    lease_expire_time = clock_timestamp() + make_interval(secs => $3::float8)
WHERE run = $1 AND state < 3
RETURNING run, fencing_token,
          extract(epoch FROM deadline_time - clock_timestamp())::float8 AS remaining_s,
          true AS is_orphan, org, traceparent, {KEY_COLUMNS}
"""  # noqa: S608 - made of constants

# Both lock rows in the order of the journal's batches, so that neither waits for the other in turn.
_RENEW: Final = """
WITH held AS MATERIALIZED (
    SELECT r.run FROM runs r
    JOIN unnest($1::uuid[], $2::bigint[]) AS h (run, fencing_token) USING (run, fencing_token)
    WHERE r.state < 3 AND r.owner IS NOT NULL ORDER BY r.run FOR UPDATE OF r
)
UPDATE runs SET lease_expire_time = clock_timestamp() + make_interval(secs => $3::float8)
FROM held WHERE runs.run = held.run
RETURNING runs.run
"""

_RELEASE: Final = """
WITH held AS MATERIALIZED (
    SELECT r.run FROM runs r
    JOIN unnest($1::uuid[], $2::bigint[]) AS h (run, fencing_token) USING (run, fencing_token)
    WHERE r.state < 3 ORDER BY r.run FOR UPDATE OF r
)
UPDATE runs SET owner = NULL, lease_expire_time = NULL
FROM held WHERE runs.run = held.run
"""

_PARK: Final = """
UPDATE runs SET owner = NULL, lease_expire_time = NULL, awaits_sub_runs = true
WHERE run = $1 AND fencing_token = $2 AND state < 3 AND owner IS NOT NULL
"""

_PARK_FOR_APPROVALS: Final = """
UPDATE runs SET owner = NULL, lease_expire_time = NULL, awaits_approvals = $3
WHERE run = $1 AND fencing_token = $2 AND state < 3 AND owner IS NOT NULL
"""

_AWAITING: Final = """
SELECT run, awaits_approvals FROM runs
WHERE awaits_approvals IS NOT NULL AND state < 3 AND run > $1 ORDER BY run LIMIT $2
"""

_WAKE: Final = """
WITH parked AS MATERIALIZED (
    SELECT r.run FROM runs r JOIN unnest($1::uuid[]) AS w (run) USING (run)
    WHERE r.awaits_approvals IS NOT NULL ORDER BY r.run FOR UPDATE OF r
)
UPDATE runs SET awaits_approvals = NULL FROM parked WHERE runs.run = parked.run
"""
