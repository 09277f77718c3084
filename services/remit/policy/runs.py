"""What each run was registered with, and the least fencing token that its remits must carry.

The one place where a run's fence is read and raised. It is never cached: whoever asks gets what the
database holds now. Registrations never change, so those may be remembered.

Registering, renewing and fencing go through one group commit. Runs that are new, as nearly all are,
are one statement; for the others the rows are locked in the order of their names and every item is
decided in the order of its arrival.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import asyncpg

from remit import names
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_FENCED,
    ERROR_REASON_KEY_REUSED,
    ERROR_REASON_RUN_NOT_FOUND,
)
from remit.policy.entities import Principal
from remit.postgres import Connection, Database, GroupCommit
from remit.rpc.errors import RemitError

_EPOCH_ROW: Final = ""
_DISABLED: Final = -1
"""Where a fencing token would be, for a principal; no run has this one."""
_KEYS_THAT_COUNT: Final = "FROM api_keys WHERE key_id = ANY($2) AND revoke_time IS NULL"
_WHO_IS_DISABLED: Final = "FROM principals WHERE name = ANY($3) AND disable_time IS NOT NULL"
_LOWEST_TOKEN: Final = 1
_COLUMNS: Final = (
    "run, subject, team, roles, agent, tools, models, account, max_cost_nanos,"
    " parent, delegable_tools, delegable_models, outer_limits_nanos"
)
_RECORDS: Final = """given (
    run text, subject text, team text, roles text[], agent text, tools text[], models text[],
    account text, max_cost_nanos bigint, parent text, delegable_tools text[],
    delegable_models text[], outer_limits_nanos bigint[]
)"""
_REGISTER: Final = f"""
INSERT INTO run_registrations ({_COLUMNS})
SELECT {_COLUMNS} FROM jsonb_to_recordset($1::jsonb) AS {_RECORDS}
"""  # noqa: S608 - made of constants
_REGISTER_NEW: Final = f"""
WITH created AS (
    INSERT INTO run_fences (run, min_fencing_token)
    SELECT run, token FROM unnest($1::text[], $2::bigint[]) AS asked (run, token)
    ON CONFLICT DO NOTHING RETURNING run
), registered AS (
    INSERT INTO run_registrations ({_COLUMNS})
    SELECT {_COLUMNS} FROM jsonb_to_recordset($3::jsonb) AS {_RECORDS}
    JOIN created USING (run)
)
SELECT run FROM created
"""  # noqa: S608 - made of constants


@dataclass(frozen=True)
class Registration:
    """On whose behalf a run acts, with what, and what it may pass on; names are sorted."""

    run: str
    subject: str
    team: str
    roles: tuple[str, ...]
    agent: str
    tools: tuple[str, ...]
    models: tuple[str, ...]
    account: str
    max_cost_nanos: int | None
    parent: str = ""
    """The run that started it as a step; empty for a client's."""
    delegable_tools: tuple[str, ...] = ()
    """Tools that it may not use itself and may pass on to sub-runs."""
    delegable_models: tuple[str, ...] = ()
    outer_limits_nanos: tuple[int | None, ...] = ()
    """Limits of the runs above a sub-run, the outermost first."""

    @property
    def principal(self) -> Principal:
        """On whose behalf it acts, as the policies see them."""
        return Principal(self.subject, names.org_of(self.subject), self.team, self.roles)

    @property
    def line(self) -> tuple[str, ...]:
        """The agents of the runs above it, the outermost first, and its own at the end."""
        runs = names.run_accounts(self.account)
        return tuple(names.agent_name(account.split("/")[-3]) for account in runs)

    def exceeds(self, parent: Registration) -> tuple[str, ...]:
        """What it names that its parent may neither use nor pass on."""
        tools = {*self.tools, *self.delegable_tools} - {*parent.tools, *parent.delegable_tools}
        models = {*self.models, *self.delegable_models} - {
            *parent.models,
            *parent.delegable_models,
        }
        return (*sorted(tools), *sorted(models))

    def same_grant(self, other: Registration) -> bool:
        """Whether both name the same agent, tools, models and limit: what a caller states."""
        return _grant(self) == _grant(other)


@dataclass(frozen=True)
class Claim:
    """A worker with `token` takes or keeps a run; `registration` is needed until there is one."""

    run: str
    token: int
    registration: Registration | None = None
    fence_only: bool = False


@dataclass(frozen=True)
class Standing:
    """Where a run stands after a claim."""

    min_token: int
    registration: Registration | None


@dataclass(frozen=True)
class Fences:
    """What a decision must know of now: the policy epoch in force and the fences asked for."""

    epoch: int
    min_tokens: Mapping[str, int]
    api_keys: frozenset[str] = frozenset()
    """Ids of the API keys asked for that were not revoked."""
    disabled: frozenset[str] = frozenset()
    """Of the principals asked for, those that are disabled."""


