"""REST at the edge: JSON over HTTP becomes the gRPC call that a contract's `google.api.http` names.

Envoy's transcoder matches verb and path, reads path variables and query parameters, and writes
answers as JSON. Three things it does not do are done by the service (`remit.rpc.rest`), and the
descriptors that Envoy gets are changed for it; nobody else sees them:

- Bodies. Envoy's JSON reader drops fields that it does not know and looks at no content type, so a
  misspelt limit would be no limit. Each request gets one more field, a `google.api.HttpBody`, into
  which Envoy puts the body as it came: also where the contract has none, because Envoy would read
  what a client sends all the same.
- Streams. Envoy's server-sent events have no `id:` lines, and one that breaks looks like one that
  ended. Each stream answers with `google.api.HttpBody`, whose data the service writes.
- `Last-Event-ID` passes as a header, and the service resumes by it.

Fields with default values are printed: zero is an answer (`"costNanos": "0"`), and a client in a
typed language reads a field that is always there. What has presence (messages, oneofs, `optional`)
is absent where it is not set.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any as AnyType
from typing import Final

from envoy_data_plane.envoy.extensions.filters.http.grpc_json_transcoder.v3 import (
    GrpcJsonTranscoder,
    GrpcJsonTranscoderPrintOptions,
    GrpcJsonTranscoderRequestValidationOptions,
    GrpcJsonTranscoderUrlUnescapeSpec,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.google.protobuf import Any
from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf import descriptor, descriptor_pb2
from google.rpc import error_details_pb2

from remit.rpc.contracts import MAX_MESSAGE_BYTES, SERVICE_MODULES, contract_of, public_services
from remit.rpc.rest import BODY_FIELD, BODY_FIELD_NUMBER

MAX_BODY_BYTES: Final = MAX_MESSAGE_BYTES
"""Largest JSON body, in bytes; the service then applies the contract's own bound."""
_MAX_RESPONSE_BYTES: Final = MAX_MESSAGE_BYTES
_HTTP_BODY: Final = f".{httpbody_pb2.HttpBody.DESCRIPTOR.full_name}"


def transcoder() -> HttpFilter:
    """The filter that turns REST into gRPC; gRPC and gRPC-Web pass it untouched."""
    config = GrpcJsonTranscoder(
        proto_descriptor_bin=descriptor_set().SerializeToString(deterministic=True),
        services=list(public_services()),
        convert_grpc_status=True,
        query_param_unescape_plus=True,
        # An artifact may be called `Q&A: #1?.txt`; a `%2F` never comes so far.
        url_unescape_spec=GrpcJsonTranscoderUrlUnescapeSpec.ALL_CHARACTERS_EXCEPT_SLASH,
        print_options=GrpcJsonTranscoderPrintOptions(always_print_primitive_fields=True),
        request_validation_options=GrpcJsonTranscoderRequestValidationOptions(
            reject_unknown_method=True,
            reject_unknown_query_parameters=True,
            reject_binding_body_field_collisions=True,
        ),
        max_request_body_size=MAX_BODY_BYTES,
        max_response_body_size=_MAX_RESPONSE_BYTES,
    )
    return HttpFilter(name="envoy.filters.http.grpc_json_transcoder", typed_config=Any.pack(config))


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """The contracts as Envoy gets them: public RPCs only, with bodies and streams as HttpBody."""
    files = dict.fromkeys(
        file for module in _roots() for file in _with_dependencies(module.DESCRIPTOR)
    )
    return descriptor_pb2.FileDescriptorSet(file=[_for_envoy(file) for file in files])


def _roots() -> Iterator[AnyType]:
    # Details of errors are printed too, so Envoy must know their types.
    yield error_details_pb2
    yield httpbody_pb2
    for name in SERVICE_MODULES:
        yield importlib.import_module(name)


def _with_dependencies(file: descriptor.FileDescriptor) -> Iterator[descriptor.FileDescriptor]:
    for dependency in file.dependencies:
        yield from _with_dependencies(dependency)
    yield file


def _for_envoy(file: descriptor.FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    changed = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(changed)
    for service in changed.service:
        _keep_public(changed, service)
    return changed


def _keep_public(
    file: descriptor_pb2.FileDescriptorProto, service: descriptor_pb2.ServiceDescriptorProto
) -> None:
    public = []
    for method in service.method:
        contract = contract_of(f"/{file.package}.{service.name}/{method.name}")
        if contract is None or contract.http is None or not contract.is_public:
            continue
        if contract.stream is not None:
            method.output_type = _HTTP_BODY
        _take_body(file, method)
        public.append(method)
    del service.method[:]
    service.method.extend(public)
    if httpbody_pb2.DESCRIPTOR.name not in file.dependency:
        file.dependency.append(httpbody_pb2.DESCRIPTOR.name)


def _take_body(
    file: descriptor_pb2.FileDescriptorProto, method: descriptor_pb2.MethodDescriptorProto
) -> None:
    """Gives a request the field that holds the raw body."""
    (request,) = (m for m in file.message_type if method.input_type == f".{file.package}.{m.name}")
    request.field.add(
        name=BODY_FIELD,
        number=BODY_FIELD_NUMBER,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        type_name=_HTTP_BODY,
    )
    annotation: AnyType = annotations_pb2.http
    rule: http_pb2.HttpRule = method.options.Extensions[annotation]
    rule.body = BODY_FIELD
