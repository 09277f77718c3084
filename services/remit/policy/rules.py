"""The decision core: Cedar policies parsed once, questions in, decisions out.

Cedar alone fails open in one way: a `forbid` whose condition raises an error is skipped, so an
error may turn a denial into a permission. Hence three rules here: the schema is always given, every
entity of the question is stated, and any error in the diagnostics denies.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import cedarpy

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.rpc.errors import RemitError

_KNOWN_ENTITIES: Final = 4096
"""Parsed principals with a resource, kept at most per policy set."""
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
}
# PermissionClass: none, read, write, execute. UNSPECIFIED is no class, and never the lowest.
_TOOL_CLASSES: Final = range(1, 5)
_FAILED: Final = re.compile(r"error while evaluating policy `([^`]*)`")
_IN_ORG: Final = frozenset({"Team", "User", "ApiKey"})


@dataclass(frozen=True)
class Principal:
    """Who asks: names and roles as a verified credential states them. `team` may be empty."""

    user: str
    org: str
    team: str = ""
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """May `principal` do `action` on `resource`?

    `permission_class` is that of a tool (1 none to 4 execute) and ignored for anything else.
    `context` is a record of the schema's type Circumstances.
    """

    principal: Principal
    action: str
    resource: str
    permission_class: int = 0
    context: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """The answer. `errors` say that there is none, which denies.

    They are Cedar's own words and may quote arguments; `failed_policies` names whose they are.
    """

    allow: bool
    policy_ids: tuple[str, ...]
    reason: str
    epoch: int
    errors: tuple[str, ...] = ()
    failed_policies: tuple[str, ...] = ()


@dataclass(frozen=True)
class PolicySource:
    """Policies as they were written: text by file name, and the schema they were checked with."""

    files: Mapping[str, str]
    schema: str

    @property
    def text(self) -> str:
        """All policies, each file under a line that names it."""
        return "\n".join(f"// {name}\n{text}" for name, text in sorted(self.files.items()))

    @property
    def digest(self) -> bytes:
        """SHA-256 over names, texts and schema; 32 bytes."""
        parts = {"files": dict(self.files), "schema": self.schema}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


class RuleBook:
    """A policy set of one epoch, ready to decide. Immutable, so that a new epoch is a new book."""

    def __init__(self, source: PolicySource, epoch: int) -> None:
        """Parse and check `source`.

        Raises:
            RemitError: CONFIGURATION_INVALID; it names the file and the policy.

        """
        self.source = source
        self.epoch = epoch
        self._schema = _parse_schema(source.schema)
        self._reasons = _check(source, self._schema)
        self._policies = cedarpy.PolicySet.from_str(source.text)
        self._ids = _ids_by_position(self._policies)
        # Parsing the entities is a third of a decision, and runs ask about the same few again and
        # again. What is kept are the facts of the question, never its answer.
        self._parse_entities = lru_cache(_KNOWN_ENTITIES)(self._parsed_entities)

    def decide(self, question: Question) -> Decision:
        """Answer one question. Never raises for a question: what cannot be decided is denied."""
        try:
            request = _request(question)
            entities = self._parse_entities(
                question.principal, question.resource, question.permission_class
            )
        except ValueError as error:
            return Decision(allow=False, policy_ids=(), reason=str(error), epoch=self.epoch)
        try:
            answer = cedarpy.is_authorized(request, self._policies, entities, self._schema)
        except (ValueError, TypeError) as error:
            return self._undecided((str(error),))
        if answer.diagnostics.errors:
            return self._undecided(tuple(answer.diagnostics.errors))
        return self._decided(question, answer)

    def _parsed_entities(
        self, asked: Principal, resource: str, permission_class: int
    ) -> cedarpy.Entities:
        stated = json.dumps(_entities(asked, resource, permission_class))
        return cedarpy.Entities.from_json_str(stated, self._schema)

    def _undecided(self, errors: tuple[str, ...]) -> Decision:
        reason = "the policies could not be evaluated for this question, which denies it"
        positions = (match[1] for error in errors if (match := _FAILED.match(error)))
        return Decision(
            allow=False,
            policy_ids=(),
            reason=reason,
            epoch=self.epoch,
            errors=errors,
            failed_policies=tuple(self._ids.get(position, position) for position in positions),
        )

    def _decided(self, question: Question, answer: cedarpy.AuthzResult) -> Decision:
        identifiers = tuple(sorted(answer.diagnostics.id_annotations_by_reason.values()))
        told = "; ".join(dict.fromkeys(self._reasons[name] for name in identifiers))
        if answer.allowed:
            reason = f"permitted: {told}"
        elif identifiers:
            reason = f"forbidden: {told}"
        else:
            reason = _default_denial(question)
        return Decision(answer.allowed, identifiers, reason, self.epoch)


def _default_denial(question: Question) -> str:
    roles = ", ".join(question.principal.roles) or "none"
    return (
        f"no policy permits {question.action} on {question.resource} "
        f"to {question.principal.user} (roles: {roles})"
    )


def _parse_schema(text: str) -> cedarpy.Schema:
    try:
        return cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise _invalid(f"the policy schema does not parse: {error}") from error


def _check(source: PolicySource, schema: cedarpy.Schema) -> dict[str, str]:
    """Validate every file on its own and return each policy's reason by its `@id`."""
    if not source.files:
        raise _invalid("there is no *.cedar file, so everything would be denied")
    reasons: dict[str, str] = {}
    for name, text in sorted(source.files.items()):
        _validate(name, text, schema)
        for identifier, reason in _annotations(name, text).items():
            if identifier in reasons:
                raise _invalid(f'{name}: @id("{identifier}") is used by another policy')
            reasons[identifier] = reason
    return reasons


