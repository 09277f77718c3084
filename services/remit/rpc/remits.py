"""Remits: signed statements of what a subject may start, verified offline by everybody.

A remit is an EdDSA-signed JWT (RFC 7519, RFC 8037) of at most 4 KiB that lives for minutes. Policy
issues it; this module holds its claims, its encoding and its verification.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.parties import caller_label, caller_of_label

ISSUER: Final = "policy.remit.internal"
ALGORITHM: Final = "EdDSA"
MAX_TOKEN_BYTES: Final = 4096
LEEWAY_S: Final = 2.0
"""Tolerated difference between the clocks of issuer and verifier, in seconds."""
KEY_AGE_S: Final = 60.0
"""What was learnt of a key is trusted this long: a withdrawn key must not verify until a restart.

Keys live for days, so once a minute costs nothing. A listed key may be a minute old when a token is
verified, and that verification is remembered for another: it ends within two minutes.
"""
_CACHE_SIZE: Final = 4096


@dataclass(frozen=True)
class Remit:
    """What a verified token says."""

    remit_id: str
    subject: str
    """`orgs/{org}/users/{user}`: the principal."""
    team: str
    """`orgs/{org}/teams/{team}`, or empty."""
    agent: str
    """`agents/{agent}`, or empty for a client's own remit."""
    run: str
    """`runs/{run}`, or empty for a client's own remit."""
    presenter: Caller.ValueType
    """The party that may present it: PUBLIC for a client's, AGENT for a run's."""
    audience: frozenset[Caller.ValueType]
    """Services that may accept it."""
    tools: frozenset[str]
    """For a run: the tools it may call. A client's remit lists none; policy alone decides."""
    models: frozenset[str]
    """For a run: the models it may call. A client's remit lists none; policy alone decides."""
    account: str
    """Leaf account of the ledger that pays, by its whole path."""
    max_cost_nanos: int | None
    """The run's own money limit in nano-USD."""
    fencing_token: int
    """Token of the worker that owns the run; 0 outside runs."""
    policy_epoch: int
    roles: frozenset[str]
    key_id: str
    issue_time: datetime
    expire_time: datetime
    api_key: str = ""
    """Id of the API key that a client showed for it; empty for a run's."""
    outer_limits_nanos: tuple[int | None, ...] = ()
    """Of a sub-run: the limits of the runs above it, the outermost first."""
    permissions: frozenset[str] = frozenset()
    """For a client: the permissions of methods that it was issued for; methods of others refuse
    it. A run's remit lists none: it calls no method of clients."""
    guardrails: str = ""
    """What policy wants of guardrails on top of a service's settings, as `remit.guardrails` reads
    it; empty: nothing."""

    @property
    def org(self) -> str:
        """`orgs/{org}` of the subject."""
        return names.org_of(self.subject)

    @property
    def is_run(self) -> bool:
        """Whether it belongs to a run rather than to a client."""
        return bool(self.run)

    def offers_tool(self, tool: str) -> bool:
        """Whether the remit names the tool; a client's remit leaves that to policy."""
        return not self.is_run or tool in self.tools

    def offers_model(self, model: str) -> bool:
        """Whether the remit names the model; a client's remit leaves that to policy."""
        return not self.is_run or model in self.models


class KeySource(Protocol):
    """Finds the public key of a key id."""

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        """The key, or None if no such key signs remits. Raises RemitError if it cannot tell."""
        ...


