"""Every RPC that clients may call has a REST form, and no two of them are the same."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor import Descriptor

from remit.api.options.v1 import options_pb2
from remit.rpc.contracts import HttpBinding, MethodContract, all_contracts
from tests.contracts.test_method_contracts import METHODS, field_at

PUBLIC = {path: c for path, c in all_contracts().items() if c.is_public}
VARIABLE = re.compile(r"\{([a-z_.]+)(?:=([^}]*))?\}")


@pytest.fixture(params=sorted(PUBLIC))
def contract(request: pytest.FixtureRequest) -> MethodContract:
    return PUBLIC[request.param]


@pytest.fixture
def binding(contract: MethodContract) -> HttpBinding:
    assert contract.http is not None, "a public RPC needs a google.api.http annotation"
    return contract.http


def holds_sensitive(message: Descriptor) -> bool:
    """Whether a message of ours has a sensitive field, itself or below."""
    if not message.full_name.startswith("remit."):
        return False
    return any(
        field.GetOptions().Extensions[options_pb2.sensitive]
        or (field.message_type is not None and holds_sensitive(field.message_type))
        for field in message.fields
    )


def test_no_other_rpc_has_one() -> None:
    bound = {path for path, c in all_contracts().items() if c.http}
    assert bound == set(PUBLIC)


def test_a_path_is_below_the_version_and_its_variables_are_fields(
    contract: MethodContract, binding: HttpBinding
) -> None:
    request = METHODS[contract.path].input_type
    assert binding.path.startswith("/v1/")
    for name, _ in VARIABLE.findall(binding.path):
        assert field_at(request, name) is not None, f"{contract.path} has no field {name}"


def test_reads_are_gets_unless_sensitive_and_changes_are_posts(
    contract: MethodContract, binding: HttpBinding
) -> None:
    # What is sensitive, or many messages, has no place in an address: a read that is asked with it
    # has a body too.
    asked = METHODS[contract.path].input_type
    has_body = bool(contract.key) or holds_sensitive(asked) or holds_messages(asked)
    assert binding.verb == ("POST" if has_body else "GET")
    assert bool(binding.body) == has_body


def holds_messages(message: Descriptor) -> bool:
    """Whether the request has a list of messages, such as files."""
    return any(field.is_repeated and field.message_type for field in message.fields)


def test_a_body_is_the_request_or_one_of_its_fields(
    contract: MethodContract, binding: HttpBinding
) -> None:
    if binding.body not in {"", "*"}:
        assert field_at(METHODS[contract.path].input_type, binding.body) is not None


def test_no_two_rpcs_share_a_verb_and_path() -> None:
    shapes = [(c.http.verb, VARIABLE.sub(r"\2", c.http.path)) for c in PUBLIC.values() if c.http]
    assert len(shapes) == len(set(shapes))