def _validate(name: str, text: str, schema: cedarpy.Schema) -> None:
    result = cedarpy.validate_policies(text, schema)
    if result.validation_passed:
        return
    fault = result.errors[0]
    identifier = result.id_annotations_by_policy_id.get(fault.policy_id, fault.policy_id)
    where = f"{name}: policy {identifier}" if identifier else name
    raise _invalid(f"{where}: {fault.error}")


def _annotations(name: str, text: str) -> dict[str, str]:
    """Return the reason of each policy by its `@id`; without a `@reason` it is the id itself."""
    parsed = cedarpy.PolicySet.from_str(text).to_pst()
    if parsed.templates:
        raise _invalid(f"{name}: templates (`?principal`, `?resource`) are not supported")
    found: dict[str, str] = {}
    for position, policy in parsed.static_policies.items():
        identifier = policy.annotations.get("id") or ""
        if not identifier or identifier in found:
            raise _invalid(f"{name}: {position} needs an @id of its own")
        found[identifier] = policy.annotations.get("reason") or identifier
    return found


def _ids_by_position(policies: cedarpy.PolicySet) -> dict[str, str]:
    """The `@id` of each policy by the name that Cedar gives it in its errors."""
    static = policies.to_pst().static_policies
    return {position: policy.annotations["id"] or position for position, policy in static.items()}


def _request(question: Question) -> dict[str, object]:
    return {
        "principal": {"type": "User", "id": question.principal.user},
        "action": {"type": "Action", "id": question.action},
        "resource": _reference(question.resource),
        "context": dict(question.context),
    }


def _entities(asked: Principal, resource: str, permission_class: int) -> list[dict[str, object]]:
    """Every entity of a question; Cedar checks them against the schema when it parses them."""
    org = _reference(asked.org)
    parents = [org] if not asked.team else [org, _reference(asked.team)]
    user = {"org": {"__entity": org}, "roles": list(asked.roles)}
    entities = {asked.org: _entity(org), asked.user: _entity(_reference(asked.user), user, parents)}
    if asked.team:
        entities[asked.team] = _entity(_reference(asked.team), parents=[org])
    for name, entity in _resource_entities(resource, permission_class).items():
        entities.setdefault(name, entity)
    return list(entities.values())


def _resource_entities(resource: str, permission_class: int) -> dict[str, dict[str, object]]:
    reference = _reference(resource)
    if reference["type"] == "Tool":
        if permission_class not in _TOOL_CLASSES:
            message = f"{resource} comes without its permission class"
            raise ValueError(message)
        attributes = {"permission_class": permission_class}
        return {resource: _entity(reference, attributes)}
    if reference["type"] not in _IN_ORG:
        return {resource: _entity(reference)}
    org = _reference(names.org_of(resource))
    if reference["type"] == "User":
        other = {"org": {"__entity": org}, "roles": []}
        return {resource: _entity(reference, other, [org]), org["id"]: _entity(org)}
    return {resource: _entity(reference, parents=[org]), org["id"]: _entity(org)}


def reference_to(name: str) -> dict[str, dict[str, str]]:
    """Return an entity as a value inside a context. Raises ValueError if `name` names nothing."""
    return {"__entity": _reference(name)}


def _reference(name: str) -> dict[str, str]:
    for kind, entity_type in _TYPES.items():
        if names.is_name(kind, name):
            return {"type": entity_type, "id": name}
    message = f"{name!r} is not the name of anything that policies know"
    raise ValueError(message)


def _entity(
    reference: Mapping[str, str],
    attributes: Mapping[str, object] | None = None,
    parents: Sequence[Mapping[str, str]] = (),
) -> dict[str, object]:
    return {"uid": reference, "attrs": attributes or {}, "parents": list(parents)}


def _invalid(message: str) -> RemitError:
    return RemitError(ERROR_REASON_CONFIGURATION_INVALID, message)
