"""Agent definitions: what an agent is told, which model and tools it has, and how far it may go.

A definition is a YAML file, checked in full when the service starts. Its version is the SHA-256 of
its canonical form, and a run keeps the version that it began with: a changed file changes new runs
alone.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self

import yaml
from google.protobuf import duration_pb2
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from remit import names, webhooks
from remit.agent.confidence import ConfidenceRule
from remit.agent.fallback import FallbackRule, Rules
from remit.api.agent.v1 import agent_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError, Violation

SHIPPED_FOLDER: Final = Path(__file__).parent / "agents"
MAX_FILE_BYTES: Final = 262_144
_NANOS_PER_USD: Final = 1_000_000_000

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
ShortName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._@-]{0,98}[A-Za-z0-9])?$")
]


class OnDoubt(StrEnum):
    """What a run does about a tool call whose outcome is unknown."""

    FAIL = "fail"
    RETRY_IDEMPOTENT = "retry_idempotent"
    ASK = "ask"
    """As RETRY_IDEMPOTENT; for any other tool a person decides whether it is called again."""


class AgentDefinition(BaseModel):
    """One agent, as its YAML file declares it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Identifier
    display_name: str = Field(min_length=1, max_length=100)
    description: str = Field(min_length=1, max_length=1_000)
    instructions: str = Field(min_length=1, max_length=50_000)
    model: ShortName
    tools: tuple[ShortName, ...] = Field(default=(), max_length=64)
    max_steps: int = Field(default=8, ge=1, le=100)
    max_duration_s: int = Field(default=300, ge=1, le=86_400)
    max_cost_usd: Decimal = Field(default=Decimal(1), ge=0, le=1_000_000)
    max_output_tokens: int = Field(default=0, ge=0, le=1_000_000)
    temperature: float | None = Field(default=None, ge=0, le=2)
    tool_timeout_s: int | None = Field(default=None, ge=1, le=3_600)
    on_doubt: OnDoubt = OnDoubt.FAIL
    agents: tuple[Identifier, ...] = Field(default=(), max_length=16)
    fallback: FallbackRule | None = None
    confidence: ConfidenceRule | None = None

    @field_validator("max_cost_usd", mode="before")
    @classmethod
    def _exact_money(cls, value: object) -> object:
        # YAML reads 0.1 as a float; its shortest text is what the person wrote.
        return repr(value) if isinstance(value, float) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field in ("tools", "agents"):
            listed = getattr(self, field)
            if len(set(listed)) != len(listed):
                message = f"{field}: names the same {field[:-1]} twice"
                raise ValueError(message)
        if webhooks.TOOL_ID in self.tools:
            message = f"tools: {webhooks.TOOL_ID} is not for agents; a run is given its webhook"
            raise ValueError(message)
        if (self.max_cost_usd * _NANOS_PER_USD) % 1:
            message = "max_cost_usd: has more than nine decimals"
            raise ValueError(message)
        if self.fallback is not None and self.fallback.model == self.model:
            message = "fallback.model: is the agent's own model"
            raise ValueError(message)
        return self

    @property
    def full_name(self) -> str:
        """`agents/{agent}`."""
        return names.agent_name(self.name)

    @property
    def model_name(self) -> str:
        """`models/{model}`."""
        return names.model_name(self.model)

    @property
    def model_names(self) -> tuple[str, ...]:
        """`models/{model}` of each model that a run may ask, its own first."""
        second = self.fallback.model_name if self.fallback is not None else ""
        return (self.model_name, second) if second else (self.model_name,)

    @property
    def rules(self) -> Rules:
        """What a run does about models that fail or are not sure."""
        return Rules(self.fallback, self.confidence)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """`tools/{tool}` of each tool, in the order declared."""
        return tuple(names.tool_name(tool) for tool in self.tools)

    @property
    def agent_names(self) -> tuple[str, ...]:
        """`agents/{agent}` of each agent that it may start, in the order declared."""
        return tuple(names.agent_name(agent) for agent in self.agents)

    @property
    def max_cost_nanos(self) -> int:
        """Most money of a run in nano-USD."""
        return int(self.max_cost_usd * _NANOS_PER_USD)

    def limits(self) -> run_pb2.RunLimits:
        """The limits of a run that asks for none of its own."""
        return run_pb2.RunLimits(
            max_steps=self.max_steps,
            max_duration=duration_pb2.Duration(seconds=self.max_duration_s),
            max_cost_nanos=self.max_cost_nanos,
        )

    def canonical(self) -> bytes:
        """The definition as JSON, keys sorted and no spaces: the version is its hash."""
        fields = self.model_dump(mode="json") | {"max_cost_usd": str(self.max_cost_usd.normalize())}
        for later in ("agents", "fallback", "confidence"):
            if not fields[later]:  # as before there were any, so that no version changes
                del fields[later]
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @functools.cached_property
    def version(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def from_canonical(cls, canonical: bytes) -> Self:
        """The definition of its canonical form.

        Raises CONFIGURATION_INVALID for one that this version of Remit does not understand.
        """
        try:
            return cls.model_validate_json(canonical)
        except ValidationError as error:
            raise _invalid(
                f"the stored definition {hashlib.sha256(canonical).hexdigest()} is not understood"
                f" by this version of Remit: {error.errors()[0]['msg']}"
            ) from error

    def to_proto(self) -> agent_pb2.Agent:
        """The definition as clients see it; the instructions stay inside."""
        limits = self.limits()
        return agent_pb2.Agent(
            name=self.full_name,
            display_name=self.display_name,
            description=self.description,
            version=self.version,
            model=self.model_name,
            tools=self.tool_names,
            max_steps=limits.max_steps,
            max_duration=limits.max_duration,
            max_cost_nanos=limits.max_cost_nanos,
            agents=self.agent_names,
            fallback_model=self.fallback.model_name if self.fallback is not None else "",
            min_confidence=self.confidence.min if self.confidence is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """What a run may use, and what it may pass on to its sub-runs without using it itself."""

    tools: tuple[str, ...]
    models: tuple[str, ...]
    delegable_tools: tuple[str, ...] = ()
    delegable_models: tuple[str, ...] = ()


class AgentCatalog:
    """The agents that new runs may use, by full name."""

    def __init__(self, definitions: Iterable[AgentDefinition]) -> None:
        self._by_name = {d.full_name: d for d in sorted(definitions, key=lambda d: d.full_name)}
        checked: set[str] = set()
        for definition in self._by_name.values():
            self._check_agents(definition, (), checked)

    def get(self, name: str) -> AgentDefinition:
        """The agent. Raises AGENT_NOT_FOUND that names the nearest one."""
        found = self._by_name.get(name)
        if found is None:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_AGENT_NOT_FOUND,
                f"{name} does not exist{did_you_mean(name, self._by_name)}",
            )
        return found

    def grant(self, definition: AgentDefinition) -> Grant:
        """What a run of the definition is registered with: its own, and what those below need."""
        below = [self._by_name[name] for name in self._below(definition)]
        return Grant(
            tools=definition.tool_names,
            models=definition.model_names,
            delegable_tools=tuple(sorted({tool for agent in below for tool in agent.tool_names})),
            delegable_models=tuple(sorted({m for agent in below for m in agent.model_names})),
        )

    def _below(self, definition: AgentDefinition) -> set[str]:
        """The agents that its sub-runs may be of, at any depth.

        A definition of an earlier version may name agents that are gone.
        """
        found: set[str] = set()
        waiting = list(definition.agent_names)
        while waiting:
            name = waiting.pop()
            if name in self._by_name and name not in found:
                found.add(name)
                waiting += self._by_name[name].agent_names
        return found

    def _check_agents(
        self, definition: AgentDefinition, above: tuple[str, ...], checked: set[str]
    ) -> None:
        """Raises CONFIGURATION_INVALID for an agent that is not there, and for a circle."""
        if definition.full_name in checked:
            return
        line = (*above, definition.full_name)
        for name in definition.agent_names:
            if name in line:
                circle = " -> ".join((*line[line.index(name) :], name))
                raise _invalid(f"agents: go round in a circle: {circle}")
            if name not in self._by_name:
                raise _invalid(
                    f"agents: {definition.full_name} names {name}, which does not exist"
                    f"{did_you_mean(name, self._by_name)}"
                )
            self._check_agents(self._by_name[name], line, checked)
        checked.add(definition.full_name)

    def all(self) -> tuple[AgentDefinition, ...]:
        """Every agent, by name."""
        return tuple(self._by_name.values())


_SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "fallback": FallbackRule,
    "confidence": ConfidenceRule,
}


