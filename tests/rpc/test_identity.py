"""Who is believed to be who."""

from __future__ import annotations

import pytest

from remit.api.options.v1 import options_pb2
from remit.rpc.errors import RemitError
from remit.rpc.identity import FORWARDED_KEY, caller_of, spiffe_id


def peer(party: str) -> dict[str, list[bytes]]:
    return {"peer_spiffe_id": [spiffe_id(party).encode()]}


def forwarded(*values: str) -> list[tuple[str, str | bytes]]:
    return [(FORWARDED_KEY, value) for value in values]


def test_a_service_is_who_its_certificate_names() -> None:
    assert caller_of(peer("agent"), []) == options_pb2.CALLER_AGENT


def test_the_edge_speaks_for_the_public_and_nobody_else() -> None:
    claims = forwarded(f"URI={spiffe_id('cost')}")
    assert caller_of(peer("edge"), claims) == options_pb2.CALLER_PUBLIC


def test_the_mesh_listener_is_believed() -> None:
    element = f"By=spiffe://x;Hash=ab;URI={spiffe_id('tools')}"
    assert caller_of(peer("mesh"), forwarded(element)) == options_pb2.CALLER_TOOLS


def test_a_service_cannot_speak_for_another() -> None:
    claims = forwarded(f"URI={spiffe_id('policy')}")
    assert caller_of(peer("agent"), claims) == options_pb2.CALLER_AGENT


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["URI="],
        [f"URI={spiffe_id('agent')}", f"URI={spiffe_id('cost')}"],
        [f"URI={spiffe_id('agent')},URI={spiffe_id('cost')}"],
        [f"URI={spiffe_id('agent')};URI={spiffe_id('cost')}"],
        ["URI=spiffe://evil.example/agent"],
        [f"URI={spiffe_id('agent')}/x"],
        [f"URI={spiffe_id('public')}"],
        [f"URI={spiffe_id('edge')}"],
        [f"URI={spiffe_id('mesh')}"],
        [f"URI={spiffe_id('unspecified')}"],
    ],
)
def test_what_the_mesh_listener_would_never_send_is_refused(values: list[str]) -> None:
    with pytest.raises(RemitError, match="no party"):
        caller_of(peer("mesh"), forwarded(*values))


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"peer_spiffe_id": []},
        {"peer_spiffe_id": [b"spiffe://evil.example/agent"]},
        {"peer_spiffe_id": [spiffe_id("agent").encode(), spiffe_id("cost").encode()]},
        {"peer_spiffe_id": [b"\xff"]},
        {"x509_common_name": [b"agent"]},
    ],
)
def test_a_certificate_without_one_identity_of_ours_is_refused(
    context: dict[str, list[bytes]],
) -> None:
    with pytest.raises(RemitError, match="no party"):
        caller_of(context, [])
