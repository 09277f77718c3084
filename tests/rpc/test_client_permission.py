"""A client's remit opens the methods that it was issued for, and no other, whoever presents it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import MethodContract, all_contracts, permissions
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.parties import caller_of_label
from remit.rpc.remits import Remit, RemitVerifier, decode_claims, encode_claims, encode_remit
from tests.permissions import PERMITTED
from tests.rpc.test_remits import KEY, REMIT, Keys

PUBLIC = [
    contract
    for contract in all_contracts().values()
    if contract.is_public and contract.auth == options_pb2.AUTH_REMIT
]


def remit_for(*issued_for: str) -> Remit:
    """A client's remit of now, which every service may accept."""
    issue = SystemClock().now().replace(microsecond=0)
    return replace(
        REMIT,
        agent="",
        run="",
        account=f"{REMIT.team}/{REMIT.subject.removeprefix('orgs/acme/')}",
        presenter=options_pb2.CALLER_PUBLIC,
        audience=frozenset(caller_of_label(contract.area) for contract in PUBLIC),
        issue_time=issue,
        expire_time=issue + timedelta(minutes=5),
        permissions=frozenset(issued_for),
    )


async def serve(contract: MethodContract, remit: Remit) -> None:
    """Runs the method, of which nothing is there but what stands before it."""
    guard = Guard(
        audience=caller_of_label(contract.area),
        verifier=RemitVerifier(Keys(), SystemClock()),
        clock=SystemClock(),
        max_in_flight=10,
        permissions=PERMITTED,
    )
    shown = [("remit-token", encode_remit(remit, KEY))]
    async with guard.serve(contract, remit.presenter, shown, 10):
        pass


@pytest.mark.parametrize("contract", PUBLIC, ids=lambda contract: contract.path)
async def test_a_method_of_clients_takes_the_remit_of_its_permission_alone(
    contract: MethodContract,
) -> None:
    others = set(permissions()) - {contract.permission}
    await serve(contract, remit_for(contract.permission))
    for other in (remit_for(*others), remit_for()):
        with pytest.raises(RemitError) as raised:
            await serve(contract, other)
        assert raised.value.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
        assert raised.value.metadata["permission"] == contract.permission


@given(issued_for=st.sets(st.sampled_from(permissions())))
def test_what_a_remit_was_issued_for_survives_its_encoding(issued_for: set[str]) -> None:
    remit = remit_for(*issued_for)
    assert decode_claims(encode_claims(remit), remit.key_id) == remit
