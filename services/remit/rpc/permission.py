"""Whether a stream may go on: its reader's permission is asked for again while it lasts.

A stream outlasts the answer that let it in. So before a message is sent whose permission was last
confirmed some time ago, policy is asked the edge's own question once more: may whoever holds this
remit, and the API key behind it, still do this in their org. No decision means that it may not. A
remit ends as well, and with it the stream: the reader opens it again behind what came last, and the
edge gives a new one.

How long a stream outlasts its permission is its contract's `permission_bound`. The question is
asked at two thirds of it, and every stream that waits sends a heartbeat within the third that is
left.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import permission_pb2, policy_service_pb2, policy_service_pb2_grpc
from remit.rpc.calls import Call
from remit.rpc.clock import Clock
from remit.rpc.contracts import MethodContract
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit

HEARTBEAT_SHARE: Final = 1 / 3
"""Of a stream's bound: its longest silence."""
_MARGIN: Final = timedelta(seconds=2)
"""A remit that ends within it is no longer shown to anybody."""


class StreamPermissions:
    """Asks policy for the streams of a service."""

    def __init__(self, policy: policy_service_pb2_grpc.PolicyServiceStub, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock

    def of(self, contract: MethodContract, call: Call) -> StreamPermission:
        """The permission of a stream that begins now, which the edge has just let in.

        Raises ValueError for a stream whose contract asks for no remit or states no bound.
        """
        if call.remit is None or contract.stream is None or not contract.stream.permission_bound_s:
            message = f"{contract.path} is no stream whose permission can be asked for again"
            raise ValueError(message)
        bound_s = contract.stream.permission_bound_s
        question = policy_service_pb2.CheckPermissionRequest(
            remit=call.remit_token, action=contract.permission, resource=call.remit.org
        )
        every_s = bound_s - HEARTBEAT_SHARE * bound_s
        return StreamPermission(self._policy, self._clock, call.remit, question, every_s=every_s)


class StreamPermission:
    """The permission of one stream; an answer counts for `every_s` seconds from its question on."""

    def __init__(
        self,
        policy: policy_service_pb2_grpc.PolicyServiceStub,
        clock: Clock,
        remit: Remit,
        question: policy_service_pb2.CheckPermissionRequest,
        *,
        every_s: float,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._question = question
        self._every_s = every_s
        self._end = remit.expire_time - _MARGIN
        self._asked = clock.monotonic()

    async def renew(self) -> None:
        """Returns at once if the last answer is young enough; else asks.

        Raises RemitError: PERMISSION_DENIED; DEPENDENCY_UNAVAILABLE when the remit has ended or
        policy does not decide: the stream may then be opened again.
        """
        if self._clock.now() >= self._end:
            raise _broken("the remit of this stream has ended")
        now = self._clock.monotonic()
        if now < self._asked + self._every_s:
            return
        try:
            answer = await self._policy.CheckPermission(self._question)
        except RemitError as error:
            raise _broken(f"policy does not say whether it may go on: {error.message}") from error
        if answer.decision != permission_pb2.DECISION_ALLOW:
            reason = answer.reason or "it is not permitted any more"
            raise RemitError(
                error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
                f"the stream ends: {self._question.action} was taken away: {reason}",
                metadata={"permission": self._question.action, "decision": answer.decision_id},
            )
        self._asked = now


def _broken(why: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"the stream ends: {why}; resume after the last sequence",
    )
