"""Policies as they were written, checked: text in, policies that may be decided with out.

Nothing is put in force that does not pass here: it parses, fits the schema, and each policy has an
`@id` of its own. Every fault names its file, its policy and its line.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, TypeVar

import cedarpy
from cedarpy import pst

from remit import names
from remit.guardrails import Wanted
from remit.policy import guardrail_terms
from remit.policy.approval_terms import ANNOTATION, Terms, terms_of
from remit.policy.statements import Statement, TextFaultError, statements

MAX_FILES: Final = 200
MAX_TEXT_BYTES: Final = 524_288
"""All files together."""
MAX_FAULTS: Final = 20
"""Told at most: the next check tells the others."""
_STACK_BYTES: Final = 64 * 1024 * 1024
"""Cedar works by recursion; what statements.py lets through needs two."""
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?\.cedar")
_MAX_ID_CHARS: Final = 200
_DOUBT: Final = re.compile(r"for policy `policy\d+`, ")

FACTS_OF_A_CALL: Final = frozenset({"run", "arguments_digest", "now"})
"""Facts in the context that differ from call to call."""
_CONTEXT: Final = repr(pst.Var("context"))
_TOOL_CALL: Final = repr(pst.GetAttr(pst.Var("context"), "tool_call"))

Result = TypeVar("Result")


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


@dataclass(frozen=True)
class PolicyFault:
    """What is wrong and where; `line` is 0 and `policy` empty where it is about a whole file."""

    file: str
    line: int
    policy: str
    fault: str

    def __str__(self) -> str:
        """As compilers say it: `mine.cedar:3: policy p: ...`."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(filter(None, (where, self.policy and f"policy {self.policy}", self.fault)))


