"""Grants: tools permitted to one principal, as policies that a person can read.

A grant is rendered to Cedar text when it is made, and that text decides. It only permits, so a
question needs it only where the policies neither permit nor forbid: then it is put to the grants of
its own user, team and agent, and the answer is the one that Cedar would give with all policies in
one set.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import cedarpy

from remit import names

CLASSES: Final = ("unspecified", "none", "read", "write", "execute")
CALL: Final = "tools.call"
_MOST_PARSED: Final = 1024


@dataclass(frozen=True)
class Grant:
    """A grant in force; either `tool` or `permission_class` (1 none to 4 execute) is stated."""

    name: str
    principal: str
    tool: str
    permission_class: int
    expire_time: datetime | None
    policy: str
    reason: str

    def may_apply(self, tool: str) -> bool:
        """Whether its scope fits the tool."""
        return not self.tool or self.tool == tool


def render(  # noqa: PLR0913 - what a grant states
    *,
    name: str,
    org: str,
    principal: str,
    tool: str,
    permission_class: int,
    expire_time: datetime | None,
    author: str,
) -> str:
    """The Cedar policy of a grant. Every part is a name that was checked; none holds a quote."""
    reason = reason_of(author, principal, tool, permission_class, expire_time)
    conditions = [
        f"resource.permission_class <= {permission_class}" if not tool else "",
        f'context.now < datetime("{_rfc3339(expire_time)}")' if expire_time else "",
        f'context has agent && context.agent == Agent::"{principal}"'
        if names.is_name("agent", principal)
        else "",
    ]
    lines = [
        f'@id("{name}")',
        f'@reason("{reason}")',
        "permit (",
        f"  {_scope(org, principal)},",
        f'  action == Action::"{CALL}",',
        f'  resource == Tool::"{tool}"' if tool else "  resource is Tool",
        ")",
        *(f"when {{ {condition} }}" for condition in conditions if condition),
    ]
    return "\n".join(lines) + ";"


def reason_of(
    author: str, principal: str, tool: str, permission_class: int, expire_time: datetime | None
) -> str:
    """What a grant says in words."""
    what = tool or f"tools up to the class {CLASSES[permission_class]}"
    until = f" until {_rfc3339(expire_time)}" if expire_time else ""
    return f"{author} granted {what} to {principal}{until}"


def _scope(org: str, principal: str) -> str:
    if names.is_name("user", principal):
        return f'principal == User::"{principal}"'
    if names.is_name("team", principal):
        return f'principal in Team::"{principal}"'
    return f'principal in Org::"{org}"'


def _rfc3339(time: datetime) -> str:
    """A time as Cedar reads it: UTC, in milliseconds, earlier rather than later."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"


def cedar_time(time: datetime) -> dict[str, dict[str, str]]:
    """A time as a value inside a context."""
    return {"__extn": {"fn": "datetime", "arg": _rfc3339(time)}}


class Grants:
    """The grants in force, by principal."""

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self.every = tuple(grants)
        self._by_principal: defaultdict[str, list[Grant]] = defaultdict(list)
        for grant in self.every:
            self._by_principal[grant.principal].append(grant)
        self._parsed: OrderedDict[tuple[str, ...], cedarpy.PolicySet] = OrderedDict()

    def of(self, principals: Iterable[str], tool: str) -> list[Grant]:
        """Those of the principals that may apply to the tool."""
        return [
            grant
            for principal in principals
            for grant in self._by_principal.get(principal, ())
            if grant.may_apply(tool)
        ]

    def parsed(self, grants: list[Grant]) -> cedarpy.PolicySet:
        """Grants as a set that can be asked, kept for the next question."""
        key = tuple(grant.name for grant in grants)
        if key not in self._parsed:
            text = "\n".join(grant.policy for grant in grants)
            self._parsed[key] = cedarpy.PolicySet.from_str(text)
            if len(self._parsed) > _MOST_PARSED:
                self._parsed.popitem(last=False)
        return self._parsed[key]
