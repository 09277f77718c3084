"""A stream's permission: asked for again in time, and never taken for granted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import permission_pb2, policy_service_pb2
from remit.rpc.calls import Call
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import MethodContract, all_contracts
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.permission import StreamPermission, StreamPermissions
from remit.rpc.remits import Remit, RemitVerifier, encode_remit
from tests.audit.events import NOW, FakeClock
from tests.rpc.test_remits import KEY, REMIT, Keys

TAIL = all_contracts()["/remit.api.audit.v1.AuditQueryService/TailEvents"]
LIST = all_contracts()["/remit.api.audit.v1.AuditQueryService/ListEvents"]


class Policy:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.questions: list[policy_service_pb2.CheckPermissionRequest] = []
        self.answer: Any = permission_pb2.DECISION_ALLOW

    async def CheckPermission(self, question: Any) -> policy_service_pb2.CheckPermissionResponse:
        self.questions.append(question)
        if isinstance(self.answer, RemitError):
            raise self.answer
        return policy_service_pb2.CheckPermissionResponse(
            decision=self.answer, decision_id="d-1", reason="stopped by hand"
        )


def call_of(contract: MethodContract, remit: Remit | None) -> Call:
    return Call(
        method=contract.path,
        caller=options_pb2.CALLER_PUBLIC,
        remit=remit,
        remit_token="token",
        deadline=0,
        trace_id="",
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def permission(policy: Policy, clock: FakeClock) -> StreamPermission:
    permissions = StreamPermissions(policy, clock)  # type: ignore[arg-type]
    remit = replace(REMIT, expire_time=NOW + timedelta(seconds=100))
    return permissions.of(TAIL, call_of(TAIL, remit))


async def test_an_answer_counts_for_a_while_and_the_stream_ends_with_its_remit(
    permission: StreamPermission, policy: Policy, clock: FakeClock
) -> None:
    for elapsed_s, asked in ((19, 0), (1, 1), (19, 1), (1, 2), (50, 3)):
        clock.advance(elapsed_s)
        await permission.renew()
        assert len(policy.questions) == asked
    clock.advance(9)
    with pytest.raises(RemitError, match="remit of this stream has ended") as raised:
        await permission.renew()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    (question, *_) = policy.questions
    assert (question.remit, question.action, question.resource) == (
        "token",
        "audit.read",
        "orgs/acme",
    )


@pytest.mark.parametrize(
    "answer",
    [
        RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away"),
        RemitError(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED, "late"),
        RemitError(error_reason_pb2.ERROR_REASON_REMIT_INVALID, "of another installation"),
        RemitError(error_reason_pb2.ERROR_REASON_INTERNAL, "a bug", metadata={"error_id": "1"}),
    ],
    ids=lambda answer: answer.reason_name,
)
async def test_without_a_decision_it_may_be_opened_again(
    permission: StreamPermission, policy: Policy, clock: FakeClock, answer: RemitError
) -> None:
    policy.answer = answer
    clock.advance(20)
    with pytest.raises(RemitError, match="policy does not say") as raised:
        await permission.renew()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert raised.value.retryable


@pytest.mark.parametrize(
    "answer", [permission_pb2.DECISION_DENY, permission_pb2.DECISION_UNSPECIFIED]
)
async def test_what_is_not_allowed_is_denied_with_its_reason(
    permission: StreamPermission, policy: Policy, clock: FakeClock, answer: Any
) -> None:
    policy.answer = answer
    clock.advance(20)
    with pytest.raises(RemitError, match=r"audit\.read was taken away: stopped by hand") as raised:
        await permission.renew()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
    assert raised.value.metadata == {"permission": "audit.read", "decision": "d-1"}


async def test_no_stream_begins_where_nobody_would_ask() -> None:
    clock = SystemClock()
    guard = Guard(
        audience=options_pb2.CALLER_AUDIT,
        verifier=RemitVerifier(Keys(), clock),
        clock=clock,
        max_in_flight=10,
    )
    issued = clock.now().replace(microsecond=0)
    remit = replace(
        REMIT,
        presenter=options_pb2.CALLER_PUBLIC,
        audience=frozenset({options_pb2.CALLER_AUDIT}),
        issue_time=issued,
        expire_time=issued + timedelta(minutes=5),
        permissions=frozenset({TAIL.permission, LIST.permission}),
    )
    shown = [("remit-token", encode_remit(remit, KEY))]
    with pytest.raises(RemitError) as raised:
        async with guard.serve(TAIL, options_pb2.CALLER_PUBLIC, shown, 10):
            pytest.fail("nobody asks")
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_INTERNAL
    async with guard.serve(LIST, options_pb2.CALLER_PUBLIC, shown, 10) as permission:
        assert permission is None


@pytest.mark.parametrize(("contract", "remit"), [(TAIL, None), (LIST, REMIT)])
def test_only_a_bounded_stream_with_a_remit_has_a_permission(
    policy: Policy, clock: FakeClock, contract: MethodContract, remit: Remit | None
) -> None:
    with pytest.raises(ValueError, match="no stream whose permission"):
        StreamPermissions(policy, clock).of(contract, call_of(contract, remit))  # type: ignore[arg-type]
