"""What a request may state of whoever an API key speaks for: a name, roles, an org of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from remit import names
from remit.policy.authority import ROLES
from remit.rpc.errors import Violation

_MAX_DISPLAY_CHARS: Final = 100


def holder_violations(display_name: str, roles: Sequence[str]) -> list[Violation]:
    """What is wrong with the display name and the roles of a key or of a service account."""
    found = []
    if not (1 <= len(display_name) <= _MAX_DISPLAY_CHARS and display_name.isprintable()):
        fault = f"must have 1 to {_MAX_DISPLAY_CHARS} printable characters"
        found.append(Violation("display_name", fault))
    if not roles or not ROLES.issuperset(roles):
        found.append(Violation("roles", f"must hold at least one of {', '.join(sorted(ROLES))}"))
    return found


def is_of_org(kind: str, name: str, org: str) -> bool:
    """Whether it is a name of that kind, within the org."""
    return names.is_name(kind, name) and names.org_of(name) == org
