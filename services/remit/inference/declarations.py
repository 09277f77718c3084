"""The models file: which models there are, who serves them, and where their keys are.

Keys are never in the file: it names an environment variable or a file, and the key is read when it
is needed, so that a key can be changed without a restart. No error shows a value of the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError, Violation

SHIPPED_FILE: Final = Path(__file__).with_name("models.yaml")
MAX_FILE_BYTES: Final = 1_048_576
MAX_KEY_BYTES: Final = 8_192
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_FIXES: Final = {
    "missing": "add it",
    "extra_forbidden": "remove it or correct its spelling",
    "union_tag_invalid": "write engine: builtin-rules or engine: openai",
    "union_tag_not_found": "add engine: builtin-rules or engine: openai",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class KeyReference(_Strict):
    """Where a key is: exactly one of an environment variable and a file."""

    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    file: Path | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> KeyReference:
        if (self.env is None) == (self.file is None):
            message = "needs exactly one of env and file, such as {env: OPENAI_API_KEY}"
            raise ValueError(message)
        return self

    def read(self) -> str:
        """The key, or an empty string where there is none."""
        if self.env is not None:
            return os.environ.get(self.env, "").strip()
        try:
            with (self.file or Path()).open("rb") as opened:
                content = opened.read(MAX_KEY_BYTES + 1)
            return content.decode().strip() if len(content) <= MAX_KEY_BYTES else ""
        except (OSError, UnicodeDecodeError):
            return ""

    def missing_reason(self) -> str:
        """Why `read` gives nothing, and what to do; empty if it gives a key."""
        if self.read():
            return ""
        if self.env is not None:
            return f"the environment variable {self.env} is not set; set it to the provider's key"
        return f"the key file {self.file} cannot be read or is empty; put the provider's key there"


class _Declared(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._@-]{0,98}[A-Za-z0-9])?$")
    description: str = Field(default="", max_length=1_000)
    context_tokens: int = Field(ge=1, le=100_000_000)
    max_output_tokens: int = Field(ge=1, le=10_000_000)
    list_item: str = Field(default="", max_length=200)
    """Name in a public price list, such as `openai/gpt-5-mini`."""

    @property
    def resource_name(self) -> str:
        """`models/{model}`."""
        return f"models/{self.name}"

    @model_validator(mode="after")
    def _answer_fits(self) -> _Declared:
        if self.max_output_tokens > self.context_tokens:
            message = "max_output_tokens is more than context_tokens; lower it"
            raise ValueError(message)
        return self


class BuiltinModel(_Declared):
    """A model that the rule engine serves."""

    engine: Literal["builtin-rules"]


class OpenAIModel(_Declared):
    """A model behind an endpoint that speaks the OpenAI chat completions protocol."""

    engine: Literal["openai"]
    base_url: str
    provider_model: str = Field(min_length=1, max_length=200)
    api_key: KeyReference | None = None
    insecure_http: bool = False
    """Lets a key travel over plain HTTP to a host that is not this machine."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    logprobs: bool = False
    """Whether the endpoint gives the log-probabilities of tokens, which confidence follows from."""
    stop_stops_bill: bool = False
    """Whether the provider stops charging when the connection is closed."""
    continuous_usage: bool = False
    """Whether the endpoint says with each chunk how many tokens it has generated, as vLLM does."""
    unsent_tokens: int = Field(default=64, ge=1, le=100_000)
    """Tokens that the provider may have generated and not sent yet when it is stopped, at most."""
    connect_timeout_s: float = Field(default=10.0, gt=0, le=60)
    idle_timeout_s: float = Field(default=60.0, gt=0, le=300)
    """Longest silence of the provider, before the first piece and between two."""

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            message = "must be an http or https URL, such as https://api.openai.com/v1"
            raise ValueError(message)
        if parts.username or parts.password or parts.query or parts.fragment:
            message = "must hold no credentials, query or fragment; keys belong under api_key"
            raise ValueError(message)
        return url

    @model_validator(mode="after")
    def _key_is_not_sent_in_clear(self) -> OpenAIModel:
        parts = urlsplit(self.base_url)
        clear = parts.scheme == "http" and parts.hostname not in _LOOPBACK
        if clear and self.api_key is not None and not self.insecure_http:
            message = "base_url would send the key in clear; use https, or set insecure_http: true"
            raise ValueError(message)
        return self


ModelDeclaration = Annotated[BuiltinModel | OpenAIModel, Field(discriminator="engine")]


class ModelsFile(_Strict):
    """All declared models, by name."""

    models: tuple[ModelDeclaration, ...] = Field(min_length=1, max_length=1_000)

    @model_validator(mode="after")
    def _names_are_unique(self) -> ModelsFile:
        counts = Counter(model.name for model in self.models)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            message = f"{', '.join(twice)} is declared more than once; give each model its own name"
            raise ValueError(message)
        return self


def load_models(path: Path) -> ModelsFile:
    """Reads and checks the models file.

    Raises CONFIGURATION_INVALID that names the file, every wrong field and what to do.
    """
    data = _parsed(path, _content(path))
    try:
        return ModelsFile.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_context=False, include_url=False)
        raise _invalid(path, [_violation(fault, data) for fault in faults]) from None


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _unreadable(path, f"cannot be read: {reason}; correct the path") from None
    if len(content) > MAX_FILE_BYTES:
        raise _unreadable(path, f"has more than {MAX_FILE_BYTES} bytes; split or shorten it")
    return content


def _parsed(path: Path, content: bytes) -> object:
    try:
        return yaml.safe_load(content)
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the file, where somebody may have put a key.
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else "somewhere"
        raise _unreadable(path, f"is not YAML at {line}: {error.problem}; correct it") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise _unreadable(path, "is not YAML in UTF-8; correct it") from None


def _violation(fault: Mapping[str, Any], data: object) -> Violation:
    location: tuple[str | int, ...] = fault["loc"]
    kind = fault["type"]
    description = fault["msg"].removeprefix("Value error, ")
    if location and location[-1] == "api_key":
        description = "must name where the key is, such as {env: OPENAI_API_KEY}; never the key"
    elif kind in _FIXES:
        description = f"{description}; {_FIXES[kind]}"
    return Violation(_field(location, data), description)


def _field(location: Iterable[str | int], data: object) -> str:
    """The path of a field, such as `models[1](gpt).base_url`, without pydantic's union tags."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]{_name_at(part, data)}"
        elif part not in {"builtin-rules", "openai"}:
            path += f".{part}" if path else part
    return path or "models"


def _name_at(index: int, data: object) -> str:
    models = data.get("models") if isinstance(data, dict) else None
    entry = models[index] if isinstance(models, list) and index < len(models) else None
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"({name})" if isinstance(name, str) and len(name) <= 100 else ""


def _unreadable(path: Path, why: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, f"{path}: {why}")


def _invalid(path: Path, violations: list[Violation]) -> RemitError:
    listed = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
        f"{path}: {listed}",
        violations=violations,
    )
