"""Every RPC states its whole contract, every ErrorReason says what to do, names keep to the form.

One walk over the descriptors: a new RPC or reason is held to this without a new test.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from google.protobuf import descriptor
from google.rpc import code_pb2

from remit.api.options.v1 import options_pb2 as options
from remit.rpc.contracts import SERVICE_MODULES, MethodContract, all_contracts
from scripts import reference
from scripts.protos import contracts

UNAUTHENTICATED_BY_REMIT = {options.AUTH_SERVICE, options.AUTH_NONE}
NEVER_IN_A_MESSAGE = {"google.protobuf.Any"}


def methods() -> Iterator[descriptor.MethodDescriptor]:
    for module in SERVICE_MODULES:
        file: descriptor.FileDescriptor = importlib.import_module(module).DESCRIPTOR
        for service in file.services_by_name.values():
            yield from service.methods


def path_of(method: descriptor.MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def field_at(message: descriptor.Descriptor, path: str) -> descriptor.FieldDescriptor | None:
    """Return the field that a dotted path names, going through repeated fields as well."""
    head, _, rest = path.partition(".")
    field = message.fields_by_name.get(head)
    if field is None or not rest:
        return field
    return field_at(field.message_type, rest) if field.message_type else None


METHODS = {path_of(method): method for method in methods()}


@pytest.fixture(params=sorted(METHODS))
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def method(path: str) -> descriptor.MethodDescriptor:
    return METHODS[path]


@pytest.fixture
def contract(path: str) -> MethodContract:
    return all_contracts()[path]


def test_the_list_of_service_modules_is_what_lies_on_disk() -> None:
    on_disk = {
        f"{file.with_suffix('').as_posix().replace('/', '.')}_pb2"
        for file in contracts()
        if file.name.endswith("_service.proto")
    }
    assert set(SERVICE_MODULES) == on_disk


def test_every_choice_is_made(contract: MethodContract) -> None:
    choices = (contract.idempotency, contract.phase, contract.auth, contract.audit)
    assert all(choices), "an enum of the contract is left unspecified"
    assert contract.callers
    assert options.CALLER_UNSPECIFIED not in contract.callers


def test_every_bound_is_stated(contract: MethodContract) -> None:
    assert contract.max_request_bytes > 0
    assert contract.max_response_bytes > 0
    assert contract.max_in_flight > 0
    assert contract.deadline_s > 0 or contract.stream is not None


def test_a_stream_states_its_bounds_and_only_a_stream(
    method: descriptor.MethodDescriptor, contract: MethodContract
) -> None:
    assert (contract.stream is not None) == method.server_streaming
    assert not method.client_streaming, "no client stream: its bounds have no place in a contract"
    if contract.stream is not None:
        assert 0 < contract.stream.idle_s <= contract.stream.max_life_s


def test_a_stream_to_clients_outlasts_its_permission_by_a_bound(contract: MethodContract) -> None:
    """Effects ask at the gate, with what they do; everything else that is streamed asks here."""
    if contract.stream is None:
        return
    if contract.is_public and not contract.is_effect:
        assert 0 < contract.stream.permission_bound_s <= contract.stream.idle_s
        assert contract.auth == options.AUTH_REMIT
        assert contract.permission
        assert contract.stream.resume, "it may end at any time"
    else:
        assert contract.stream.permission_bound_s == 0


def test_a_service_with_bounded_streams_may_ask_policy(contract: MethodContract) -> None:
    if contract.stream is not None and contract.stream.permission_bound_s:
        asked = all_contracts()["/remit.api.policy.v1.PolicyService/CheckPermission"]
        assert options.Caller.Value(f"CALLER_{contract.area.upper()}") in asked.callers


def test_an_attempt_is_shorter_than_the_call_and_effects_have_none(
    contract: MethodContract,
) -> None:
    if contract.is_effect or contract.stream is not None:
        assert contract.attempt_timeout_s is None
    elif contract.attempt_timeout_s is not None:
        assert 0 < contract.attempt_timeout_s <= contract.deadline_s


def test_a_key_is_stated_exactly_where_the_key_dedupes(contract: MethodContract) -> None:
    keyed = contract.idempotency == options.IDEMPOTENCY_KEYED
    assert bool(contract.key) == keyed


def test_an_effect_is_keyed(contract: MethodContract) -> None:
    if contract.is_effect:
        assert contract.idempotency == options.IDEMPOTENCY_KEYED


def test_paths_name_fields_of_the_request(
    method: descriptor.MethodDescriptor, contract: MethodContract
) -> None:
    resume = contract.stream.resume if contract.stream else ""
    for stated in filter(None, (contract.key, contract.resource, resume)):
        assert field_at(method.input_type, stated) is not None, stated


def test_a_permission_is_stated_unless_the_caller_is_a_service(contract: MethodContract) -> None:
    if not contract.permission:
        assert contract.auth in UNAUTHENTICATED_BY_REMIT


def test_a_public_rpc_asks_for_a_remit_or_a_credential(contract: MethodContract) -> None:
    if contract.is_public:
        assert contract.auth not in UNAUTHENTICATED_BY_REMIT


def test_messages_are_named_after_the_rpc(method: descriptor.MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


def test_a_public_list_is_paged(
    method: descriptor.MethodDescriptor, contract: MethodContract
) -> None:
    if method.name.startswith("List") and contract.is_public:
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
        assert "next_page_token" in method.output_type.fields_by_name


def test_money_is_an_integer_and_nothing_is_any() -> None:
    for message in messages():
        for field in message.fields:
            where = field.full_name
            if field.name.endswith("_nanos"):
                assert field.type == descriptor.FieldDescriptor.TYPE_INT64, where
            assert field.message_type is None or (
                field.message_type.full_name not in NEVER_IN_A_MESSAGE
            ), where


def messages() -> Iterator[descriptor.Descriptor]:
    """Yield every message of ours, nested ones included."""
    for file in contracts():
        module = f"{file.with_suffix('').as_posix().replace('/', '.')}_pb2"
        pending = list(importlib.import_module(module).DESCRIPTOR.message_types_by_name.values())
        while pending:
            message = pending.pop()
            pending += message.nested_types
            yield message


@pytest.mark.parametrize("reason", list(reference.reasons()), ids=lambda reason: reason.name)
def test_a_reason_has_code_example_and_next_step(reason: reference.Reason) -> None:
    assert reason.contract.code != code_pb2.OK
    assert reason.contract.example
    assert reason.contract.next_step.endswith(".")
    assert reason.comment.endswith(".")