class PolicyFaultsError(ValueError):
    """Policies that may not be put in force, with every fault up to a bound."""

    def __init__(self, faults: list[PolicyFault]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


@dataclass(frozen=True)
class WrittenPolicy:
    """One policy that passed, and to which questions its scope can apply.

    `actions` are the actions or groups that its scope names, None for any; `resource` is the name
    of the only resource that its scope fits, empty for any. `looked_at` are those facts of each
    call that its conditions may look at.
    """

    identifier: str
    reason: str
    effect: str
    file: str
    line: int
    text: str
    actions: frozenset[str] | None
    resource: str
    looked_at: frozenset[str]
    approval: Terms | None = None
    """Whose approval it wants; None: nobody's."""
    guardrails: Wanted | None = None
    """What it wants screened where it applies; None where it says nothing of that."""


@dataclass(frozen=True)
class RuleSet:
    """Checked policies with their schema, parsed."""

    source: PolicySource
    schema: cedarpy.Schema
    policies: tuple[WrittenPolicy, ...]


def compile_policies(source: PolicySource) -> RuleSet:
    """Check `source` in a thread whose stack is deep enough, and return its policies.

    Raises:
        PolicyFaultsError: it must not be put in force.

    """
    return _with_deep_stack(lambda: _compiled(source))


def _compiled(source: PolicySource) -> RuleSet:
    schema = _parse_schema(source.schema)
    faults = list(_size_faults(source))
    policies: list[WrittenPolicy] = []
    if not faults:
        for name, text in sorted(source.files.items()):
            found, wrong = _file(name, text, schema)
            policies += found
            faults += wrong
        faults += _repeated(policies)
    if faults:
        raise PolicyFaultsError(faults[:MAX_FAULTS])
    return RuleSet(source, schema, tuple(policies))


def _parse_schema(text: str) -> cedarpy.Schema:
    try:
        return cedarpy.Schema.from_str(text)
    except ValueError as error:
        fault = PolicyFault("schema.cedarschema", 0, "", f"does not parse: {error}")
        raise PolicyFaultsError([fault]) from error


def _size_faults(source: PolicySource) -> Iterator[PolicyFault]:
    if not source.files:
        yield PolicyFault("*.cedar", 0, "", "there is no such file, so everything would be denied")
    if len(source.files) > MAX_FILES:
        yield PolicyFault("*.cedar", 0, "", f"there are more than {MAX_FILES} files")
    size = sum(len(text.encode()) for text in source.files.values())
    if size > MAX_TEXT_BYTES:
        fault = f"all together have {size:,} bytes; {MAX_TEXT_BYTES:,} are the most"
        yield PolicyFault("*.cedar", 0, "", fault)
    for name, text in sorted(source.files.items()):
        if not _FILE_NAME.fullmatch(name):
            yield PolicyFault(repr(name), 0, "", "a file is named by letters, digits, . _ - .cedar")
        if "\0" in text:
            yield PolicyFault(name, 0, "", "holds a NUL character")


def _file(
    name: str, text: str, schema: cedarpy.Schema
) -> tuple[list[WrittenPolicy], list[PolicyFault]]:
    try:
        written = statements(text)
    except TextFaultError as error:
        return [], [PolicyFault(name, error.line, "", error.fault)]
    policies: list[WrittenPolicy] = []
    faults: list[PolicyFault] = []
    for statement in written:
        parsed = _parsed(name, statement)
        (faults if isinstance(parsed, PolicyFault) else policies).append(parsed)  # type: ignore[arg-type]
    return policies, faults or list(_schema_faults(name, policies, schema))


def _parsed(name: str, statement: Statement) -> WrittenPolicy | PolicyFault:
    """Parse one policy."""

    def fault(words: str, policy: str = "") -> PolicyFault:
        return PolicyFault(name, statement.line, policy, words)

    try:
        parsed = cedarpy.PolicySet.from_str(statement.text, release_gil=True).to_pst()
    except ValueError as error:
        return fault(f"does not parse: {str(error).removeprefix('cedarpy: ')}")
    if parsed.templates:
        return fault("templates (`?principal`, `?resource`) are not supported")
    if len(parsed.static_policies) != 1:
        return fault("is not one policy")
    (policy,) = parsed.static_policies.values()
    identifier = policy.annotations.get("id") or ""
    if not 1 <= len(identifier) <= _MAX_ID_CHARS or not identifier.isprintable():
        return fault(f"the policy needs an @id of its own, of {_MAX_ID_CHARS} characters at most")
    if names.is_name("grant", identifier):
        return fault("the @id is the name of a grant", identifier)
    return _written(name, statement, policy)


def _written(name: str, statement: Statement, policy: pst.Template) -> WrittenPolicy | PolicyFault:
    identifier = policy.annotations["id"]
    actions = _actions(policy.action)
    try:
        approval = terms_of(policy.annotations)
    except ValueError as error:
        return PolicyFault(name, statement.line, identifier, f"@{ANNOTATION} {error}")
    try:
        guardrails = guardrail_terms.terms_of(policy.annotations, policy.effect, actions)
    except ValueError as error:
        return PolicyFault(name, statement.line, identifier, str(error))
    return WrittenPolicy(
        identifier=identifier,
        reason=policy.annotations.get("reason") or identifier,
        effect=policy.effect,
        file=name,
        line=statement.line,
        text=statement.text,
        actions=actions,
        resource=_only_resource(policy.resource),
        looked_at=_looked_at(policy.clauses),
        approval=approval,
        guardrails=guardrails,
    )


def _looked_at(clauses: Sequence[pst.Clause]) -> frozenset[str]:
    """The facts of each call that some attribute names; all, where a record is taken as a whole."""
    written = repr(clauses)
    for record in (_CONTEXT, _TOOL_CALL):
        if written.count(record) > written.count(f"base={record}"):
            return FACTS_OF_A_CALL
    return frozenset(fact for fact in FACTS_OF_A_CALL if f"'{fact}'" in written)


def _actions(scope: pst.ScopeAny | pst.ActionEq | pst.ActionIn) -> frozenset[str] | None:
    if isinstance(scope, pst.ActionEq):
        return frozenset({scope.entity.id})
    if isinstance(scope, pst.ActionIn):
        return frozenset(entity.id for entity in scope.entities)
    return None


def _only_resource(scope: object) -> str:
    if isinstance(scope, pst.ScopeEq) and isinstance(scope.entity, pst.EntityUid):
        return scope.entity.id
    return ""


def _schema_faults(
    name: str, policies: list[WrittenPolicy], schema: cedarpy.Schema
) -> Iterator[PolicyFault]:
    """Validate the policies of a file; Cedar names them by their position."""
    text = "\n".join(policy.text for policy in policies)
    result = cedarpy.validate_policies(text, schema)
    if result.validation_passed:
        return
    by_position = {f"policy{number}": policy for number, policy in enumerate(policies)}
    for error in result.errors:
        policy = by_position.get(error.policy_id)
        words = _DOUBT.sub("", error.error)
        if policy is None:
            yield PolicyFault(name, 0, "", words)
        else:
            yield PolicyFault(name, policy.line, policy.identifier, words)


def _repeated(policies: list[WrittenPolicy]) -> Iterator[PolicyFault]:
    first: dict[str, WrittenPolicy] = {}
    for policy in policies:
        other = first.setdefault(policy.identifier, policy)
        if other is not policy:
            fault = f"the @id is used by another policy, at {other.file}:{other.line}"
            yield PolicyFault(policy.file, policy.line, policy.identifier, fault)


def _with_deep_stack(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread of its own and return what it returns."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)

    with _STACK_LOCK:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="compile-policies", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return done.result()


_STACK_LOCK: Final = threading.Lock()
"""The size of a stack is a setting of the process."""
