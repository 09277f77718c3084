"""Whether the caller of an admin RPC may do what it asks, decided by the rules in force now.

The edge has decided that the caller may use the method in its own org. What the method acts on is
decided here, by the same rules, because a service believes no gateway about its own resources.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from remit.access_recorder import AccessRecorder
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_PERMISSION_DENIED,
    ERROR_REASON_POLICY_LOCKOUT,
)
from remit.policy.epochs import Policies
from remit.policy.remits import principal_of
from remit.policy.rules import Question, RuleBook
from remit.policy.store import PolicyStore
from remit.policy.telling import DecisionTeller
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit

PUSH: Final = "policies.push"
MEMBER: Final = "member"
ADMIN: Final = "admin"
ROLES: Final = frozenset({MEMBER, ADMIN})
"""Roles that can be given."""
_MOST_ASKED: Final = 1000
"""Principals with a working key that are asked about, admins first."""


class Authority:
    """Asks the rules about callers, and about the org that operates the mesh."""

    def __init__(
        self, store: PolicyStore, policies: Policies, operator_org: str, accesses: AccessRecorder
    ) -> None:
        """`operator_org` may be empty: then it is the org that was set up first."""
        self._store = store
        self._policies = policies
        self._operator_org = operator_org
        self._teller = DecisionTeller(accesses)

    async def require(self, caller: Remit, action: str, resource: str) -> None:
        """Raise PERMISSION_DENIED unless the rules permit the caller the action."""
        book = await self._policies.newest()
        decision = book.decide(Question(principal_of(caller), action, resource))
        self._teller.decided(principal_of(caller), action, resource, decision)
        if not decision.allow:
            raise denied(caller, action, resource, decision.reason)

    async def require_operator(self, caller: Remit, action: str) -> None:
        """Raise PERMISSION_DENIED unless the caller's org is the one that operates the mesh."""
        operator = await self._operator()
        if caller.org != operator:
            reason = f"what holds for every org is changed by {operator or 'nobody yet'} alone"
            raise denied(caller, action, caller.org, reason)
        await self.require(caller, action, caller.org)

    async def require_no_lockout(self, book: RuleBook) -> None:
        """Raise POLICY_LOCKOUT unless somebody who has a key may still push under `book`."""
        operator = await self._operator()
        asked = await self._store.working_principals(operator, _MOST_ASKED)
        if not any(book.decide(Question(who, PUSH, operator)).allow for who in asked):
            raise RemitError(
                ERROR_REASON_POLICY_LOCKOUT,
                f"under these policies none of the {len(asked)} principals of {operator} that have"
                " a working API key may push policies any more",
            )

    async def _operator(self) -> str:
        return self._operator_org or await self._store.first_org()


def require_roles(caller: Remit, roles: Iterable[str], action: str, resource: str) -> None:
    """Raise PERMISSION_DENIED if the caller would give away a role that they do not have.

    Whatever the policies say about the action. An admin has every role.
    """
    if ADMIN not in caller.roles and not caller.roles.issuperset(roles):
        lacking = ", ".join(sorted(set(roles) - caller.roles))
        raise denied(caller, action, resource, f"only an admin gives the role {lacking}")


def denied(caller: Remit, action: str, resource: str, reason: str) -> RemitError:
    """PERMISSION_DENIED of an admin RPC."""
    return RemitError(
        ERROR_REASON_PERMISSION_DENIED,
        f"{caller.subject} may not perform {action} on {resource}: {reason}",
        metadata={"permission": action},
    )