class RemitVerifier:
    """Verifies tokens offline. A verified signature is remembered for a while.

    Times are checked each time.
    """

    def __init__(self, keys: KeySource, clock: Clock, *, cache_size: int = _CACHE_SIZE) -> None:
        self._keys = keys
        self._clock = clock
        self._cache_size = cache_size
        # With the monotonic seconds until which the signature is remembered.
        self._verified: OrderedDict[bytes, tuple[Remit, float]] = OrderedDict()

    async def verify(
        self,
        token: str,
        *,
        audience: Caller.ValueType,
        presenter: Caller.ValueType | None = None,
        grace_s: float = 0.0,
    ) -> Remit:
        """The remit inside `token`, if `audience` may accept it from `presenter` now.

        `presenter` None skips that check: the token arrived inside a request of a service that has
        already checked it. `grace_s`: so long ago it may have expired, where what began in time
        goes on. Raises REMIT_INVALID.
        """
        remit = await self._signed(token)
        self._check_time(remit, grace_s)
        if audience not in remit.audience:
            raise _invalid(f"the remit is not meant for {caller_label(audience)}")
        if presenter is not None and presenter != remit.presenter:
            raise _invalid(
                f"the remit may be presented by {caller_label(remit.presenter)},"
                f" not by {caller_label(presenter)}"
            )
        return remit

    async def _signed(self, token: str) -> Remit:
        if not token:
            raise _invalid("no remit was presented")
        if len(token) > MAX_TOKEN_BYTES:
            raise _invalid(f"the remit is longer than {MAX_TOKEN_BYTES} bytes")
        digest = hashlib.sha256(token.encode()).digest()
        known, until = self._verified.get(digest, _NOT_KNOWN)
        now = self._clock.monotonic()
        if known is None or now >= until:
            self._verified.pop(digest, None)
            known = await self._decode(token)
            self._remember(digest, known, now + KEY_AGE_S)
        return known

    async def _decode(self, token: str) -> Remit:
        """The remit of a token of ours: three segments, our algorithm, a known key's signature.

        Read here and not by the JWT library, which reads each token twice, byte by byte: a run's
        remit is verified in every service, and that was most of what it costs there (ADR 15).
        """
        try:
            signed, _, signature = token.rpartition(".")
            header, _, claims = signed.partition(".")
            said = _json_of(header)
        except ValueError as error:
            raise _invalid("the remit is malformed") from error
        if said.get("alg") != ALGORITHM or said.keys() - _HEADER_FIELDS:
            raise _invalid("the remit is malformed or of another algorithm")
        key_id = said.get("kid")
        key = await self._keys.public_key(key_id) if isinstance(key_id, str) else None
        if not isinstance(key_id, str) or key is None:
            raise _invalid("the remit is signed with a key that is not known")
        try:
            key.verify(_bytes_of(signature), signed.encode())
            return decode_claims(_json_of(claims), key_id)
        except (InvalidSignature, KeyError, TypeError, ValueError) as error:
            raise _invalid("the remit is malformed or its signature is wrong") from error

    def _check_time(self, remit: Remit, grace_s: float) -> None:
        now = self._clock.now().timestamp()
        late_s = now - remit.expire_time.timestamp()
        if late_s > LEEWAY_S + grace_s:
            raise _invalid(f"the remit expired {late_s:.0f} s ago")
        if remit.issue_time.timestamp() - now > LEEWAY_S:
            raise _invalid("the remit is not valid yet: the clocks differ")

    def _remember(self, digest: bytes, remit: Remit, until: float) -> None:
        self._verified[digest] = (remit, until)
        if len(self._verified) > self._cache_size:
            self._verified.popitem(last=False)


_NOT_KNOWN: Final = (None, 0.0)

_HEADER_FIELDS: Final = frozenset({"alg", "kid", "typ"})
"""What `encode_remit` writes. Anything else, such as `crit` or `b64`, changes what a JWS means."""


def _bytes_of(segment: str) -> bytes:
    """The bytes of one segment (RFC 7515, section 2). Raises ValueError.

    Only the one form that encodes them is taken, so that a token has no second spelling.
    """
    ascii_form = segment.encode("ascii")
    data = base64.b64decode(
        ascii_form + b"=" * (-len(ascii_form) % 4), altchars=b"-_", validate=True
    )
    if base64.urlsafe_b64encode(data).rstrip(b"=") != ascii_form:
        message = "a segment is not in base64url's canonical form"
        raise ValueError(message)
    return data


