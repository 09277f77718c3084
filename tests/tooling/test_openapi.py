"""The OpenAPI document is valid, says what the contracts say, and leaves nothing out.

That the gateway answers as it says is shown by tests/clients/test_openapi.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2
from openapi_spec_validator import OpenAPIV31SpecValidator

from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.api.options.v1 import options_pb2
from remit.rpc.contracts import MethodContract, all_contracts
from scripts import openapi, openapi_errors
from scripts.protos import ROOT
from tests.clients.schemas import Document
from tests.golden import assert_golden

PUBLIC = {path: c for path, c in all_contracts().items() if c.is_public}
WITH_BODY = sorted(path for path, c in PUBLIC.items() if c.http and c.http.body)
DETAILS = {"BadRequest", "ErrorInfo", "QuotaFailure", "RetryInfo"}
SAMPLES: dict[int, object] = {
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
    FieldDescriptor.CPPTYPE_ENUM: 1,
    FieldDescriptor.CPPTYPE_INT32: -7,
    FieldDescriptor.CPPTYPE_INT64: -(2**60),
}


def method_of(contract: MethodContract) -> MethodDescriptor:
    return descriptor_pool.Default().FindMethodByName(contract.path[1:].replace("/", "."))


def within(found: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    """A message of ours and every message of ours that it holds, however deep."""
    if found.full_name in seen or not found.full_name.startswith("remit."):
        return
    seen.add(found.full_name)
    if not found.GetOptions().map_entry:
        yield found
    for field in found.fields:
        if field.message_type is not None:
            yield from within(field.message_type, seen)


def answers() -> dict[str, Descriptor]:
    """What public RPCs answer with."""
    seen: set[str] = set()
    found = [each for c in PUBLIC.values() for each in within(method_of(c).output_type, seen)]
    return {message.name: message for message in found}


ANSWERS = answers()


@pytest.fixture(scope="module")
def document() -> Document:
    return Document(yaml.safe_load(openapi.page()))


@pytest.fixture(params=sorted(PUBLIC))
def contract(request: pytest.FixtureRequest) -> MethodContract:
    return PUBLIC[request.param]


@pytest.fixture(params=sorted(ANSWERS))
def answer(request: pytest.FixtureRequest) -> Descriptor:
    return ANSWERS[request.param]


@pytest.mark.golden
def test_the_document_is_current() -> None:
    assert_golden(ROOT / "docs/openapi.yaml", openapi.page())


def test_the_document_is_openapi(document: Document) -> None:
    OpenAPIV31SpecValidator(document.content).validate()
    assert document.dangling() == []


def test_every_public_rpc_is_there_and_no_other(document: Document) -> None:
    described = [operation["x-remit"]["grpcMethod"] for _, _, operation in document.operations()]
    assert sorted(described) == sorted(PUBLIC)


def test_an_operation_stands_where_its_annotation_says(
    document: Document, contract: MethodContract
) -> None:
    assert contract.http is not None
    path, verb, operation = document.operation(contract.path)
    assert verb == contract.http.verb.lower()
    assert "\n" not in operation["summary"]
    assert operation["description"].startswith(operation["summary"])
    # Each variable matches what the annotation's pattern matches: same path once both are filled.
    stated = re.sub(r"\{[a-z_.]+=([^}]*)\}", r"\1", contract.http.path).replace("**", "*")
    assert re.sub(r"\{\w+\}", "*", path) == stated
    named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
    assert named == set(re.findall(r"\{(\w+)\}", path))


def test_every_field_of_a_request_has_one_place(
    document: Document, contract: MethodContract
) -> None:
    assert contract.http is not None
    _, _, operation = document.operation(contract.path)
    in_path = set(re.findall(r"\{([a-z_.]+)=", contract.http.path))
    in_query = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
    in_body = properties(document, operation)
    for name, field in fields_of(method_of(contract).input_type, contract.http.body):
        places = [name in in_path, field.json_name in in_query, field.json_name in in_body]
        assert places.count(True) == 1, f"{contract.path}: {name} {places}"


def fields_of(request: Descriptor, body: str) -> Iterator[tuple[str, FieldDescriptor]]:
    """Fields of the request by dotted path; where the body is one of them, its fields."""
    for field in request.fields:
        if field.name == body:
            assert field.message_type is not None
            for inner in field.message_type.fields:
                yield f"{body}.{inner.name}", inner
        else:
            yield field.name, field


def properties(document: Document, operation: dict[str, Any]) -> set[str]:
    if "requestBody" not in operation:
        return set()
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    return set((document.schemas[name] if name else schema)["properties"])


@pytest.mark.parametrize("path", WITH_BODY)
def test_a_request_in_full_fits_its_schema(document: Document, path: str) -> None:
    contract = PUBLIC[path]
    assert contract.http is not None
    _, _, operation = document.operation(path)
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    bound = re.findall(r"\{([a-z_.]+)=", contract.http.path)
    for filled in samples(method_of(contract).input_type):
        for held in bound:
            clear(filled, held)
        whole = json_format.MessageToDict(filled)
        content = whole if contract.http.body == "*" else whole[contract.http.body]
        assert document.faults(content, schema) == []


def test_an_answer_in_full_fits_its_schema(document: Document, answer: Descriptor) -> None:
    told = set()
    for filled in samples(answer):
        content = json_format.MessageToDict(filled, always_print_fields_with_no_presence=True)
        assert document.faults(content, {"$ref": f"#/components/schemas/{answer.name}"}) == []
        told |= set(content)
    assert told == set(document.schemas[answer.name].get("properties", {}))


def test_defaults_fit_too(document: Document, answer: Descriptor) -> None:
    empty = message_factory.GetMessageClass(answer)()
    content = json_format.MessageToDict(empty, always_print_fields_with_no_presence=True)
    assert document.faults(content, {"$ref": f"#/components/schemas/{answer.name}"}) == []


def test_two_members_of_a_oneof_do_not_fit(document: Document) -> None:
    schema = {"$ref": "#/components/schemas/RunEvent"}
    common = {"run": "", "sequence": "1", "percent": 0, "waiting": {}}
    assert document.faults(common, schema) == []
    assert document.faults(common | {"ended": {}}, schema)


@pytest.mark.parametrize(
    "content",
    [
        {"sequence": 1},
        {"sequence": "one"},
        {"eventTime": "yesterday"},
        {"percent": "1"},
        {"waiting": []},
        {"event_time": "2026-11-23T10:00:00Z"},
        {"waiting": {"retryTime": True}},
    ],
    ids=str,
)
def test_what_protobuf_would_not_write_does_not_fit(document: Document, content: Any) -> None:
    whole = {"run": "", "sequence": "1", "percent": 0}
    schema = {"$ref": "#/components/schemas/RunEvent"}
    assert document.faults(whole, schema) == []
    assert document.faults(whole | content, schema)


def test_sensitive_fields_are_marked(document: Document, answer: Descriptor) -> None:
    described = document.schemas[answer.name].get("properties", {})
    for field in answer.fields:
        marked = field.GetOptions().Extensions[options_pb2.sensitive]
        assert described[field.json_name].get("x-sensitive", False) == marked


def test_everything_is_described(document: Document) -> None:
    bare = [
        f"{name}.{field}"
        for name, schema in document.schemas.items()
        if name not in DETAILS  # Google's: described as wholes
        for field, stated in schema.get("properties", {}).items()
        if not stated.get("description")
    ]
    assert bare == []
    assert all(schema["description"] for schema in document.schemas.values())


def test_limits_are_the_contracts(document: Document, contract: MethodContract) -> None:
    _, _, operation = document.operation(contract.path)
    stated = operation["x-remit"]
    assert stated["deadlineSeconds"] == contract.deadline_s
    assert stated["maxRequestBytes"] == contract.max_request_bytes
    assert stated["maxResponseBytes"] == contract.max_response_bytes
    assert stated["maxInFlightPerReplica"] == contract.max_in_flight
    assert stated["permission"] == contract.permission
    assert stated.get("idempotencyKey", "") == contract.key
    streams = "text/event-stream" in operation["responses"]["200"]["content"]
    assert streams == ("stream" in stated) == (contract.stream is not None)


def test_every_canonical_code_has_an_http_code(document: Document) -> None:
    assert set(openapi_errors.HTTP_CODES) == set(code_pb2.Code.keys()) - {"OK"}
    everywhere = {code for _, _, each in document.operations() for code in each["responses"]}
    assert everywhere == {str(code) for code in openapi_errors.HTTP_CODES.values()} | {
        "200",
        "413",  # HTTP's own, from the gateway
        "default",
    }


def test_every_reason_stands_at_one_http_code(document: Document) -> None:
    responses = document.content["components"]["responses"].values()
    told = "\n".join(response["description"] for response in responses)
    for name in ErrorReason.keys()[1:]:
        reason = name.removeprefix("ERROR_REASON_")
        assert told.count(f"- `{reason}`:") == 1, reason


def samples(found: Descriptor) -> Iterator[Message]:
    """Messages with every field set, one for each member of a oneof."""
    choices = [o for o in found.oneofs if not o.name.startswith("_")]
    members = [field.name for field in choices[0].fields] if choices else [""]
    for member in members:
        yield sample(found, member)


def sample(found: Descriptor, member: str) -> Message:
    made = message_factory.GetMessageClass(found)()
    chosen: set[str] = set()
    for field in found.fields:
        of = field.containing_oneof
        if of is not None and not of.name.startswith("_"):
            if field.name != member and (member or of.name in chosen):
                continue
            chosen.add(of.name)
        put(made, field)
    return made


def put(made: Message, field: FieldDescriptor) -> None:
    kept: Any = getattr(made, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kept["key"] = "value"
    elif field.message_type is not None:
        inner = well_known(field.message_type) or sample(field.message_type, "")
        (kept.add() if field.is_repeated else kept).CopyFrom(inner)
    elif field.is_repeated:
        kept.append(scalar(field))
    else:
        setattr(made, field.name, scalar(field))


def scalar(field: FieldDescriptor) -> object:
    text = b"\x00\xff" if field.type == FieldDescriptor.TYPE_BYTES else "text"
    return SAMPLES.get(field.cpp_type, text)


def well_known(found: Descriptor) -> Message | None:
    text = {
        "google.protobuf.Timestamp": '"2026-11-23T10:00:00.5Z"',
        "google.protobuf.Duration": '"-1.5s"',
        "google.protobuf.Struct": '{"a": [1, null, {"b": true}]}',
        "google.rpc.Status": '{"code": 5, "message": "no such run", "details": []}',
    }.get(found.full_name)
    if text is None:
        return None
    return json_format.Parse(text, message_factory.GetMessageClass(found)())


def clear(made: Any, path: str) -> None:
    *outer, last = path.split(".")
    for name in outer:
        made = getattr(made, name)
    made.ClearField(last)
