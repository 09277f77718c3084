"""Cases that say what policies shall answer: a file of questions, each with the answer expected.

They are decided by the same core as live questions, from the same facts about a call's arguments,
so that a folder of policies is tested before anybody pushes it, without a mesh.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.guardrails import Wanted, parse_wanted
from remit.policy.entities import Principal, reference_to
from remit.policy.facts import facts_of
from remit.policy.guarding import wanted_by
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.schema import APPLY_GUARDRAILS
from remit.rpc.errors import RemitError

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_CASES: Final = 10_000
_SOME_RUN: Final = "runs/00000000-0000-7000-8000-000000000000"
_CLASSES: Final = ("", "none", "read", "write", "execute")


class Case(BaseModel):
    """One question and the answer that it shall get."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    subject: str
    roles: tuple[str, ...] = ("member",)
    team: str = ""
    action: str
    resource: str
    permission_class: Literal["", "none", "read", "write", "execute"] = ""
    agent: str = ""
    run: str = ""
    arguments: dict[str, Any] | None = None
    expect: Literal["", "allow", "deny"] = ""
    guardrails: Wanted | None = None
    by: tuple[str, ...] | None = None

    @field_validator("guardrails", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return parse_wanted(value) if value.strip() else Wanted()

    @model_validator(mode="after")
    def _expects_one_thing(self) -> Case:
        is_guardrails = self.action == APPLY_GUARDRAILS
        if is_guardrails != (self.guardrails is not None) or is_guardrails == bool(self.expect):
            message = (
                f"a case of {APPLY_GUARDRAILS} says `guardrails`, perhaps empty; any other says"
                " `expect`: allow or deny"
            )
            raise ValueError(message)
        return self

    @property
    def question(self) -> Question:
        """The question as the service would put it. Raises ValueError for a malformed name."""
        context: dict[str, object] = {}
        agent, run = self.agent, self.run
        if self.guardrails is not None and names.is_name("agent", self.resource):
            # As policy asks when it issues a run's remit.
            agent, run = self.resource, run or _SOME_RUN
        for kind, name in (("agent", agent), ("run", run)):
            if name:
                names.parse(kind, name)
                context[kind] = reference_to(name)
        if self.arguments is not None:
            canonical = json.dumps(self.arguments, sort_keys=True, separators=(",", ":"))
            context["tool_call"] = {
                "arguments_digest": hashlib.sha256(canonical.encode()).hexdigest(),
                "facts": facts_of(self.arguments).to_cedar(),
            }
        return Question(
            Principal(self.subject, names.org_of(self.subject), self.team, self.roles),
            self.action,
            self.resource,
            _CLASSES.index(self.permission_class),
            context,
        )


class _Cases(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: tuple[Case, ...] = Field(min_length=1, max_length=MAX_CASES)


@dataclass(frozen=True)
class Outcome:
    """What a case got."""

    case: Case
    decision: Decision
    wanted: Wanted | None = None
    """What is screened, where that is the question."""

    @property
    def fault(self) -> str:
        """How the answer differs from what was expected; empty if it does not."""
        answer = "allow" if self.decision.allow else "deny"
        if self.decision.errors:
            return f"could not be decided: {self.decision.errors[0]}"
        if self.wanted != self.case.guardrails:
            return f"expected {self.case.guardrails}, got {self.wanted}"
        if self.case.guardrails is None and answer != self.case.expect:
            return f"expected {self.case.expect}, got {answer}: {self.decision.reason}"
        if self.case.by is not None and set(self.case.by) != set(self.decision.policy_ids):
            wanted = ", ".join(self.case.by) or "no policy"
            got = ", ".join(self.decision.policy_ids) or "no policy"
            return f"expected by {wanted}, got by {got}"
        return ""


def read_cases(content: bytes, file: str) -> tuple[Case, ...]:
    """Read the cases of a YAML or JSON file.

    Raises:
        RemitError: CONFIGURATION_INVALID; it names the case and the field.

    """
    if len(content) > MAX_FILE_BYTES:
        raise _invalid(f"{file} has more than {MAX_FILE_BYTES:,} bytes")
    try:
        return _Cases.model_validate(yaml.safe_load(content)).cases
    except yaml.YAMLError as error:
        raise _invalid(f"{file} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise _invalid(f"{file}: {where}: {first['msg']}") from error


def decide_cases(book: RuleBook, cases: Sequence[Case]) -> list[Outcome]:
    """Answer every case.

    Raises:
        RemitError: CONFIGURATION_INVALID for a case whose names are malformed.

    """
    outcomes = []
    for case in cases:
        try:
            question = case.question
        except ValueError as error:
            raise _invalid(f"case {case.name!r}: {error}") from error
        outcomes.append(_outcome(book, case, question))
    return outcomes


def _outcome(book: RuleBook, case: Case, question: Question) -> Outcome:
    if case.guardrails is None:
        return Outcome(case, book.decide(question))
    decision = book.guardrails(question)
    return Outcome(case, decision, wanted_by(book, decision))


def unreached(book: RuleBook, outcomes: Sequence[Outcome]) -> list[str]:
    """The policies that decided no case, by `@id`."""
    reached = {name for outcome in outcomes for name in outcome.decision.policy_ids}
    return [policy.identifier for policy in book.rules.policies if policy.identifier not in reached]


def _invalid(message: str) -> RemitError:
    return RemitError(ERROR_REASON_CONFIGURATION_INVALID, message)
