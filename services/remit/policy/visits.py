"""A client's call at the edge, as the log is told of it: whose it is, once that is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from remit.access import EDGE, OPERATOR, UNVERIFIED, USE_KEY, USE_TOKEN, Access, Occasion, refused
from remit.policy.credentials import Holder
from remit.policy.rules import Decision
from remit.rpc.errors import RemitError

FOREIGN_CALL: Final = "edge.call"
"""Action of a call that no contract lets clients make."""
_MOST_METHOD_CHARS: Final = 160
_EXCHANGED: Final = "exchanged for a remit"


@dataclass
class Visit:
    """What is known of a call by now."""

    path: str
    peer: str
    trace_id: str
    action: str = FOREIGN_CALL
    shown: str = ""
    """The beginning of the credential."""
    holder: Holder | None = None
    """Whose credential it is, verified."""
    decision: Decision | None = None

    def admitted(self) -> Iterator[tuple[Access, Occasion]]:
        """That its key was used and that its caller may do what it asks for."""
        if self.holder is None or self.decision is None:
            return  # a method that asks for no credential
        occasion = self._occasion()
        yield self._used(self.holder), occasion
        yield self._decided(self.holder, self.decision), occasion

    def refused(self, error: RemitError) -> tuple[Access, Occasion]:
        """Why it was refused: by the policies, or before they could be asked."""
        if self.holder is not None and self.decision is not None and not self.decision.allow:
            return self._decided(self.holder, self.decision), self._occasion()
        if self.holder is not None:
            asked = self._access(self.action, self.holder.org, self.holder)
            return refused(asked, error), self._occasion()
        unknown = Access(
            org=OPERATOR,
            subject=UNVERIFIED,
            action=self.action,
            resource=OPERATOR,
            is_allowed=False,
            reason="",
            asked_by=EDGE,
            peer=self.peer,
        )
        return refused(unknown, error), self._occasion(shown=self.shown)

    def _used(self, holder: Holder) -> Access:
        if not holder.issuer:
            return self._access(USE_KEY, holder.key, holder, reason=_EXCHANGED)
        reason = f"{_EXCHANGED}: a token of {holder.issuer}"
        return self._access(USE_TOKEN, holder.subject, holder, reason=reason)

    def _decided(self, holder: Holder, decision: Decision) -> Access:
        return Access(
            org=holder.org,
            subject=holder.subject,
            action=self.action,
            resource=holder.org,
            is_allowed=decision.allow,
            reason=decision.reason,
            asked_by=EDGE,
            policy_ids=decision.policy_ids,
            epoch=decision.epoch,
            key=holder.key,
        )

    def _access(self, action: str, resource: str, holder: Holder, reason: str = "") -> Access:
        return Access(
            org=holder.org,
            subject=holder.subject,
            action=action,
            resource=resource,
            is_allowed=True,
            reason=reason,
            asked_by=EDGE,
            key=holder.key,
        )

    def _occasion(self, shown: str = "") -> Occasion:
        method = self.path.removeprefix("/")[:_MOST_METHOD_CHARS]
        return Occasion(method=method, shown=shown, trace_id=self.trace_id)