def _json_of(segment: str) -> dict[str, Any]:
    """The JSON object of one segment. Raises ValueError."""
    try:
        said = json.loads(_bytes_of(segment))
    except RecursionError as error:
        message = "a segment nests too deep"
        raise ValueError(message) from error
    if not isinstance(said, dict):
        message = "a segment is no JSON object"
        raise ValueError(message)  # noqa: TRY004 - of a text that arrived
    return said


def encode_remit(remit: Remit, key: Ed25519PrivateKey) -> str:
    """The signed token. Only policy calls this. Raises ValueError beyond 4 KiB."""
    token = jwt.encode(
        encode_claims(remit), key, algorithm=ALGORITHM, headers={"kid": remit.key_id}
    )
    if len(token) > MAX_TOKEN_BYTES:
        message = f"the remit has {len(token)} bytes; the limit is {MAX_TOKEN_BYTES}"
        raise ValueError(message)
    return token


def encode_claims(remit: Remit) -> dict[str, Any]:
    """The JWT claims of a remit: registered names of RFC 7519 first, then ours."""
    optional: dict[str, Any] = {}
    if remit.api_key:
        optional["api_key"] = remit.api_key
    if remit.outer_limits_nanos:
        optional["outer_limits"] = list(remit.outer_limits_nanos)
    if remit.permissions:
        optional["permissions"] = sorted(remit.permissions)
    if remit.guardrails:
        optional["guardrails"] = remit.guardrails
    return {
        "iss": ISSUER,
        "sub": remit.subject,
        "aud": sorted(caller_label(service) for service in remit.audience),
        "iat": int(remit.issue_time.timestamp()),
        "exp": int(remit.expire_time.timestamp()),
        "jti": remit.remit_id,
        "team": remit.team,
        "agent": remit.agent,
        "run": remit.run,
        "presenter": caller_label(remit.presenter),
        "tools": sorted(remit.tools),
        "models": sorted(remit.models),
        "account": remit.account,
        "max_cost_nanos": remit.max_cost_nanos,
        "fence": remit.fencing_token,
        "epoch": remit.policy_epoch,
        "roles": sorted(remit.roles),
    } | optional


def decode_claims(claims: dict[str, Any], key_id: str) -> Remit:
    """The remit of verified claims. Raises KeyError, TypeError or ValueError for others' claims."""
    if claims["iss"] != ISSUER:
        message = "another issuer"
        raise ValueError(message)
    remit = Remit(
        remit_id=str(claims["jti"]),
        subject=str(claims["sub"]),
        team=str(claims["team"]),
        agent=str(claims["agent"]),
        run=str(claims["run"]),
        presenter=caller_of_label(claims["presenter"]),
        audience=frozenset(caller_of_label(service) for service in claims["aud"]),
        tools=frozenset(claims["tools"]),
        models=frozenset(claims["models"]),
        account=str(claims["account"]),
        max_cost_nanos=claims["max_cost_nanos"],
        fencing_token=int(claims["fence"]),
        policy_epoch=int(claims["epoch"]),
        roles=frozenset(claims["roles"]),
        key_id=key_id,
        issue_time=datetime.fromtimestamp(claims["iat"], UTC),
        expire_time=datetime.fromtimestamp(claims["exp"], UTC),
        api_key=str(claims.get("api_key", "")),
        outer_limits_nanos=tuple(claims.get("outer_limits", ())),
        permissions=frozenset(claims.get("permissions", ())),
        guardrails=str(claims.get("guardrails", "")),
    )
    _check_account(remit)
    return remit


def _check_account(remit: Remit) -> None:
    if not names.is_account_of(
        remit.account, remit.subject, team=remit.team, agent=remit.agent, run=remit.run
    ):
        message = "the account is not the subject's"
        raise ValueError(message)
    if len(remit.outer_limits_nanos) != max(len(names.run_accounts(remit.account)) - 1, 0):
        message = "not every run on the account's path has its limit"
        raise ValueError(message)


def _invalid(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_REMIT_INVALID, message)
