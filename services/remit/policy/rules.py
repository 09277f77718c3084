"""The decision core: Cedar policies parsed once, questions in, decisions out.

Cedar alone fails open in one way: a `forbid` whose condition raises an error is skipped, so an
error may turn a denial into a permission. Hence three rules here: the schema is always given, every
entity of the question is stated, and any error in the diagnostics denies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import cedarpy

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.policy.entities import Principal, entities_of, reference
from remit.policy.rule_sets import PolicyFaultsError, PolicySource, RuleSet, compile_policies
from remit.policy.slices import Slice, Slices
from remit.rpc.errors import RemitError

_KNOWN_ENTITIES: Final = 4096
"""Parsed principals with a resource, kept at most per policy set."""
_FAILED: Final = re.compile(r"error while evaluating policy `([^`]*)`")


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


class RuleBook:
    """A policy set of one epoch, ready to decide. Immutable, so that a new epoch is a new book."""

    def __init__(self, rules: RuleSet, epoch: int, slices: Slices | None = None) -> None:
        self.rules = rules
        self.epoch = epoch
        self._slices = slices or Slices(rules)
        self._reasons = {policy.identifier: policy.reason for policy in rules.policies}
        # Parsing the entities is a third of a decision, and runs ask about the same few again and
        # again. What is kept are the facts of the question, never its answer.
        self._parse_entities = lru_cache(_KNOWN_ENTITIES)(self._parsed_entities)

    @property
    def source(self) -> PolicySource:
        """The policies as they were written."""
        return self.rules.source

    def prepare(self, actions: Iterable[str]) -> None:
        """Parse what questions about `actions` need, so that the first of them need not wait."""
        for action in actions:
            self._slices.of(action, "")

    def decide(self, question: Question) -> Decision:
        """Answer one question. Never raises for a question: what cannot be decided is denied."""
        try:
            request = _request(question)
            entities = self._parse_entities(
                question.principal, question.resource, question.permission_class
            )
        except ValueError as error:
            return Decision(allow=False, policy_ids=(), reason=str(error), epoch=self.epoch)
        policies = self._slices.of(question.action, question.resource)
        try:
            answer = cedarpy.is_authorized(request, policies.parsed, entities, self.rules.schema)
        except (ValueError, TypeError) as error:
            return self._undecided(policies, (str(error),))
        if answer.diagnostics.errors:
            return self._undecided(policies, tuple(answer.diagnostics.errors))
        return self._decided(question, answer)

    def _parsed_entities(
        self, asked: Principal, resource: str, permission_class: int
    ) -> cedarpy.Entities:
        stated = json.dumps(entities_of(asked, resource, permission_class))
        return cedarpy.Entities.from_json_str(stated, self.rules.schema)

    def _undecided(self, policies: Slice, errors: tuple[str, ...]) -> Decision:
        reason = "the policies could not be evaluated for this question, which denies it"
        positions = (match[1] for error in errors if (match := _FAILED.match(error)))
        return Decision(
            allow=False,
            policy_ids=(),
            reason=reason,
            epoch=self.epoch,
            errors=errors,
            failed_policies=tuple(policies.identifier(position) for position in positions),
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


def rule_book(source: PolicySource, epoch: int) -> RuleBook:
    """Check `source` and make a book of it.

    Raises:
        RemitError: CONFIGURATION_INVALID; it names file, line and policy.

    """
    try:
        return RuleBook(compile_policies(source), epoch)
    except PolicyFaultsError as error:
        raise RemitError(ERROR_REASON_CONFIGURATION_INVALID, str(error)) from error


def _default_denial(question: Question) -> str:
    roles = ", ".join(question.principal.roles) or "none"
    return (
        f"no policy permits {question.action} on {question.resource} "
        f"to {question.principal.user} (roles: {roles})"
    )


def _request(question: Question) -> dict[str, object]:
    return {
        "principal": {"type": "User", "id": question.principal.user},
        "action": {"type": "Action", "id": question.action},
        "resource": reference(question.resource),
        "context": dict(question.context),
    }
