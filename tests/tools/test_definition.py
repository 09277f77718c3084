"""From a signature to a tool: schema, digest, and what is refused at load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import Field

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import permission_pb2
from remit.rpc.errors import RemitError
from remit.tools import ToolContext, tool
from remit.tools.definition import MAX_TIMEOUT_S, SCHEMA_DIALECT, ToolDefinition, define
from remit.tools.service import to_message


@tool(permission_class="read", idempotent=True, timeout_s=3)
async def weather(
    context: ToolContext,
    city: Annotated[str, Field(min_length=1, description="Name of the city.")],
    day: date | None = None,
    schema: int = 3,
) -> dict[str, str]:
    """Tell the weather."""
    return {"city": city, "day": str(day), "schema": str(schema), "key": context.key}


def changed(definition: ToolDefinition, **declared: Any) -> bytes:
    """The digest of the same function under another declaration."""

    async def weather(
        city: Annotated[str, Field(min_length=1, description="Name of the city.")],
    ) -> None:
        """Tell the weather."""

    return define(tool(**declared)(weather)).digest


def test_a_definition_states_everything() -> None:
    definition = define(weather)
    assert definition.resource_name == "tools/weather"
    assert definition.description == "Tell the weather."
    assert definition.permission_class == permission_pb2.PERMISSION_CLASS_READ
    assert (definition.idempotent, definition.timeout_s, definition.blocking) == (True, 3, False)
    assert definition.context_parameter == "context"
    assert json.loads(definition.input_schema_json) == {
        "$schema": SCHEMA_DIALECT,
        "type": "object",
        "additionalProperties": False,
        "required": ["city"],
        "properties": {
            "city": {"type": "string", "minLength": 1, "description": "Name of the city."},
            "day": {
                "anyOf": [{"type": "string", "format": "date"}, {"type": "null"}],
                "default": None,
            },
            "schema": {"type": "integer", "default": 3},
        },
    }


async def test_a_declared_function_stays_a_function() -> None:
    assert weather.__name__ == "weather"


def test_the_digest_can_be_computed_from_the_message() -> None:
    message = to_message(define(weather))
    parts = {
        "name": message.name,
        "description": message.description,
        "input_schema_json": message.input_schema_json,
        "permission_class": permission_pb2.PermissionClass.Name(message.permission_class),
        "idempotent": message.idempotent,
    }
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert message.definition_digest == hashlib.sha256(canonical.encode()).digest()


def test_the_digest_changes_with_every_part() -> None:
    definition = define(weather)
    digests = {
        definition.digest,
        changed(definition, permission_class="read", idempotent=True),
        changed(definition, permission_class="write", idempotent=True),
        changed(definition, permission_class="read", idempotent=False),
        changed(definition, permission_class="read", idempotent=True, name="forecast"),
    }
    assert len(digests) == 5


def test_time_limits_are_no_part_of_the_digest() -> None:
    definition = define(weather)
    assert changed(definition, permission_class="read", timeout_s=1) == changed(
        definition, permission_class="read", timeout_s=2
    )


def unannotated(city) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Tell."""


def undocumented(city: str) -> None:
    pass


def variadic(*cities: str) -> None:
    """Tell."""


def open_ended(**cities: str) -> None:
    """Tell."""


def positional(city: str, /) -> None:
    """Tell."""


def unknown_type(city: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Tell."""


def no_schema(city: Callable[[], int]) -> None:
    """Tell."""


def fine(city: str) -> None:
    """Tell."""


@pytest.mark.parametrize(
    ("function", "declared", "fault"),
    [
        (unannotated, {}, "parameter 'city' needs a type annotation"),
        (undocumented, {}, "needs a docstring"),
        (variadic, {}, "parameter 'cities' must be one that is passed by name"),
        (open_ended, {}, "parameter 'cities' must be one that is passed by name"),
        (positional, {}, "parameter 'city' must be one that is passed by name"),
        (unknown_type, {}, "'Nowhere' is not defined"),
        (no_schema, {}, "Cannot generate a JsonSchema"),
        (fine, {"permission_class": "all"}, "must be one of none, read, write, execute"),
        (fine, {"timeout_s": 0}, "timeout_s 0 must be more than 0"),
        (fine, {"timeout_s": MAX_TIMEOUT_S + 1}, "at most 50"),
        (fine, {"name": "Weather Report"}, "must be 2 to 64 characters"),
        (fine, {"name": "a" * 65}, "must be 2 to 64 characters"),
    ],
)
def test_what_is_no_tool_is_named(
    function: Callable[..., object], declared: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RemitError) as caught:
        define(tool(**({"permission_class": "none"} | declared))(function))
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert f"{function.__module__}:{function.__name__}: " in caught.value.message
    assert fault in caught.value.message
