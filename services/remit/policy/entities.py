"""Names as the entities of Cedar: who asks, what is asked for, and what contains it.

Every entity of a question is stated, because Cedar skips a `forbid` whose condition fails on one
that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from remit import names

# The entity type behind each kind of resource name.
_TYPES: Final = {
    "org": "Org",
    "team": "Team",
    "user": "User",
    "apiKey": "ApiKey",
    "agent": "Agent",
    "run": "Run",
    "conversation": "Conversation",
    "tool": "Tool",
    "model": "Model",
    "approval": "Approval",
}
SERVICE_ACCOUNT: Final = "service_account"
"""A role that nobody can give: the credential is that of a service account."""
# PermissionClass: none, read, write, execute. UNSPECIFIED is no class, and never the lowest.
TOOL_CLASSES: Final = range(1, 5)
_IN_ORG: Final = frozenset({"Team", "User", "ApiKey"})


@dataclass(frozen=True)
class Principal:
    """Who asks: names and roles as a verified credential states them. `team` may be empty."""

    user: str
    org: str
    team: str = ""
    roles: tuple[str, ...] = ()


def entities_of(
    asked: Principal, resource: str, permission_class: int, requester: str = ""
) -> list[dict[str, object]]:
    """Every entity of a question; Cedar checks them against the schema when it parses them.

    Raises:
        ValueError: a name that policies do not know, a tool without its permission class, or an
            approval without who asked for it.

    """
    org = reference(asked.org)
    parents = [org] if not asked.team else [org, reference(asked.team)]
    user = {"org": {"__entity": org}, "roles": list(asked.roles)}
    entities = {asked.org: _entity(org), asked.user: _entity(reference(asked.user), user, parents)}
    if asked.team:
        entities[asked.team] = _entity(reference(asked.team), parents=[org])
    stated = _resource_entities(resource, permission_class)
    if names.is_name("approval", resource):
        stated = _approval_entities(resource, requester)
    for name, entity in stated.items():
        entities.setdefault(name, entity)
    return list(entities.values())


def _approval_entities(approval: str, requester: str) -> dict[str, dict[str, object]]:
    who, org = reference(requester), reference(names.org_of(requester))
    return {
        approval: _entity(reference(approval), {"requester": {"__entity": who}}, [org]),
        requester: _entity(who, {"org": {"__entity": org}, "roles": []}, [org]),
        org["id"]: _entity(org),
    }


def _resource_entities(resource: str, permission_class: int) -> dict[str, dict[str, object]]:
    named = reference(resource)
    if named["type"] == "Tool":
        if permission_class not in TOOL_CLASSES:
            message = f"{resource} comes without its permission class"
            raise ValueError(message)
        attributes = {"permission_class": permission_class}
        return {resource: _entity(named, attributes)}
    if named["type"] not in _IN_ORG:
        return {resource: _entity(named)}
    org = reference(names.org_of(resource))
    if named["type"] == "User":
        other = {"org": {"__entity": org}, "roles": []}
        return {resource: _entity(named, other, [org]), org["id"]: _entity(org)}
    return {resource: _entity(named, parents=[org]), org["id"]: _entity(org)}


def reference_to(name: str) -> dict[str, dict[str, str]]:
    """Return an entity as a value inside a context. Raises ValueError if `name` names nothing."""
    return {"__entity": reference(name)}


def reference(name: str) -> dict[str, str]:
    """The type and id of an entity. Raises ValueError if `name` names nothing."""
    for kind, entity_type in _TYPES.items():
        if names.is_name(kind, name):
            return {"type": entity_type, "id": name}
    message = f"{name!r} is not the name of anything that policies know"
    raise ValueError(message)


def _entity(
    named: Mapping[str, str],
    attributes: Mapping[str, object] | None = None,
    parents: Sequence[Mapping[str, str]] = (),
) -> dict[str, object]:
    return {"uid": named, "attrs": attributes or {}, "parents": list(parents)}
