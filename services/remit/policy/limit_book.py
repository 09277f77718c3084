"""Which limits apply to whom: what an administrator set, else what settings say.

They are read when a key's session is opened and kept as long as that session (`edge_cache_s`): the
bound within which a change reaches other replicas. The edge carries them from the check of the
credential to the count of the call, so that whoever counts needs no database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from remit import names
from remit.policy.limit_rows import LimitRows
from remit.policy.limits import Limit, Meter
from remit.policy.settings import PolicySettings
from remit.rpc.envoy import API_KEY_ENTRY, ORG_ENTRY, PRINCIPAL_ENTRIES, USER_ENTRY, runs_entry

_NO_LIMIT: Final = "none"
_LIMIT: Final = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Limits:
    """How often a user, an API key and an org may start runs; None: as often as they like."""

    user: Limit | None
    api_key: Limit | None
    org: Limit | None

    @classmethod
    def of_settings(cls, settings: PolicySettings) -> Limits:
        """What holds where nothing else was set; 0 runs there is no limit here."""

        def limit(most: int) -> Limit | None:
            return Limit(most, settings.run_limit_window_s) if most else None

        return cls(
            limit(settings.run_limit_of_user),
            limit(settings.run_limit_of_api_key),
            limit(settings.run_limit_of_org),
        )


@dataclass(frozen=True)
class Unfinished:
    """How many runs that have not ended a user and an org may have at once; 0: any number."""

    user: int = 0
    org: int = 0


class LimitBook:
    """Knows the limits of every caller."""

    def __init__(
        self, rows: LimitRows, defaults: Limits, unfinished: Unfinished | None = None
    ) -> None:
        self._rows = rows
        self._defaults = defaults
        self._unfinished = unfinished or Unfinished()

    async def limits(self, user: str, api_key: str, org: str) -> Limits:
        """Return the limits of these, by their full names, as the database has them now."""
        found = await self._rows.of((user, api_key, org))

        def limit(principal: str, default: Limit | None) -> Limit | None:
            row = found.get(principal)
            return default if row is None else row.limit

        return Limits(
            limit(user, self._defaults.user),
            limit(api_key, self._defaults.api_key),
            limit(org, self._defaults.org),
        )

    async def unfinished(self, user: str) -> Unfinished:
        """Return how many runs a user and their org may have, as the database has it now."""
        org = names.org_of(user)
        found = await self._rows.of((user, org))
        own, whole = found.get(user), found.get(org)
        return Unfinished(
            self._unfinished.user if own is None else own.max_unfinished_runs,
            self._unfinished.org if whole is None else whole.max_unfinished_runs,
        )


def facts_of(user: str, api_key: str, org: str, limits: Limits) -> Mapping[str, str]:
    """Return what the edge is told of a caller: who it is, and how often each may start runs."""
    named = {USER_ENTRY: user, API_KEY_ENTRY: api_key, ORG_ENTRY: org}
    own = {USER_ENTRY: limits.user, API_KEY_ENTRY: limits.api_key, ORG_ENTRY: limits.org}
    return named | {runs_entry(entry): _written(limit) for entry, limit in own.items()}


def meters_of(facts: Mapping[str, str]) -> tuple[Meter, ...]:
    """Read `facts_of` again. Raises ValueError if anything is missing or in another form."""
    return tuple(_meters(facts))


def _meters(facts: Mapping[str, str]) -> Iterator[Meter]:
    for entry in PRINCIPAL_ENTRIES:
        principal, written = facts.get(entry, ""), facts.get(runs_entry(entry), "")
        if not principal.startswith("orgs/"):
            message = f"there is no {entry}"
            raise ValueError(message)
        if written == _NO_LIMIT:
            continue
        limit = _LIMIT.fullmatch(written)
        if limit is None:
            message = f"{written!r} is no limit"
            raise ValueError(message)
        yield Meter(entry, principal, Limit(int(limit[1]), int(limit[2])))


def _written(limit: Limit | None) -> str:
    return _NO_LIMIT if limit is None else f"{limit.most}/{limit.window_s}"
