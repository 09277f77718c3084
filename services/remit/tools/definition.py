"""A typed Python function as a tool: its schema, its class, its digest.

The signature is the one statement of a tool's arguments: the JSON Schema that a model sees and the
validation that a call passes are both made from it, so they cannot disagree.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import pydantic
import pydantic.json_schema

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1.permission_pb2 import PermissionClass
from remit.rpc.errors import RemitError
from remit.tools.context import ToolContext

PermissionClassName = Literal["none", "read", "write", "execute"]
"""What a tool can do to the world; see remit.api.policy.v1.PermissionClass."""

SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_DESCRIPTION_CHARS: Final = 4_000
DEFAULT_TIMEOUT_S: Final = 30.0
MAX_TIMEOUT_S: Final = 50.0
"""Below the deadline of CallTool (60 s), so that a tool that runs out of time can be recorded."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}[a-z0-9]")
_DECLARATION: Final = "__remit_tool__"
_FIELD_PREFIX: Final = "argument_"

AnyTool = TypeVar("AnyTool", bound=Callable[..., object])


@dataclass(frozen=True)
class Declaration:
    """What `@tool` states beside the signature."""

    permission_class: str
    idempotent: bool
    timeout_s: float
    name: str | None


@dataclass(frozen=True)
class ToolDefinition:
    """A tool that can be called.

    `digest` is SHA-256 over everything that the contract's Tool message states of it. A blocking
    function runs in the thread pool, a coroutine function on the event loop.
    """

    name: str
    description: str
    permission_class: PermissionClass.ValueType
    idempotent: bool
    timeout_s: float
    input_schema_json: str
    digest: bytes
    source: str
    function: Callable[..., object]
    arguments_model: type[pydantic.BaseModel]
    context_parameter: str | None
    blocking: bool

    @property
    def resource_name(self) -> str:
        """`tools/{tool}`."""
        return names.tool_name(self.name)

    def keywords(self, arguments: pydantic.BaseModel) -> dict[str, Any]:
        """Keyword arguments of the function, from a validated model of its own."""
        return {
            field.removeprefix(_FIELD_PREFIX): getattr(arguments, field)
            for field in type(arguments).model_fields
        }


def tool(
    *,
    permission_class: PermissionClassName,
    idempotent: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    name: str | None = None,
) -> Callable[[AnyTool], AnyTool]:
    """Declare a function as a tool; the function itself stays as it is.

    The docstring becomes the description, the annotated parameters the JSON Schema. What the
    declaration lacks is reported when the registry loads it, with module and function.

    Args:
        permission_class: what it can do to the world; the policy decides by it.
        idempotent: whether a second call with the same arguments does no more than the first. Only
            then may a call in doubt be made again.
        timeout_s: most seconds that it may take, more than 0 and at most `MAX_TIMEOUT_S`.
        name: name of the tool; the function's own by default.

    """
    declaration = Declaration(permission_class, idempotent, timeout_s, name)

    def declare(function: AnyTool) -> AnyTool:
        setattr(function, _DECLARATION, declaration)
        return function

    return declare


def is_declared(candidate: object) -> bool:
    """Whether `@tool` was applied to it."""
    return isinstance(getattr(candidate, _DECLARATION, None), Declaration)


def define(function: Callable[..., object]) -> ToolDefinition:
    """The definition of a declared function.

    Raises:
        RemitError: CONFIGURATION_INVALID naming module and function, and what they lack.

    """
    declaration: Declaration = getattr(function, _DECLARATION)
    source = f"{function.__module__}:{function.__qualname__}"
    try:
        return _define(function, declaration, source)
    except (ValueError, TypeError, NameError, pydantic.errors.PydanticUserError) as error:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{source}: {str(error).partition(chr(10))[0]}",
        ) from error


def _define(
    function: Callable[..., object], declaration: Declaration, source: str
) -> ToolDefinition:
    name = _tool_name(declaration.name or function.__name__)
    parameters, context_parameter = _parameters(function)
    model = _arguments_model(name, parameters)
    parts = {
        "name": names.tool_name(name),
        "description": _description(function),
        "input_schema_json": _schema_json(model),
        "permission_class": PermissionClass.Name(_permission_class(declaration.permission_class)),
        "idempotent": declaration.idempotent,
    }
    return ToolDefinition(
        name=name,
        description=str(parts["description"]),
        permission_class=_permission_class(declaration.permission_class),
        idempotent=declaration.idempotent,
        timeout_s=_timeout_s(declaration.timeout_s),
        input_schema_json=str(parts["input_schema_json"]),
        digest=hashlib.sha256(canonical_json(parts)).digest(),
        source=source,
        function=function,
        arguments_model=model,
        context_parameter=context_parameter,
        blocking=not inspect.iscoroutinefunction(function),
    )


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8: equal values have equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _tool_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        message = f"the name {name!r} must be 2 to 64 characters of a-z, 0-9 and _, a letter first"
        raise ValueError(message)
    return name


def _permission_class(name: str) -> PermissionClass.ValueType:
    allowed = typing.get_args(PermissionClassName)
    if name not in allowed:
        message = f"permission_class {name!r} must be one of {', '.join(allowed)}"
        raise ValueError(message)
    return PermissionClass.Value(f"PERMISSION_CLASS_{name.upper()}")


def _timeout_s(timeout_s: float) -> float:
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        message = f"timeout_s {timeout_s} must be more than 0 and at most {MAX_TIMEOUT_S}"
        raise ValueError(message)
    return timeout_s


def _description(function: Callable[..., object]) -> str:
    description = inspect.cleandoc(function.__doc__ or "").strip()
    if not 0 < len(description) <= MAX_DESCRIPTION_CHARS:
        message = f"needs a docstring of 1 to {MAX_DESCRIPTION_CHARS} characters: models read it"
        raise ValueError(message)
    return description


def _parameters(
    function: Callable[..., object],
) -> tuple[dict[str, tuple[Any, Any]], str | None]:
    """Type and default of each argument, and the name of the context parameter if there is one."""
    hints = typing.get_type_hints(function, include_extras=True)
    arguments: dict[str, tuple[Any, Any]] = {}
    context_parameter = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            message = f"parameter {parameter.name!r} must be one that is passed by name"
            raise ValueError(message)
        if parameter.name not in hints:
            message = f"parameter {parameter.name!r} needs a type annotation"
            raise ValueError(message)
        if hints[parameter.name] is ToolContext:
            context_parameter = parameter.name
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        arguments[parameter.name] = (hints[parameter.name], default)
    return arguments, context_parameter


def _arguments_model(
    name: str, arguments: Mapping[str, tuple[Any, Any]]
) -> type[pydantic.BaseModel]:
    """The model. Its fields have a prefix, so that an argument may have any name, even `schema`."""
    fields: dict[str, Any] = {
        _FIELD_PREFIX + argument: (Annotated[hint, pydantic.Field(alias=argument)], default)
        for argument, (hint, default) in arguments.items()
    }
    config = pydantic.ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)
    return pydantic.create_model(name, __config__=config, **fields)


class _UntitledJsonSchema(pydantic.json_schema.GenerateJsonSchema):
    """Titles repeat the names of fields, and models pay for each token."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - the base's signature
        return False


def _schema_json(model: type[pydantic.BaseModel]) -> str:
    schema = model.model_json_schema(schema_generator=_UntitledJsonSchema)
    schema.pop("title", None)
    schema["$schema"] = SCHEMA_DIALECT
    return canonical_json(schema).decode()
