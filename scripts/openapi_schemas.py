"""Messages and enums of the contracts as JSON Schemas, by the JSON form of protobuf.

The form is that of https://protobuf.dev/programming-guides/json/ as the gateway writes it: names in
camelCase, 64-bit integers and enums as strings, bytes in base64. A comment of the contract becomes
the description, a field marked `sensitive` carries `x-sensitive`. A oneof becomes a choice between
its members and none of them. An answer always holds the fields that have no presence, since the
gateway prints defaults.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import descriptor, descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from remit.api.options.v1 import options_pb2
from scripts.reference import comments_of, compiled

Schema = dict[str, Any]

_INT32: Final[Schema] = {"type": "integer", "format": "int32"}
_INT64: Final[Schema] = {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}
_SCALARS: Final[Mapping[int, Schema]] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
}
"""The scalars that the contracts use; another one fails until its JSON form is stated here."""

_WELL_KNOWN: Final[Mapping[str, Schema]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {
        "type": "string",
        "format": "duration-seconds",
        "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$",
        "examples": ["30s"],
    },
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.rpc.Status": {"$ref": "#/components/schemas/Status"},
}
"""Messages of Google's whose JSON form is special; `Status` is stated in openapi_errors.py."""

# Numbers of the lists within the descriptors' descriptors.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6  # of FileDescriptorProto
_FIELDS, _NESTED, _NESTED_ENUMS = 2, 3, 4  # of DescriptorProto
_VALUES, _METHODS = 2, 2  # of EnumDescriptorProto, of ServiceDescriptorProto

Path = tuple[int, ...]


@dataclass
class Components:
    """The schemas that a document needs: what is asked for joins them, with all it refers to."""

    comments: Mapping[str, str]
    asked: Collection[str]
    """Full names of the messages that requests hold: nothing of theirs is required."""
    schemas: dict[str, Schema] = field(default_factory=dict)
    _owners: dict[str, str] = field(default_factory=dict)

    def reference(self, found: Descriptor | EnumDescriptor) -> Schema:
        """Return a reference to the schema of a message or enum, which joins the components.

        Raises:
            ValueError: another message of ours has the same short name.

        """
        name = _name_of(found)
        if self._owners.setdefault(name, found.full_name) != found.full_name:
            message = f"{found.full_name} and {self._owners[name]} share a name"
            raise ValueError(message)
        if name not in self.schemas:
            self.schemas[name] = {}  # A message that holds itself refers to this entry.
            self.schemas[name] = (
                self._enum(found) if isinstance(found, EnumDescriptor) else self.message(found)
            )
        return {"$ref": f"#/components/schemas/{name}"}

    def message(self, found: Descriptor, without: Collection[str] = ()) -> Schema:
        """Return the schema of a message, less the fields that the path holds."""
        fields = [each for each in found.fields if each.name not in without]
        schema: Schema = {"type": "object", "description": self.comments[found.full_name]}
        if fields:
            schema["properties"] = {each.json_name: self.field(each) for each in fields}
        always = [each.json_name for each in fields if not each.has_presence]
        if always and found.full_name not in self.asked:
            schema["required"] = always
        choices = [self._choice(each) for each in _oneofs(found)]
        if choices:
            schema |= choices[0] if len(choices) == 1 else {"allOf": choices}
        return schema

    def field(self, found: FieldDescriptor) -> Schema:
        """Return the schema of a field with its description."""
        schema = self._values(found) | {"description": self.comments[found.full_name]}
        if found.GetOptions().Extensions[options_pb2.sensitive]:
            schema["x-sensitive"] = True
        return schema

    def _values(self, found: FieldDescriptor) -> Schema:
        if is_map(found):
            value = message_of(found).fields_by_name["value"]
            return {"type": "object", "additionalProperties": self._value(value)}
        if found.is_repeated:
            return {"type": "array", "items": self._value(found)}
        return self._value(found)

    def _value(self, found: FieldDescriptor) -> Schema:
        if found.enum_type is not None:
            return self.reference(found.enum_type)
        if found.message_type is None:
            return dict(_SCALARS[found.type])
        special = _WELL_KNOWN.get(found.message_type.full_name)
        return dict(special) if special else self.reference(found.message_type)

    def _enum(self, found: EnumDescriptor) -> Schema:
        meanings = [f"- `{v.name}`: {self._comment_of_value(found, v.name)}" for v in found.values]
        return {
            "type": "string",
            "description": "\n".join([self.comments[found.full_name], "", *meanings]),
            "enum": [value.name for value in found.values],
        }

    def _comment_of_value(self, found: EnumDescriptor, name: str) -> str:
        return self.comments[f"{found.full_name}.{name}"]

    def _choice(self, found: descriptor.OneofDescriptor) -> Schema:
        members = [each.json_name for each in found.fields]
        one: list[Schema] = [{"title": name, "required": [name]} for name in members]
        none = {"title": "none", "not": {"anyOf": [{"required": [name]} for name in members]}}
        return {"oneOf": [*one, none]}


