"""docs/openapi.yaml as a client reads it: its operations, and whether an answer fits its schema.

An answer is judged more strictly than the document asks: a name that the document does not know is
a fault here, since nothing may reach clients that is not in the document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]

Schema = dict[str, Any]

_VERBS = ("get", "post")


class Document:
    """An OpenAPI document."""

    def __init__(self, content: Schema) -> None:
        self.content = content
        self._closed = _closed(content)

    @property
    def schemas(self) -> dict[str, Schema]:
        """The schemas of the components, by name."""
        found: dict[str, Schema] = self.content["components"]["schemas"]
        return found

    def operations(self) -> Iterator[tuple[str, str, Schema]]:
        """Path, verb and content of every operation."""
        for path, item in self.content["paths"].items():
            for verb in _VERBS:
                if verb in item:
                    yield path, verb, item[verb]

    def operation(self, method: str) -> tuple[str, str, Schema]:
        """The one operation of an RPC, by `/package.Service/Method`."""
        (found,) = (
            each for each in self.operations() if each[2]["x-remit"]["grpcMethod"] == method
        )
        return found

    def faults(self, content: object, schema: Schema) -> list[str]:
        """What is wrong with a JSON value by a schema of the document; empty where it fits."""
        whole = self._closed | _closed(schema)
        validator = jsonschema.Draft202012Validator(
            whole, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]

    def answer_faults(self, method: str, status: int, content: object) -> list[str]:
        """What is wrong with the JSON answer of an RPC that came with an HTTP status."""
        _, _, operation = self.operation(method)
        response = operation["responses"].get(str(status)) or operation["responses"]["default"]
        if "$ref" in response:
            response = self.content["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
        return self.faults(content, response["content"]["application/json"]["schema"])

    def event_faults(self, method: str, content: object) -> list[str]:
        """What is wrong with the data of an event of a streaming RPC."""
        _, _, operation = self.operation(method)
        stream = operation["responses"]["200"]["content"]["text/event-stream"]
        return self.faults(content, stream["x-event-data"])

    def dangling(self) -> list[str]:
        """References that lead nowhere."""
        return [
            reference
            for reference in _references(self.content)
            if not _leads_somewhere(self.content, reference)
        ]


def _closed(schema: Any) -> Any:
    """The schema with no property allowed that it does not name."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _references(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        if isinstance(content.get("$ref"), str):
            yield content["$ref"]
        for value in content.values():
            yield from _references(value)
    elif isinstance(content, list):
        for value in content:
            yield from _references(value)


def _leads_somewhere(content: Any, reference: str) -> bool:
    for part in reference.removeprefix("#/").split("/"):
        if part not in content:
            return False
        content = content[part]
    return True
