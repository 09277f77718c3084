"""The descriptors that Envoy gets: public RPCs, and bodies and streams as google.api.HttpBody."""

from __future__ import annotations

from remit.api.options.v1 import options_pb2
from remit.gateway.transcoder import descriptor_set
from remit.rpc.contracts import all_contracts
from remit.rpc.rest import BODY_FIELD, BODY_FIELD_NUMBER
from tests.contracts.test_method_contracts import METHODS

HTTP_BODY = ".google.api.HttpBody"
PUBLIC = {path: c for path, c in all_contracts().items() if c.is_public}


def test_no_message_of_ours_has_the_field_of_the_body() -> None:
    for method in METHODS.values():
        fields = method.input_type.fields
        assert not [f for f in fields if f.number == BODY_FIELD_NUMBER or f.name == BODY_FIELD]


def test_envoy_gets_what_clients_may_call_and_no_more() -> None:
    got = {
        f"/{file.package}.{service.name}/{method.name}": method
        for file in descriptor_set().file
        for service in file.service
        for method in service.method
    }
    assert set(got) == set(PUBLIC)
    for path, method in got.items():
        contract = PUBLIC[path]
        assert contract.auth == options_pb2.AUTH_REMIT
        assert (method.output_type == HTTP_BODY) == (contract.stream is not None)


def test_every_request_has_the_body() -> None:
    kinds = {
        f".{file.package}.{kind.name}": {f.name: f.type_name for f in kind.field}
        for file in descriptor_set().file
        for kind in file.message_type
    }
    for path in PUBLIC:
        assert kinds[f".{METHODS[path].input_type.full_name}"][BODY_FIELD] == HTTP_BODY
