"""Who a credential speaks for, remembered at the edge for a few seconds.

A call through the edge should not cost a query and a signature each. So the answer for an API key
(its row, a remit, what the policies said) is reused for `edge_cache_s`, and so is that for a token
of an identity provider, which the edge checks each time. That time is the revocation bound: a key
revoked or a user disabled on another replica works here that much longer at most; one revoked here
stops at once.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_CREDENTIAL_INVALID,
    ERROR_REASON_CREDENTIAL_REVOKED,
    ERROR_REASON_IDENTITY_NOT_MAPPED,
    ERROR_REASON_PRINCIPAL_DISABLED,
    ErrorReason,
)
from remit.policy.api_keys import Pepper, PresentedKey, parse_api_key, shown
from remit.policy.entities import Principal
from remit.policy.epochs import Policies
from remit.policy.guarding import wanted_for_client
from remit.policy.identity_tokens import Identity
from remit.policy.limit_book import LimitBook, Limits
from remit.policy.remits import Issued, RemitIssuer
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.store import ApiKeyRow, PolicyStore
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_USE_NOTED_EVERY_S: Final = 60.0


@dataclass(frozen=True)
class Holder:
    """Whose credential it is, by full names: it was verified."""

    org: str
    subject: str
    key: str
    """The API key; empty for a token."""
    issuer: str = ""
    """Name of the issuer of a token; empty for an API key."""


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
    issue: Callable[[str], Issued]
    """Signs the remit for a permission."""
    digest: bytes
    end: float
    scopes: tuple[str, ...] = ()
    """Permissions that the key is limited to; empty: no limit."""
    _epoch: int = 0
    _decisions: dict[str, Decision] = field(default_factory=dict)
    _tokens: dict[str, str] = field(default_factory=dict)

    def is_within_scope(self, permission: str) -> bool:
        """Whether the key is meant for `permission`: it, or what it begins with, is a scope."""
        wanted = {permission, permission.partition(".")[0]}
        return not self.scopes or not wanted.isdisjoint(self.scopes)

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

    def token(self, permission: str) -> str:
        """Return the remit for calls that need `permission`, which was decided before.

        One is signed for each permission that is used, and shown again while the session lasts.
        """
        if permission not in self._tokens:
            self._tokens[permission] = self.issue(permission).token
        return self._tokens[permission]


class Credentials:
    """Authenticates API keys, and takes in whom checked tokens speak for."""

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
        return await self._joined(digest, self._open(key, digest))

    async def token_session(self, identity: Identity) -> Session:
        """Return the session of a token that was checked.

        Raises:
            RemitError: PRINCIPAL_DISABLED, IDENTITY_NOT_MAPPED for a service account, or
                DEPENDENCY_UNAVAILABLE when the database does not answer.

        """
        known = self._sessions.get(_name_of(identity))
        same = known and (known.principal, known.digest) == (identity.principal, identity.digest)
        if known and same and known.end > self._clock.monotonic():
            return known
        return await self._joined(identity.digest, self._open_token(identity))

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

    async def _joined(self, digest: bytes, opening: Coroutine[Any, Any, Session]) -> Session:
        """Open a session; callers that come with the same credential meanwhile share the work."""
        task = self._opening.get(digest)
        if task is None:
            task = asyncio.create_task(opening, name="open-session")
            self._opening[digest] = task
            task.add_done_callback(lambda done: self._opened(digest, done))
        else:
            opening.close()
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
        await self._check_subject(_holder(row))
        book = await self._policies.newest()
        principal = row.principal
        issue = functools.partial(
            self._issuer.for_client,
            principal,
            api_key=row.key_id,
            epoch=book.epoch,
            guardrails=wanted_for_client(book, principal),
            not_after=row.expire_time,
        )
        # Counted from before the database was asked, and never past the end of a token.
        end = started + min(self._cache_s, self._issuer.lifetime_s(row.expire_time))
        limits = await self._limits.limits(row.subject, row.name, row.org)
        session = Session(principal, _holder(row), limits, issue, digest, end, row.scopes)
        await self._note_use(row)
        if revocations == self._revocations:
            self._remember(key.key_id, session)
        return session

    async def _open_token(self, identity: Identity) -> Session:
        """The first token of a user makes them known here: an administrator can disable them."""
        started, revocations = self._clock.monotonic(), self._revocations
        principal = identity.principal
        holder = Holder(principal.org, principal.user, "", identity.issuer)
        if not await self._store.know(principal):
            raise _no_person(identity)
        await self._check_subject(holder)
        book = await self._policies.newest()
        issue = functools.partial(
            self._issuer.for_client,
            principal,
            api_key="",
            epoch=book.epoch,
            guardrails=wanted_for_client(book, principal),
            not_after=identity.expire_time,
        )
        end = started + min(self._cache_s, self._issuer.lifetime_s(identity.expire_time))
        # Nothing stands for the credential itself: each sign-in brings another.
        limits = replace(await self._limits.limits(principal.user, "", principal.org), api_key=None)
        session = Session(principal, holder, limits, issue, identity.digest, end)
        if revocations == self._revocations:
            self._remember(_name_of(identity), session)
        return session

    async def _note_use(self, row: ApiKeyRow) -> None:
        """Once a minute is enough to tell a key that nobody uses."""
        used = row.last_use_time
        if used is None or abs((self._clock.now() - used).total_seconds()) >= _USE_NOTED_EVERY_S:
            await self._store.used(row.key_id)

    async def _check_subject(self, holder: Holder) -> None:
        since = await self._store.disabled_since((holder.subject, holder.org))
        if since is not None:
            raise disabled(holder, *since)

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

    def _remember(self, name: str, session: Session) -> None:
        if self._cache_s <= 0:
            return
        self._sessions[name] = session
        self._sessions.move_to_end(name)
        if len(self._sessions) > self._cache_size:
            self._sessions.popitem(last=False)


def _holder(row: ApiKeyRow) -> Holder:
    return Holder(row.org, row.subject, row.name)


def disabled(holder: Holder, principal: str, since: datetime) -> LapsedKeyError:
    """Say that a verified credential counts no more because `principal` is disabled."""
    return LapsedKeyError(
        ERROR_REASON_PRINCIPAL_DISABLED,
        f"{principal} is disabled since {since.isoformat(timespec='seconds')}",
        holder,
    )


def _no_person(identity: Identity) -> RemitError:
    """Refuse a sign-in as a service account: its credentials are made here."""
    return RemitError(
        ERROR_REASON_IDENTITY_NOT_MAPPED,
        f"the token of {identity.issuer} names {identity.principal.user}, a service account, which"
        " has API keys and does not sign in",
    )


def _name_of(identity: Identity) -> str:
    """Of a session in memory; no id of an API key has a colon."""
    return f"token:{identity.digest.hex()}"


def _unknown(key: PresentedKey) -> RemitError:
    """Say the same for an unknown id and a wrong secret: neither is told from the other."""
    return RemitError(
        ERROR_REASON_CREDENTIAL_INVALID,
        f"{shown(key.key_id)} is not known here",
    )
