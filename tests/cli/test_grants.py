"""`remit grants`: what is asked for and what is shown."""

from __future__ import annotations

from typing import Any

from google.protobuf import timestamp_pb2

from remit.api.policy.v1 import grant_pb2, grant_service_pb2, permission_pb2
from remit.cli import exit_codes
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

NAME = "orgs/local/grants/0198a5b0-0000-7000-8000-000000000000"
BOB = "orgs/local/users/bob"


def grant(**fields: Any) -> grant_pb2.ToolGrant:
    given: dict[str, Any] = {
        "name": NAME,
        "principal": BOB,
        "tool": "tools/send_email",
        "policy": "permit (principal, action, resource);",
    }
    return grant_pb2.ToolGrant(**given | fields)


def test_a_tool_is_granted_and_its_policy_shown(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GrantToolAccess"] = lambda _: grant_service_pb2.GrantToolAccessResponse(
        grant=grant()
    )
    arguments = ("grants", "add", BOB, "--tool", "tools/send_email")
    out = remit(*arguments, "--expires", "2027-01-01T00:00:00Z").out
    assert NAME in out
    assert "permit (principal, action, resource);" in out
    (request,) = edge.requests("GrantToolAccess")
    assert (request.principal, request.tool) == (BOB, "tools/send_email")
    assert request.expire_time.seconds == 1_798_761_600
    assert request.request_id


def test_a_class_is_granted(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GrantToolAccess"] = lambda _: grant_service_pb2.GrantToolAccessResponse(
        grant=grant(tool="", permission_class=permission_pb2.PERMISSION_CLASS_EXECUTE)
    )
    assert "up to execute" in remit("grants", "add", BOB, "--class", "execute").out
    (request,) = edge.requests("GrantToolAccess")
    assert request.permission_class == permission_pb2.PERMISSION_CLASS_EXECUTE
    assert not request.HasField("expire_time")
    for wrong in ((), ("--tool", "tools/x", "--class", "read")):
        assert remit("grants", "add", BOB, *wrong).code == exit_codes.USAGE


def test_a_grant_is_revoked(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["RevokeToolAccess"] = lambda _: grant_service_pb2.RevokeToolAccessResponse(
        grant=grant(revoke_time=timestamp_pb2.Timestamp(seconds=1_795_446_000))
    )
    assert "revoked 2026-11-23" in remit("grants", "revoke", NAME).out
    assert edge.requests("RevokeToolAccess")[0].name == NAME


def test_the_list_says_which_are_in_force(remit: Remit, edge: EdgeServer) -> None:
    ended = timestamp_pb2.Timestamp(seconds=1_500_000_000)
    lasting = timestamp_pb2.Timestamp(seconds=9_000_000_000)
    edge.answers["ListToolGrants"] = lambda _: grant_service_pb2.ListToolGrantsResponse(
        grants=[grant(), grant(expire_time=ended), grant(expire_time=lasting)]
    )
    _, always, over, until = remit("grants", "list", "--principal", BOB).out.splitlines()
    assert " yes " in always
    assert "ended 2017" in over
    assert "until 2255" in until
    assert edge.requests("ListToolGrants")[0].principal == BOB
