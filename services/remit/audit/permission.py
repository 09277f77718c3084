"""Whether a stream may go on: its reader's permission is asked for again while it lasts.

No decision in time means that it may not. A remit ends as well, and with it the stream: the reader
opens it again behind what came last, and the edge looks at the key again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import permission_pb2, policy_service_pb2, policy_service_pb2_grpc
from remit.postgres import unavailable
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.contracts import contract_of
from remit.rpc.errors import RemitError

_MARGIN: Final = timedelta(seconds=2)
"""A remit that ends within it is no longer shown to anybody."""


class StreamPermission:
    """The permission of one stream, which is asked for again every `recheck_s` seconds."""

    def __init__(
        self,
        policy: policy_service_pb2_grpc.PolicyServiceStub,
        clock: Clock,
        *,
        recheck_s: float,
    ) -> None:
        """For the call in progress, which the edge has just let in."""
        self._policy = policy
        self._clock = clock
        self._recheck_s = recheck_s
        self._asked = clock.monotonic()
        call, self._remit = current_call(), current_remit()
        contract = contract_of(call.method)
        self._question = policy_service_pb2.CheckPermissionRequest(
            remit=call.remit_token,
            action=contract.permission if contract else "",
            resource=self._remit.org,
        )

    async def renew(self) -> None:
        """Return at once if the last answer is young enough; else ask.

        Raises:
            RemitError: PERMISSION_DENIED; DEPENDENCY_UNAVAILABLE when the remit has ended or policy
                does not answer: the stream may then be opened again.

        """
        if self._clock.now() >= self._remit.expire_time - _MARGIN:
            raise unavailable("the remit of this stream has ended; resume after the last sequence")
        now = self._clock.monotonic()
        if now < self._asked + self._recheck_s:
            return
        answer = await self._policy.CheckPermission(self._question)
        if answer.decision != permission_pb2.DECISION_ALLOW:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
                answer.reason or f"{self._question.action} is not permitted any more",
                metadata={"permission": self._question.action, "decision": answer.decision_id},
            )
        self._asked = now
