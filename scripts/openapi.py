"""Renders docs/openapi.yaml: the REST form of every public RPC as an OpenAPI 3.1 document.

The contracts say it all: the HTTP annotation gives path, parameters and body, the messages give the
schemas, the method option the limits, the comments the descriptions. A resource name in a path,
`{name=runs/*}`, becomes `/runs/{run}`, since OpenAPI's parameters hold no slash. Why this is not
left to a generator: docs/adr/0013.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import yaml
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from remit.api.options.v1 import options_pb2
from remit.rpc.contracts import HttpBinding, MethodContract, all_contracts
from remit.rpc.sse import resumes_by_id
from scripts import openapi_errors
from scripts.openapi_schemas import Components, Schema, comments, held, is_nested, message_of
from scripts.protos import ROOT

HEAD: Final = "# Rendered from protos/ by `make golden`; not edited.\n"
INFO: Final = """\
Every public RPC of Remit as HTTP and JSON, through the gateway's edge; docs/REST.md shows it at
work.

- JSON is protobuf's: names in camelCase, 64-bit integers and enums as strings, bytes in base64.
  Money is in nano-USD.
- What a request leaves out has its default (empty, 0, false); unknown fields and parameters are
  refused. An answer holds defaults too; what is absent there is not set.
- An error is a `Status` with an `ErrorInfo`, whose reason docs/ERRORS.md explains.
- Where the request has a `requestId`, the same id and body get the same answer: repeat what failed
  without an answer. The same id with another body gets 409.
- `x-remit` states the contract of each operation: permission, deadline, sizes in bytes, calls in
  flight per replica. `x-sensitive` marks what is never logged.
- A stream is server-sent events: each has the JSON of one response message as its `data`, and its
  sequence as `id` where the stream can be resumed; send the last one as `Last-Event-ID` to go on
  behind it. `event: end` closes a whole stream, `event: error` carries the `Status` of one that
  failed after its start. Comments are heartbeats."""
_VARIABLE: Final = re.compile(r"\{(?P<field>[a-z_.]+)=(?P<pattern>[^}]+)\}")
_SEGMENT: Final = "[^/]+"
_MANY_SEGMENTS: Final = ".+"


@dataclass(frozen=True)
class Variable:
    """A field that the path holds: `{name=runs/*}` is the field `name` as `runs/{run}`."""

    field: str
    template: str
    parameters: tuple[tuple[str, str], ...]
    """Name and pattern of each parameter of the template."""


@dataclass(frozen=True)
class Operation:
    """One RPC and everything about it that the document needs."""

    contract: MethodContract
    method: MethodDescriptor
    binding: HttpBinding
    variables: tuple[Variable, ...]

    @property
    def path(self) -> str:
        """Its path as OpenAPI writes it."""
        templates = {variable.field: variable.template for variable in self.variables}
        return _VARIABLE.sub(lambda found: templates[found["field"]], self.binding.path)

    @property
    def bound(self) -> frozenset[str]:
        """Dotted paths of the request's fields that the path holds."""
        return frozenset(variable.field for variable in self.variables)


def page() -> str:
    """Return the text of docs/openapi.yaml."""
    whole = json.loads(json.dumps(document()))  # What is shared is written in full, not by anchors.
    return HEAD + yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def document() -> Schema:
    """Return the document."""
    asked: set[str] = set()
    for operation in operations():
        held(operation.method.input_type, asked)
    known = Components(comments(), asked)
    known.schemas.update(openapi_errors.schemas())
    paths: dict[str, Schema] = {}
    for operation in operations():
        verb = operation.binding.verb.lower()
        paths.setdefault(operation.path, {})[verb] = rendered(operation, known)
    return {
        "openapi": "3.1.0",
        "info": info(),
        "servers": [{"url": "http://127.0.0.1:8080", "description": "`remit up` on this machine."}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "tags": tags(known),
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": security(),
            "responses": openapi_errors.components(),
            "schemas": dict(sorted(known.schemas.items())),
        },
    }


