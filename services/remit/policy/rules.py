"""The decision core: Cedar policies parsed once, questions in, decisions out.

Cedar alone fails open in one way: a `forbid` whose condition raises an error is skipped, so an
error may turn a denial into a permission. Hence three rules here: the schema is always given, every
entity of the question is stated, and any error in the diagnostics denies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Final

import cedarpy

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.policy.answers import Answers, key_of
from remit.policy.approval_terms import Terms, wanted
from remit.policy.entities import Principal, entities_of, reference
from remit.policy.grants import CALL, Grant, Grants, cedar_time
from remit.policy.rule_sets import (
    PolicyFaultsError,
    PolicySource,
    RuleSet,
    WrittenPolicy,
    compile_policies,
)
from remit.policy.slices import Slice, Slices
from remit.rpc.clock import Clock, SystemClock
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
    time: datetime | None = None
    """When it is asked, for `context.now`; None is now."""
    requester: str = ""
    """Of an approval: the user who asked for it."""


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
    end: datetime | None = None
    """When the grants that permit it end; None where no grant does, or none ends."""
    approval: Terms | None = None
    """What would make it an allowance; None where nothing would, and where it is one."""


class RuleBook:
    """A policy set of one epoch, ready to decide. A new epoch is a new book without answers."""

    def __init__(
        self,
        rules: RuleSet,
        epoch: int,
        *,
        grants: Grants | None = None,
        clock: Clock | None = None,
        slices: Slices | None = None,
    ) -> None:
        self.rules = rules
        self.epoch = epoch
        self.grants = grants or Grants()
        self.clock = clock or SystemClock()
        self._slices = slices or Slices(rules)
        self._reasons = {policy.identifier: policy.reason for policy in rules.policies}
        self._terms = {
            policy.identifier: policy.approval
            for policy in rules.policies
            if policy.approval is not None
        }
        # Parsing the entities is a third of a decision, and runs ask about the same few again and
        # again.
        self._parse_entities = lru_cache(_KNOWN_ENTITIES)(self._parsed_entities)
        self._answers = Answers()
        self._guarded = Answers()

    def with_grants(self, grants: Grants, epoch: int) -> RuleBook:
        """The book of a later epoch with the same policies, nothing of which is parsed again."""
        return RuleBook(self.rules, epoch, grants=grants, clock=self.clock, slices=self._slices)

    @property
    def source(self) -> PolicySource:
        """The policies as they were written."""
        return self.rules.source

    @property
    def guarding(self) -> tuple[WrittenPolicy, ...]:
        """The policies that say what is screened."""
        return self._slices.guarding.policies

    def prepare(self, actions: Iterable[str]) -> None:
        """Parse what questions about `actions` need, so that the first of them need not wait."""
        for action in actions:
            self._slices.of(action, "")
        _ = self._slices.guarding

    def slice_of(self, question: Question) -> Slice:
        """The policies that can matter for a question."""
        return self._slices.of(question.action, question.resource)

    def decide(self, question: Question) -> Decision:
        """Answer one question. Never raises for a question: what cannot be decided is denied."""
        policies = self.slice_of(question)
        # What rests on a grant ends with it.
        key = None if self.grants_for(question) else key_of(question, policies.looked_at)
        kept = self._answers.get(key)
        return kept or self._answers.keep(key, self._decide(question, policies))

    def guardrails(self, question: Question) -> Decision:
        """Which of the policies that say what is screened apply to a question. Never raises.

        Those that could not be evaluated are in `failed_policies`: all, if none could be.
        """
        policies = self._slices.guarding
        key = key_of(question, policies.looked_at)
        kept = self._guarded.get(key)
        return kept or self._guarded.keep(key, self._applying(question, policies))

    def _applying(self, question: Question, policies: Slice) -> Decision:
        try:
            answer = cedarpy.is_authorized(
                _request(question, question.time or self.clock.now()),
                policies.parsed,
                self._parse_entities(question.principal, question.resource, 0, ""),
                self.rules.schema,
            )
        except (ValueError, TypeError) as error:
            return self._unevaluated((str(error),), policies)
        applying = tuple(sorted(answer.diagnostics.id_annotations_by_reason.values()))
        errors = tuple(answer.diagnostics.errors)
        if errors:
            return replace(self._unevaluated(errors, policies), policy_ids=applying)
        return Decision(answer.allowed, applying, "", self.epoch)

    def _unevaluated(self, errors: tuple[str, ...], policies: Slice) -> Decision:
        """Errors with the policies whose they are; with all, where one says not whose it is."""
        undecided = self._undecided(errors, policies.identifier)
        every = tuple(policy.identifier for policy in policies.policies)
        failed = undecided.failed_policies
        is_known = len(failed) == len(errors) and set(failed) <= set(every)
        return undecided if is_known else replace(undecided, failed_policies=every)

    def _decide(self, question: Question, policies: Slice) -> Decision:
        now = question.time or self.clock.now()
        try:
            request = _request(question, now)
            entities = self._parse_entities(
                question.principal,
                question.resource,
                question.permission_class,
                question.requester,
            )
        except ValueError as error:
            return Decision(allow=False, policy_ids=(), reason=str(error), epoch=self.epoch)
        decision = self._evaluated(question, request, entities, policies)
        terms = wanted(decision.policy_ids, self._terms)
        if terms is None:
            return decision
        if decision.allow:
            # Nothing but an approval permits it, unless a grant does.
            granted = self._by_grants(question, request, entities)
            return granted if granted.allow else _awaiting(decision, terms)
        # Nothing but an approval forbids it. Is there what permits it then?
        lifted = self._evaluated(question, request, entities, policies.lifted)
        if not lifted.allow:
            return lifted
        more = wanted(lifted.policy_ids, self._terms)
        every = Terms.of([terms, more] if more else [terms])
        return _awaiting(replace(decision, end=lifted.end), every)

    def _evaluated(
        self,
        question: Question,
        request: dict[str, object],
        entities: cedarpy.Entities,
        policies: Slice,
    ) -> Decision:
        """What these policies say, and where they say nothing the grants; approvals aside."""
        answer = self._ask(request, policies.parsed, entities)
        if isinstance(answer, tuple):
            return self._undecided(answer, policies.identifier)
        if not answer.allowed and not answer.diagnostics.reasons:
            return self._by_grants(question, request, entities)
        return self._decided(question, answer, self._reasons)

    def _by_grants(
        self, question: Question, request: dict[str, object], entities: cedarpy.Entities
    ) -> Decision:
        """Ask the grants where the policies neither permit nor forbid: they only permit."""
        grants = self.grants_for(question)
        if not grants:
            return self._denied_by_default(question)
        answer = self._ask(request, self.grants.parsed(grants), entities)
        if isinstance(answer, tuple):
            return self._undecided(answer, lambda _: "a grant")
        by_name = {grant.name: grant for grant in grants}
        told = self._decided(question, answer, {name: by_name[name].reason for name in by_name})
        ends = [by_name[name].expire_time for name in told.policy_ids]
        # One that permits for ever is enough; else the last of them.
        end = None if None in ends else max(filter(None, ends), default=None)
        return replace(told, end=end)

    def grants_for(self, question: Question) -> list[Grant]:
        """The grants that may apply to a question."""
        if question.action != CALL:
            return []
        who = question.principal
        agent = question.context.get("agent")
        asking = [who.user, who.team, agent["__entity"]["id"] if isinstance(agent, dict) else ""]
        return self.grants.of(filter(None, asking), question.resource)

    def _ask(
        self, request: dict[str, object], policies: cedarpy.PolicySet, entities: cedarpy.Entities
    ) -> cedarpy.AuthzResult | tuple[str, ...]:
        """Ask Cedar; what it could not evaluate comes back as its words."""
        try:
            answer = cedarpy.is_authorized(request, policies, entities, self.rules.schema)
        except (ValueError, TypeError) as error:
            return (str(error),)
        return tuple(answer.diagnostics.errors) or answer

    def _parsed_entities(
        self, asked: Principal, resource: str, permission_class: int, requester: str
    ) -> cedarpy.Entities:
        stated = json.dumps(entities_of(asked, resource, permission_class, requester))
        return cedarpy.Entities.from_json_str(stated, self.rules.schema)

    def _undecided(self, errors: tuple[str, ...], name_of: Callable[[str], str]) -> Decision:
        reason = "the policies could not be evaluated for this question, which denies it"
        positions = (match[1] for error in errors if (match := _FAILED.match(error)))
        return Decision(
            allow=False,
            policy_ids=(),
            reason=reason,
            epoch=self.epoch,
            errors=errors,
            failed_policies=tuple(name_of(position) for position in positions),
        )

    def _decided(
        self, question: Question, answer: cedarpy.AuthzResult, reasons: Mapping[str, str]
    ) -> Decision:
        identifiers = tuple(sorted(answer.diagnostics.id_annotations_by_reason.values()))
        if not identifiers:
            return self._denied_by_default(question)
        told = "; ".join(dict.fromkeys(reasons[name] for name in identifiers))
        reason = f"permitted: {told}" if answer.allowed else f"forbidden: {told}"
        return Decision(answer.allowed, identifiers, reason, self.epoch)

    def _denied_by_default(self, question: Question) -> Decision:
        return Decision(
            allow=False, policy_ids=(), reason=default_denial(question), epoch=self.epoch
        )


def rule_book(source: PolicySource, epoch: int) -> RuleBook:
    """Check `source` and make a book of it.

    Raises:
        RemitError: CONFIGURATION_INVALID; it names file, line and policy.

    """
    try:
        return RuleBook(compile_policies(source), epoch)
    except PolicyFaultsError as error:
        raise RemitError(ERROR_REASON_CONFIGURATION_INVALID, str(error)) from error


def _awaiting(decision: Decision, terms: Terms) -> Decision:
    """A denial for want of an approval: who knows of no approvals denies."""
    told = decision.reason.partition(": ")[2]
    return replace(decision, allow=False, reason=f"needs approval: {told}", approval=terms)


def default_denial(question: Question) -> str:
    """Why a question is denied that no policy permits or forbids."""
    roles = ", ".join(question.principal.roles) or "none"
    return (
        f"no policy permits {question.action} on {question.resource} "
        f"to {question.principal.user} (roles: {roles})"
    )


def _request(question: Question, now: datetime) -> dict[str, object]:
    return {
        "principal": {"type": "User", "id": question.principal.user},
        "action": {"type": "Action", "id": question.action},
        "resource": reference(question.resource),
        "context": {"now": cedar_time(now), **question.context},
    }