class RunStore:
    """Registrations and fences of runs."""

    def __init__(self, database: Database, *, max_batch: int, max_queue: int) -> None:
        self._database = database
        # Fencing closes what a dead worker began, so registering must not crowd it out.
        self._claims: GroupCommit[Claim, Standing] = GroupCommit(
            database,
            settle_claims,
            name="run-registration",
            opens=_autocommit,
            max_batch=max_batch,
            max_queue=max_queue,
        )
        self._fences: GroupCommit[Claim, Standing] = GroupCommit(
            database,
            settle_claims,
            name="run-fence",
            opens=_autocommit,
            max_batch=max_batch,
            max_queue=max_queue,
        )

    async def claim(self, run: str, token: int, registration: Registration | None) -> Registration:
        """Register or renew a run for the worker that holds `token`, and raise its fence to it.

        Raises:
            RemitError: FENCED, KEY_REUSED, RUN_NOT_FOUND (not registered, and nothing to register
                it with) or OVERLOADED.

        """
        standing = await self._claims.submit(Claim(run, token, registration))
        if standing.registration is None:  # pragma: no cover - settle_claims answers an error
            message = "a claim was settled without a registration"
            raise AssertionError(message)
        return standing.registration

    async def fence(self, run: str, token: int) -> int:
        """Raise the run's least token to `token` unless it is higher; return what it is now."""
        return (await self._fences.submit(Claim(run, token, fence_only=True))).min_token

    async def look_up(
        self, run: str, api_keys: Iterable[str] = (), principals: Iterable[str] = ()
    ) -> tuple[Registration | None, Fences]:
        """Return what the run was registered with, and what `fences` reads, all as of now.

        No fence is among that.
        """
        row = await self._database.fetchrow(
            "SELECT known.*, (SELECT coalesce(max(epoch), 0) FROM policy_epochs) AS epoch,"  # noqa: S608 - constants
            f" ARRAY(SELECT key_id {_KEYS_THAT_COUNT}) AS counting,"
            f" ARRAY(SELECT name {_WHO_IS_DISABLED}) AS disabled"
            " FROM (SELECT $1 AS run) AS asked LEFT JOIN run_registrations AS known USING (run)",
            run,
            sorted(set(api_keys)),
            sorted(set(principals)),
        )
        assert row is not None  # noqa: S101 - an outer join of one row has one row
        fences = Fences(row["epoch"], {}, frozenset(row["counting"]), frozenset(row["disabled"]))
        return (_registration(row) if row["run"] else None), fences

    async def fences(
        self, runs: Iterable[str], api_keys: Iterable[str] = (), principals: Iterable[str] = ()
    ) -> Fences:
        """Read the fences of `runs`, which keys and principals still count, and the policy epoch.

        All as they are now, in one statement.
        """
        async with self._database.acquire() as connection:
            return await _fences(
                connection, sorted(set(runs)), sorted(set(api_keys)), sorted(set(principals))
            )


def _autocommit(_: Sequence[Claim]) -> str:
    """A batch is a statement or makes a transaction of its own."""
    return ""


async def settle_claims(
    connection: Connection, claims: Sequence[Claim]
) -> list[Standing | RemitError]:
    """Decide a batch of claims: new runs by one statement, the rest in a transaction."""
    new = await _register_new(connection, claims)
    rest = [claim for claim in claims if id(claim) not in new]
    if not rest:
        return [new[id(claim)] for claim in claims]
    async with connection.transaction():
        standings = await _lock(connection, rest)
        before = dict(standings)
        settled = iter([_settle(standings, claim) for claim in rest])
        await _store(connection, before, standings)
    return [new[id(claim)] if id(claim) in new else next(settled) for claim in claims]


async def _register_new(connection: Connection, claims: Sequence[Claim]) -> dict[int, Standing]:
    """Register the runs that nobody has claimed or fenced before; return them by claim."""
    first: dict[str, Claim] = {}
    for claim in claims:
        first.setdefault(claim.run, claim)
    asking = [claim for _, claim in sorted(first.items()) if claim.registration]
    if not asking:
        return {}
    rows = await connection.fetch(
        _REGISTER_NEW,
        [claim.run for claim in asking],
        [max(claim.token, _LOWEST_TOKEN) for claim in asking],
        _registrations_json(claim.registration for claim in asking if claim.registration),
    )
    created = {row["run"] for row in rows}
    return {
        id(claim): Standing(max(claim.token, _LOWEST_TOKEN), claim.registration)
        for claim in asking
        if claim.run in created
    }


def _settle(standings: dict[str, Standing], claim: Claim) -> Standing | RemitError:
    """Decide one claim against where its run stands, and move the run on if it is accepted."""
    standing = standings.get(claim.run)
    if standing is None:
        return RemitError(
            ERROR_REASON_RUN_NOT_FOUND, f"{claim.run} was never registered with policy"
        )
    fault = None if claim.fence_only else _fault(standing, claim)
    if fault is not None:
        return fault
    moved = Standing(
        max(standing.min_token, claim.token), standing.registration or claim.registration
    )
    standings[claim.run] = moved
    return moved