def load_catalog(folder: Path | None) -> AgentCatalog:
    """The shipped agents and those of the operator's folder, which replace shipped ones by name.

    Raises CONFIGURATION_INVALID that names the file, the line and the field.
    """
    definitions = {d.name: d for d in _load_folder(SHIPPED_FOLDER)}
    if folder is not None:
        definitions |= {d.name: d for d in _load_folder(folder)}
    return AgentCatalog(definitions.values())


def parse_definition(text: str, file_name: str) -> AgentDefinition:
    """The definition in a YAML text. Raises CONFIGURATION_INVALID."""
    content = _parse_yaml(text, file_name)
    try:
        return AgentDefinition.model_validate(content)
    except ValidationError as error:
        raise _invalid_fields(error, text, file_name) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or an empty text if nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _load_folder(folder: Path) -> Iterator[AgentDefinition]:
    if not folder.is_dir():
        raise _invalid(f"the folder of agents {folder} does not exist (REMIT_AGENT_AGENTS_DIR)")
    files: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".yaml", ".yml"}):
        definition = parse_definition(_read(path), path.name)
        if definition.name in files:
            raise _invalid(
                f"{path.name}: name: {definition.name} is declared in"
                f" {files[definition.name].name} too"
            )
        files[definition.name] = path
        yield definition


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _invalid(f"{path.name}: is larger than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"{path.name}: cannot be read: {error}") from error


def _parse_yaml(text: str, file_name: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "is not YAML"
        raise _invalid(f"{file_name}{line}: {problem}") from error
    if not isinstance(content, dict):
        raise _invalid(f"{file_name}: must be a mapping with the fields of an agent")
    return content


def _invalid_fields(error: ValidationError, text: str, file_name: str) -> RemitError:
    lines = _lines_of_fields(text)
    violations = []
    for fault in error.errors():
        field = ".".join(str(part) for part in fault["loc"])
        line = lines.get(str(fault["loc"][0])) if fault["loc"] else None
        where = f"{file_name}:{line}" if line else file_name
        violations.append(Violation(f"{where}: {field}".rstrip(": "), _fault(fault, field)))
    return _invalid("; ".join(f"{v.field}: {v.description}" for v in violations), violations)


def _fault(fault: Mapping[str, Any], field: str) -> str:
    if fault["type"] == "extra_forbidden":
        section = _SECTIONS.get(field.partition(".")[0], AgentDefinition)
        return f"unknown field{did_you_mean(field.rpartition('.')[2], section.model_fields)}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _lines_of_fields(text: str) -> dict[str, int]:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): key.start_mark.line + 1 for key, _ in node.value}


def _invalid(message: str, violations: Iterable[Violation] = ()) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message, violations=list(violations)
    )
