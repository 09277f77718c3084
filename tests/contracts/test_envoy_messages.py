"""Remit's own forms of Envoy's messages are the same on the wire as Envoy's."""

from __future__ import annotations

from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Metadata,
)
from envoy_data_plane.envoy.service.auth import v3 as auth
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Struct
from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2

from remit.api.gateway.v1 import authorization_pb2 as ours

APPENDS = [
    (action, f"HEADER_APPEND_ACTION_{action.name}")
    for action in HeaderValueOptionHeaderAppendAction
    if action.value != 0
]


def test_a_check_of_envoys_is_read_whole() -> None:
    http = auth.AttributeContextHttpRequest(
        method="POST",
        headers={"authorization": "Bearer key", "content-type": "application/grpc"},
        path="/v1/runs?x=1",
        host="localhost",
        protocol="HTTP/2",
        size=7,
    )
    request = auth.AttributeContextRequest(http=http)
    attributes = auth.AttributeContext(request=request, context_extensions={"a": "b"})
    read = ours.CheckRequest.FromString(bytes(auth.CheckRequest(attributes=attributes)))
    seen = read.attributes.request.http
    assert (seen.method, seen.path, seen.host) == ("POST", "/v1/runs?x=1", "localhost")
    assert dict(seen.headers) == http.headers


def test_what_filters_found_out_is_read_whole() -> None:
    found = Struct.from_dict({"corporate": {"sub": "alice", "exp": 4e9, "aud": ["a", "b"]}})
    attributes = auth.AttributeContext(metadata_context=Metadata(filter_metadata={"jwt": found}))
    read = ours.CheckRequest.FromString(bytes(auth.CheckRequest(attributes=attributes)))
    seen = read.attributes.metadata_context.filter_metadata["jwt"]
    assert json_format.MessageToDict(seen) == found.to_dict()


@pytest.mark.parametrize(("action", "name"), APPENDS, ids=[name for _, name in APPENDS])
def test_envoy_reads_an_admission(action: Any, name: str) -> None:
    answer = ours.CheckResponse(
        status=status_pb2.Status(),
        ok_response=ours.OkHttpResponse(
            headers=[
                ours.HeaderValueOption(
                    header=ours.HeaderValue(key="remit-token", value="t"),
                    append_action=ours.HeaderValueOption.HeaderAppendAction.Value(name),
                )
            ],
            headers_to_remove=["authorization", "x-api-key"],
        ),
    )
    read = auth.CheckResponse.parse(answer.SerializeToString())
    assert read.ok_response is not None
    assert read.ok_response.headers_to_remove == ["authorization", "x-api-key"]
    assert read.ok_response.headers == [
        HeaderValueOption(header=HeaderValue(key="remit-token", value="t"), append_action=action)
    ]


def test_envoy_reads_a_refusal() -> None:
    answer = ours.CheckResponse(
        status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED, message="no"),
        denied_response=ours.DeniedHttpResponse(
            status=ours.HttpStatus(code=403),
            headers=[ours.HeaderValueOption(header=ours.HeaderValue(key="a", value="b"))],
            body="{}",
        ),
    )
    read = auth.CheckResponse.parse(answer.SerializeToString())
    assert read.status is not None
    assert read.status.code == code_pb2.PERMISSION_DENIED
    assert read.denied_response is not None
    assert read.denied_response.status == HttpStatus(code=StatusCode.Forbidden)
    assert read.denied_response.body == "{}"
    assert read.denied_response.headers == [
        HeaderValueOption(header=HeaderValue(key="a", value="b"))
    ]