def _fault(standing: Standing, claim: Claim) -> RemitError | None:
    if claim.token < standing.min_token:
        return fenced(claim.run, claim.token, standing.min_token)
    known = standing.registration
    if known is None and claim.registration is None:
        return RemitError(
            ERROR_REASON_RUN_NOT_FOUND, f"{claim.run} was never registered with policy"
        )
    if known and claim.registration and not known.same_grant(claim.registration):
        return registered_otherwise(claim.run)
    return None


def registered_otherwise(run: str) -> RemitError:
    """KEY_REUSED: what a run may use is fixed by its first remit."""
    return RemitError(
        ERROR_REASON_KEY_REUSED,
        f"{run} is registered with another agent, other tools, models or another limit",
    )


def fenced(run: str, token: int, min_token: int) -> RemitError:
    """FENCED: another worker owns the run."""
    return RemitError(
        ERROR_REASON_FENCED,
        f"{run} is owned by a worker with token {min_token} or higher; this one has token {token}",
    )


async def _lock(connection: Connection, claims: Sequence[Claim]) -> dict[str, Standing]:
    """Create the fences that a claim may create, lock the others in order, and read them."""
    creatable = sorted({claim.run for claim in claims if claim.fence_only or claim.registration})
    created = await connection.fetch(
        "INSERT INTO run_fences (run, min_fencing_token)"
        " SELECT run, $2 FROM unnest($1::text[]) AS given (run)"
        " ON CONFLICT DO NOTHING RETURNING run",
        creatable,
        _LOWEST_TOKEN,
    )
    standings = {row["run"]: Standing(_LOWEST_TOKEN, None) for row in created}
    others = sorted({claim.run for claim in claims} - standings.keys())
    return standings | await _locked(connection, others) if others else standings


async def _locked(connection: Connection, runs: Sequence[str]) -> dict[str, Standing]:
    rows = await connection.fetch(
        "SELECT run, min_fencing_token FROM run_fences WHERE run = ANY($1) ORDER BY run FOR UPDATE",
        runs,
    )
    registered = await _registrations(connection, runs)
    return {
        row["run"]: Standing(row["min_fencing_token"], registered.get(row["run"])) for row in rows
    }


async def _fences(
    connection: Connection,
    runs: Sequence[str],
    api_keys: Sequence[str],
    principals: Sequence[str] = (),
) -> Fences:
    rows = await connection.fetch(
        "SELECT run, min_fencing_token FROM run_fences WHERE run = ANY($1)"  # noqa: S608 - constants
        " UNION ALL SELECT '', coalesce(max(epoch), 0) FROM policy_epochs"
        f" UNION ALL SELECT key_id, NULL {_KEYS_THAT_COUNT}"
        f" UNION ALL SELECT name, {_DISABLED} {_WHO_IS_DISABLED}",
        runs,
        api_keys,
        principals,
    )
    disabled = frozenset(row["run"] for row in rows if row["min_fencing_token"] == _DISABLED)
    rows = [row for row in rows if row["run"] not in disabled]
    counting = frozenset(row["run"] for row in rows if row["min_fencing_token"] is None)
    tokens = {row["run"]: row["min_fencing_token"] for row in rows if row["run"] not in counting}
    return Fences(tokens.pop(_EPOCH_ROW), tokens, counting, disabled)


async def _registrations(connection: Connection, runs: Sequence[str]) -> dict[str, Registration]:
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM run_registrations WHERE run = ANY($1)",  # noqa: S608 - constants
        runs,
    )
    return {row["run"]: _registration(row) for row in rows}


def _registration(row: asyncpg.Record) -> Registration:
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Registration)}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Registration(**values | lists)


async def _store(
    connection: Connection, before: Mapping[str, Standing], after: Mapping[str, Standing]
) -> None:
    raised = {
        run: standing.min_token
        for run, standing in after.items()
        if standing.min_token > before[run].min_token
    }
    if raised:
        await connection.execute(
            "UPDATE run_fences SET min_fencing_token = given.token"
            " FROM unnest($1::text[], $2::bigint[]) AS given (run, token)"
            " WHERE run_fences.run = given.run",
            list(raised),
            list(raised.values()),
        )
    registered = [
        standing.registration
        for run, standing in after.items()
        if standing.registration and before[run].registration is None
    ]
    if registered:
        await connection.execute(_REGISTER, _registrations_json(registered))


def _registrations_json(registrations: Iterable[Registration]) -> str:
    return json.dumps([asdict(registration) for registration in registrations])


def _grant(registration: Registration) -> Registration:
    """Reduce a registration to what a caller of IssueRemit states."""
    return replace(registration, subject="", team="", roles=(), account="", outer_limits_nanos=())
