"""Who an API key speaks for, remembered at the edge for a few seconds.

A call through the edge should not cost a query and a signature each. So the answer for a key (its
row, a remit, what the policies said) is reused for `edge_cache_s`. That time is the revocation
bound: a key revoked on another replica works here that much longer at most; one revoked here stops
at once.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from dataclasses import dataclass, field

from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_CREDENTIAL_INVALID,
    ERROR_REASON_CREDENTIAL_REVOKED,
    ErrorReason,
)
from remit.policy.api_keys import Pepper, PresentedKey, parse_api_key, shown
from remit.policy.entities import Principal
from remit.policy.epochs import Policies
from remit.policy.limit_book import LimitBook, Limits
from remit.policy.remits import RemitIssuer
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.store import ApiKeyRow, PolicyStore
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError


@dataclass(frozen=True)
class Holder:
    """Whose key it is, by full names: the secret matched what is stored."""

    org: str
    subject: str
    key: str


class LapsedKeyError(RemitError):
    """A key that is known and counts no more."""

    def __init__(self, reason: ErrorReason.ValueType, message: str, holder: Holder) -> None:
        super().__init__(reason, message)
        self.holder = holder


@dataclass
class Session:
    """What is known of a presented key, until `end` (monotonic seconds)."""

    principal: Principal
    holder: Holder
    limits: Limits
    token: str
    digest: bytes
    end: float
    _epoch: int = 0
    _decisions: dict[str, Decision] = field(default_factory=dict)

    def decide(self, book: RuleBook, permission: str) -> Decision:
        """Ask whether the principal may do `permission` in its own org.

        The answers of an epoch are kept, since nothing of the request takes part in them.
        """
        if self._epoch != book.epoch:
            self._epoch, self._decisions = book.epoch, {}
        if permission not in self._decisions:
            question = Question(self.principal, permission, self.principal.org)
            self._decisions[permission] = book.decide(question)
        return self._decisions[permission]


class Credentials:
    """Authenticates API keys."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        *,
        store: PolicyStore,
        pepper: Pepper,
        limits: LimitBook,
        policies: Policies,
        issuer: RemitIssuer,
        clock: Clock,
        cache_s: float,
        cache_size: int,
    ) -> None:
        self._store = store
        self._pepper = pepper
        self._limits = limits
        self._policies = policies
        self._issuer = issuer
        self._clock = clock
        self._cache_s = cache_s
        self._cache_size = cache_size
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._opening: dict[bytes, asyncio.Task[Session]] = {}
        self._revocations = 0

    async def session(self, text: str) -> Session:
        """Return the session of a key as the client presented it.

        Raises:
            RemitError: CREDENTIAL_INVALID, CREDENTIAL_REVOKED, or DEPENDENCY_UNAVAILABLE when the
                database does not answer.

        """
        key = parse_api_key(text)
        digest = self._pepper.digest(key)
        known = self._sessions.get(key.key_id)
        if known and known.end > self._clock.monotonic():
            if not hmac.compare_digest(known.digest, digest):
                raise _unknown(key)
            return known
        return await self._joined(key, digest)

    def forget(self, key_id: str) -> None:
        """Drop what is remembered of a key: it was revoked here, and that holds from now on."""
        self._revocations += 1
        self._sessions.pop(key_id, None)
        self._opening.clear()

    def forget_all(self) -> None:
        """Drop what is remembered of every key: something changed here that concerns many."""
        self._revocations += 1
        self._sessions.clear()
        self._opening.clear()

    async def _joined(self, key: PresentedKey, digest: bytes) -> Session:
        """Open a session; callers that come with the same key meanwhile share the work."""
        task = self._opening.get(digest)
        if task is None:
            task = asyncio.create_task(self._open(key, digest), name="open-session")
            self._opening[digest] = task
            task.add_done_callback(lambda done: self._opened(digest, done))
        return await asyncio.shield(task)

    def _opened(self, digest: bytes, task: asyncio.Task[Session]) -> None:
        if self._opening.get(digest) is task:
            del self._opening[digest]
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; whoever left must not make a warning

    async def _open(self, key: PresentedKey, digest: bytes) -> Session:
        started, revocations = self._clock.monotonic(), self._revocations
        row = await self._store.api_key(key.key_id)
        if row is None or not self._pepper.matches(key, row.digest):
            raise _unknown(key)
        self._check_standing(row)
        book = await self._policies.newest()
        principal = Principal(row.subject, row.org, row.team, row.roles)
        issued = self._issuer.for_client(
            principal, api_key=row.key_id, epoch=book.epoch, not_after=row.expire_time
        )
        # Counted from before the database was asked, and never past the token's own end.
        end = started + min(self._cache_s, issued.lifetime_s)
        limits = await self._limits.limits(row.subject, row.name, row.org)
        session = Session(principal, _holder(row), limits, issued.token, digest, end)
        if revocations == self._revocations:
            self._remember(key.key_id, session)
        return session

    def _check_standing(self, row: ApiKeyRow) -> None:
        key = shown(row.key_id)
        if row.revoke_time is not None:
            raise LapsedKeyError(
                ERROR_REASON_CREDENTIAL_REVOKED, f"{key} was revoked", _holder(row)
            )
        if row.expire_time is not None and row.expire_time <= self._clock.now():
            raise LapsedKeyError(
                ERROR_REASON_CREDENTIAL_INVALID, f"{key} has expired", _holder(row)
            )

    def _remember(self, key_id: str, session: Session) -> None:
        if self._cache_s <= 0:
            return
        self._sessions[key_id] = session
        self._sessions.move_to_end(key_id)
        if len(self._sessions) > self._cache_size:
            self._sessions.popitem(last=False)


def _holder(row: ApiKeyRow) -> Holder:
    return Holder(row.org, row.subject, row.name)


def _unknown(key: PresentedKey) -> RemitError:
    """Say the same for an unknown id and a wrong secret: neither is told from the other."""
    return RemitError(
        ERROR_REASON_CREDENTIAL_INVALID,
        f"{shown(key.key_id)} is not known here",
    )
