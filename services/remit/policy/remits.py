"""Issuing remits: the one place that decides what a token says and how long it lives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_TOO_LARGE
from remit.api.options.v1 import options_pb2
from remit.guardrails import Wanted
from remit.policy.entities import Principal
from remit.policy.key_ring import KeyRing
from remit.policy.runs import Registration
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.rpc.remits import Remit, encode_remit

# A client reaches every service through the edge; whether it may is decided call by call.
_CLIENT_AUDIENCE: Final = frozenset(
    {
        options_pb2.CALLER_AGENT,
        options_pb2.CALLER_AUDIT,
        options_pb2.CALLER_COST,
        options_pb2.CALLER_INFERENCE,
        options_pb2.CALLER_POLICY,
        options_pb2.CALLER_TOOLS,
    }
)
# A run generates and calls tools; these ask policy, cost and audit with the same remit.
_RUN_AUDIENCE: Final = _CLIENT_AUDIENCE - {options_pb2.CALLER_AGENT}


@dataclass(frozen=True)
class Issued:
    """A token and the seconds that it lives."""

    token: str
    lifetime_s: float


class RemitIssuer:
    """Signs remits with the ring's key."""

    def __init__(self, keys: KeyRing, clock: Clock, ids: IdSource, *, lifetime_s: int) -> None:
        self._keys = keys
        self._clock = clock
        self._ids = ids
        self._lifetime = timedelta(seconds=lifetime_s)

    def for_client(
        self,
        principal: Principal,
        *permissions: str,
        api_key: str,
        epoch: int,
        guardrails: Wanted | None = None,
        not_after: datetime | None = None,
    ) -> Issued:
        """Issue the remit of a client for methods that need one of `permissions`.

        Whether the client has them was decided before, as was what is screened. The remit names the
        API key behind it, by its id, and never outlives it; that ends at `not_after`.
        """
        remit = self._remit(
            principal,
            epoch=epoch,
            account=names.account_path(principal.user, team=principal.team)[-1],
            not_after=not_after,
        )
        return self._signed(
            replace(
                remit,
                api_key=api_key,
                permissions=frozenset(permissions),
                guardrails=_claim(guardrails),
            )
        )

    def lifetime_s(self, not_after: datetime | None = None) -> float:
        """Return how long what is issued now lives at least, in seconds."""
        _, end = self._span(not_after)
        return (end - self._clock.now()).total_seconds()

    def for_run(
        self,
        run: Registration,
        fencing_token: int,
        *,
        epoch: int,
        guardrails: Wanted | None = None,
    ) -> Issued:
        """Issue the remit of a registered run for the worker that holds `fencing_token`.

        Raises:
            RemitError: TOO_LARGE if tools and models do not fit into 4 KiB.

        """
        remit = self._remit(run.principal, epoch=epoch, account=run.account, run=run)
        return self._signed(
            replace(remit, fencing_token=fencing_token, guardrails=_claim(guardrails))
        )

    def _remit(
        self,
        principal: Principal,
        *,
        epoch: int,
        account: str,
        run: Registration | None = None,
        not_after: datetime | None = None,
    ) -> Remit:
        now, end = self._span(not_after)
        return Remit(
            remit_id=self._ids.uuid7(),
            subject=principal.user,
            team=principal.team,
            agent=run.agent if run else "",
            run=run.run if run else "",
            presenter=options_pb2.CALLER_AGENT if run else options_pb2.CALLER_PUBLIC,
            audience=_RUN_AUDIENCE if run else _CLIENT_AUDIENCE,
            tools=frozenset(run.tools if run else ()),
            models=frozenset(run.models if run else ()),
            account=account,
            max_cost_nanos=run.max_cost_nanos if run else None,
            fencing_token=0,
            policy_epoch=epoch,
            roles=frozenset(principal.roles),
            key_id=self._keys.signing.key_id,
            issue_time=now,
            expire_time=end,
            outer_limits_nanos=run.outer_limits_nanos if run else (),
        )

    def _span(self, not_after: datetime | None) -> tuple[datetime, datetime]:
        # Tokens count whole seconds; rounding both ends down keeps the life within its bound.
        now = self._clock.now().astimezone(UTC).replace(microsecond=0)
        end = now + self._lifetime
        return now, min(end, not_after) if not_after else end

    def _signed(self, remit: Remit) -> Issued:
        try:
            token = encode_remit(remit, self._keys.signing.private_key)
        except ValueError as error:
            raise RemitError(
                ERROR_REASON_TOO_LARGE, f"{error}; the agent names too many tools and models"
            ) from error
        return Issued(token, (remit.expire_time - self._clock.now()).total_seconds())


def _claim(guardrails: Wanted | None) -> str:
    return guardrails.claim if guardrails is not None else ""


def principal_of(remit: Remit) -> Principal:
    """Return who a verified remit speaks for, as the policies see it."""
    return Principal(remit.subject, remit.org, remit.team, tuple(sorted(remit.roles)))
