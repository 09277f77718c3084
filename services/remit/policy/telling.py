"""What the log is told of questions that services ask: who asked, for whom, and the answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from remit.access import OPERATOR, UNVERIFIED, Access, Occasion, effect_of, refused
from remit.access_recorder import AccessRecorder
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import policy_service_pb2
from remit.policy.entities import Principal
from remit.policy.remits import principal_of
from remit.policy.rules import Decision
from remit.policy.schema import RUN_AGENT
from remit.rpc.calls import current_call
from remit.rpc.errors import RemitError
from remit.rpc.parties import caller_label
from remit.rpc.remits import Remit

_REFUSALS: Final = frozenset(
    {
        error_reason_pb2.ERROR_REASON_REMIT_INVALID,
        error_reason_pb2.ERROR_REASON_FENCED,
        error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
        error_reason_pb2.ERROR_REASON_PRINCIPAL_DISABLED,
        error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED,
    }
)
"""Errors that answer a question with no. Others leave it open: a malformed one, no database."""

Question = policy_service_pb2.CheckPermissionRequest


class DecisionTeller:
    """Tells of decisions in the call in progress."""

    def __init__(self, accesses: AccessRecorder) -> None:
        self._accesses = accesses

    def decided(
        self, principal: Principal, action: str, resource: str, decision: Decision, run: str = ""
    ) -> None:
        """Tells of an answer of the policies. Raises OVERLOADED where it must not be a yes."""
        self._tell(_answered(principal, action, resource, decision, run), _occasion())

    def answered(self, remit: Remit, question: Question, decision: Decision, name: str) -> None:
        """Tells of an answer to a question, whose name is `name`. Raises as `decided` does."""
        access = _answered(
            principal_of(remit), question.action, question.resource, decision, remit.run
        )
        if remit.api_key:
            access = replace(access, key=_key_of(remit))
        effect = effect_of(question.claim, question.attempt)
        self._tell(access, _occasion(effect=effect, decision=name))

    @contextlib.contextmanager
    def refusals(self, remit: Remit | RemitError, question: Question) -> Iterator[None]:
        """Tells of a question that the body refuses before the policies are asked."""
        try:
            yield
        except RemitError as error:
            if error.reason in _REFUSALS:
                known = remit if isinstance(remit, Remit) else None
                principal = principal_of(known) if known else None
                access = _asked(
                    principal, question.action, question.resource, known.run if known else ""
                )
                effect = effect_of(question.claim, question.attempt)
                self._accesses.deny(refused(access, error), _occasion(effect=effect))
            raise

    @contextlib.contextmanager
    def registering(self, run: str, agent: str) -> Iterator[Registering]:
        """Tells of a request for a run's remit that the body decides or refuses."""
        asked = Registering(self, run, agent)
        try:
            yield asked
        except RemitError as error:
            if error.reason in _REFUSALS and not asked.is_told:
                access = _asked(asked.principal, RUN_AGENT, agent, run if asked.principal else "")
                self._accesses.deny(refused(access, error), _occasion())
            raise

    def _tell(self, access: Access, occasion: Occasion) -> None:
        if access.is_allowed:
            self._accesses.allow(access, occasion)
        else:
            self._accesses.deny(access, occasion)


@dataclass
class Registering:
    """A request for a run's remit, and what is known of it by now."""

    teller: DecisionTeller
    run: str
    agent: str
    principal: Principal | None = None
    """On whose behalf, verified."""
    is_told: bool = False

    def decided(self, principal: Principal, decision: Decision) -> None:
        """Tells how the policies answered. Raises as `DecisionTeller.decided` does."""
        self.principal = principal
        self.teller.decided(principal, RUN_AGENT, self.agent, decision, self.run)
        self.is_told = True


def _answered(
    principal: Principal, action: str, resource: str, decision: Decision, run: str
) -> Access:
    return Access(
        org=principal.org,
        subject=principal.user,
        action=action,
        resource=resource,
        is_allowed=decision.allow,
        reason=decision.reason,
        asked_by=caller_label(current_call().caller),
        policy_ids=decision.policy_ids,
        epoch=decision.epoch,
        run=run,
    )


def _asked(principal: Principal | None, action: str, resource: str, run: str) -> Access:
    return Access(
        org=principal.org if principal else OPERATOR,
        subject=principal.user if principal else UNVERIFIED,
        action=action,
        resource=resource,
        is_allowed=False,
        reason="",
        asked_by=caller_label(current_call().caller),
        run=run,
    )


def _occasion(effect: str = "", decision: str = "") -> Occasion:
    return Occasion(effect=effect, decision=decision, trace_id=current_call().trace_id)


def _key_of(remit: Remit) -> str:
    return f"{remit.org}/apiKeys/{remit.api_key}"