def info() -> Schema:
    """Return what the document is about."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {
        "title": "Remit",
        "version": project["version"],
        "summary": project["description"],
        "description": INFO,
        "license": {"name": project["license"], "identifier": project["license"]},
    }


def security() -> Schema:
    """Return the two places for an API key."""
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "apiKey": {
            "type": "apiKey",
            "in": "header",
            "name": "x-api-key",
            "description": "An API key.",
        },
    }


def tags(known: Components) -> list[Schema]:
    """Return a tag for each service."""
    services = {op.method.containing_service.full_name for op in operations()}
    return [
        {"name": name.rsplit(".", 1)[1], "description": known.comments[name]}
        for name in sorted(services)
    ]


def operations() -> Iterator[Operation]:
    """Yield every RPC with a REST form, by path."""
    pool = descriptor_pool.Default()
    for path, contract in all_contracts().items():
        if contract.http is not None:
            method = pool.FindMethodByName(path[1:].replace("/", "."))
            yield Operation(contract, method, contract.http, tuple(variables(contract.http)))


def variables(binding: HttpBinding) -> Iterator[Variable]:
    """Yield the variables of a path."""
    for found in _VARIABLE.finditer(binding.path):
        yield variable(found["field"], found["pattern"])


def variable(name: str, pattern: str) -> Variable:
    """Return a variable: each `*` is named after the collection before it, `**` after the field."""
    parts, parameters, collection = [], [], name
    for part in pattern.split("/"):
        if "*" not in part:
            parts.append(part)
            collection = part.removesuffix("s")
            continue
        parameters.append((collection, _MANY_SEGMENTS if part == "**" else _SEGMENT))
        parts.append(f"{{{collection}}}")
    return Variable(name, "/".join(parts), tuple(parameters))


def rendered(operation: Operation, known: Components) -> Schema:
    """Return the operation as the document has it."""
    method, contract = operation.method, operation.contract
    service = method.containing_service.name
    comment = known.comments[method.full_name]
    parameters = list(all_parameters(operation, known))
    return {
        "operationId": f"{service}_{method.name}",
        "tags": [service],
        "summary": comment.split(". ")[0].removesuffix("."),
        "description": comment,
        **({"parameters": parameters} if parameters else {}),
        **body(operation, known),
        "responses": {
            "200": success(operation, known),
            **openapi_errors.answers(contract),
        },
        "x-remit": limits(contract),
    }


def all_parameters(operation: Operation, known: Components) -> Iterator[Schema]:
    """Yield the parameters in path, query and header."""
    for part in operation.variables:
        yield from path_parameters(operation.method.input_type, part, known)
    if operation.binding.body != "*":
        taken = operation.bound | {operation.binding.body}
        yield from query_parameters(operation.method.input_type, taken, known)
    if operation.contract.stream and resumes_by_id(operation.contract):
        yield last_event_id(operation.contract.stream.resume)


def path_parameters(request: Descriptor, part: Variable, known: Components) -> Iterator[Schema]:
    """Yield the parameters of one variable."""
    field = field_at(request, part.field)
    meaning = known.comments[field.full_name]
    for name, pattern in part.parameters:
        slashes = "; may hold slashes, sent as they are" if pattern == _MANY_SEGMENTS else ""
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"Of `{part.field}`, `{part.template}`{slashes}. {meaning}",
            "schema": {"type": "string", "pattern": f"^{pattern}$"},
        }


def query_parameters(
    message: Descriptor, taken: Collection[str], known: Components, within: str = ""
) -> Iterator[Schema]:
    """Yield a parameter for each field that neither path nor body holds, nested ones by dots."""
    for field in message.fields:
        if within + field.name in taken:
            continue
        name = camel(within) + field.json_name
        if is_nested(field):
            yield from query_parameters(message_of(field), taken, known, f"{within}{field.name}.")
            continue
        schema = known.field(field)
        description = schema.pop("description")
        yield {"name": name, "in": "query", "description": description, "schema": schema}


def last_event_id(resume: str) -> Schema:
    """Return the header that resumes a stream."""
    return {
        "name": "Last-Event-ID",
        "in": "header",
        "description": f"Id of the last event that arrived; stands for `{camel(resume)}`.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    }


def body(operation: Operation, known: Components) -> Schema:
    """Return the request body; empty where the RPC has none."""
    request, name = operation.method.input_type, operation.binding.body
    if not name:
        return {}
    prefix = "" if name == "*" else f"{name}."
    message = request if name == "*" else message_of(request.fields_by_name[name])
    bound = {path.removeprefix(prefix) for path in operation.bound if path.startswith(prefix)}
    schema = known.message(message, bound) if bound else known.reference(message)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def success(operation: Operation, known: Components) -> Schema:
    """Return the answer: the response message, or a stream of them."""
    schema = known.reference(operation.method.output_type)
    description = known.comments[operation.method.output_type.full_name]
    if operation.contract.stream is None:
        return {"description": description, "content": {"application/json": {"schema": schema}}}
    events = {"schema": {"type": "string"}, "x-event-data": schema}
    return {"description": description, "content": {"text/event-stream": events}}


def limits(contract: MethodContract) -> Schema:
    """Return what the contract states besides the form of the messages."""
    stated: Schema = {
        "grpcMethod": contract.path,
        "permission": contract.permission,
        "idempotency": options_pb2.Idempotency.Name(contract.idempotency),
        "idempotencyKey": contract.key or None,
        "deadlineSeconds": _short(contract.deadline_s),
        "maxRequestBytes": contract.max_request_bytes,
        "maxResponseBytes": contract.max_response_bytes,
        "maxInFlightPerReplica": contract.max_in_flight,
    }
    if contract.stream is not None:
        stated["stream"] = {
            "idleSeconds": _short(contract.stream.idle_s),
            "maxLifeSeconds": _short(contract.stream.max_life_s),
            "resumeBy": contract.stream.resume or None,
        }
    return {name: value for name, value in stated.items() if value is not None}


def field_at(message: Descriptor, path: str) -> FieldDescriptor:
    """Return the field that a dotted path names."""
    head, _, rest = path.partition(".")
    field = message.fields_by_name[head]
    return field_at(message_of(field), rest) if rest else field


def camel(path: str) -> str:
    """Return a dotted path of proto names as JSON names it."""
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), path)


def _short(seconds: float) -> float | int:
    return int(seconds) if seconds == int(seconds) else seconds


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