def is_map(found: FieldDescriptor) -> bool:
    """Return whether the field is a map."""
    return bool(found.message_type and found.message_type.GetOptions().map_entry)


def is_nested(found: FieldDescriptor) -> bool:
    """Return whether the field holds a message whose fields are named by dots in a query."""
    return found.message_type is not None and found.message_type.full_name not in _WELL_KNOWN


def _name_of(found: Descriptor | EnumDescriptor) -> str:
    """Its short name, after that of the message in which it stands: several have a `State`."""
    outer = found.containing_type
    return found.name if outer is None else f"{_name_of(outer)}{found.name}"


def message_of(found: FieldDescriptor) -> Descriptor:
    """Return the message that a field holds.

    Raises:
        ValueError: it holds a scalar or an enum.

    """
    if found.message_type is None:
        message = f"{found.full_name} holds no message"
        raise ValueError(message)
    return found.message_type


def held(found: Descriptor, seen: set[str]) -> set[str]:
    """Return the full names of a message and of all that it holds, added to those seen."""
    if found.full_name not in seen:
        seen.add(found.full_name)
        for each in found.fields:
            if each.message_type is not None:
                held(each.message_type, seen)
    return seen


def _oneofs(found: Descriptor) -> list[descriptor.OneofDescriptor]:
    # protoc makes a oneof of every `optional` field, whose name begins with an underscore.
    return [each for each in found.oneofs if not each.name.startswith("_")]


def comments() -> dict[str, str]:
    """Return the comment of everything in the contracts by its full name; a value's by its enum."""
    return {
        name: told[path]
        for file in compiled()
        for told in [comments_of(file)]
        for name, path in _paths(file)
        if path in told
    }


def _paths(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, Path]]:
    """Yield everything that a file declares with its path (see descriptor.proto, Location)."""
    for index, service in enumerate(file.service):
        for at, method in enumerate(service.method):
            yield (
                f"{file.package}.{service.name}.{method.name}",
                (_SERVICES, index, _METHODS, at),
            )
        yield f"{file.package}.{service.name}", (_SERVICES, index)
    for index, enum in enumerate(file.enum_type):
        yield from _enum_paths(enum, file.package, (_ENUMS, index))
    for index, message in enumerate(file.message_type):
        yield from _message_paths(message, file.package, (_MESSAGES, index))


def _message_paths(
    message: descriptor_pb2.DescriptorProto, within: str, path: Path
) -> Iterator[tuple[str, Path]]:
    name = f"{within}.{message.name}"
    yield name, path
    for index, each in enumerate(message.field):
        yield f"{name}.{each.name}", (*path, _FIELDS, index)
    for index, nested in enumerate(message.nested_type):
        yield from _message_paths(nested, name, (*path, _NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield from _enum_paths(enum, name, (*path, _NESTED_ENUMS, index))


def _enum_paths(
    enum: descriptor_pb2.EnumDescriptorProto, within: str, path: Path
) -> Iterator[tuple[str, Path]]:
    name = f"{within}.{enum.name}"
    yield name, path
    for index, value in enumerate(enum.value):
        yield f"{name}.{value.name}", (*path, _VALUES, index)
