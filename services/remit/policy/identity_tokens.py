"""Tokens of identity providers (OIDC): read, checked and mapped to whom they speak for. Pure.

The edge has checked the signature and says so in metadata that no client can write. What it checked
must be what was presented; everything but the signature is checked here again, so that a fault in
the gateway's configuration alone lets nobody in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf import json_format, struct_pb2

from remit import names
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_CREDENTIAL_INVALID,
    ERROR_REASON_IDENTITY_NOT_MAPPED,
    ERROR_REASON_IDENTITY_PROVIDER_UNAVAILABLE,
)
from remit.oidc import Issuer
from remit.policy.entities import Principal
from remit.rpc.envoy import TOKEN_FAULT_ENTRY, token_header_entry
from remit.rpc.errors import RemitError

MAX_TOKEN_CHARS: Final = 8192
ADMIN: Final = "admin"
MEMBER: Final = "member"
_PARTS: Final = 3
_SHOWN_CHARS: Final = 8
_MAX_GROUPS: Final = 1000
_LAST_TIME: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_NO_KEYS: Final = ("Jwks remote fetch is failed",)
"""What Envoy says where it is not the token's fault."""


@dataclass(frozen=True)
class PresentedToken:
    """A token in the right form, which proves nothing."""

    header: struct_pb2.Struct
    claims: struct_pb2.Struct
    digest: bytes


@dataclass(frozen=True)
class Identity:
    """Whom a checked token speaks for, and until when."""

    principal: Principal
    issuer: str
    digest: bytes
    expire_time: datetime


def is_token(text: str) -> bool:
    """Whether a credential is meant as a token: it has parts, and an API key has none."""
    return "." in text


def shown_token(text: str) -> str:
    """What may be shown of a token: the begin of its digest, by which it can be found again."""
    return f"jwt:{hashlib.sha256(text.encode()).hexdigest()[:_SHOWN_CHARS]}"


def parse_token(text: str) -> PresentedToken:
    """Read a token (RFC 7519, compact form) without believing it.

    Raises:
        RemitError: CREDENTIAL_INVALID.

    """
    if len(text) > MAX_TOKEN_CHARS:
        raise _invalid(f"the token has more than {MAX_TOKEN_CHARS} characters")
    parts = text.split(".")
    if len(parts) != _PARTS or not all(parts):
        raise _invalid("the token is not a signed JWT: it needs three parts that are not empty")
    header, claims, _ = (_bytes_of(part) for part in parts)
    return PresentedToken(
        _object_of(header, "head"),
        _object_of(claims, "claims"),
        hashlib.sha256(text.encode()).digest(),
    )


class IdentityTokens:
    """Knows the issuers."""

    def __init__(self, issuers: Iterable[Issuer]) -> None:
        self._issuers = {issuer.name: issuer for issuer in issuers}

    def identity(self, text: str, checked: struct_pb2.Struct, now: datetime) -> Identity:
        """Return whom a token speaks for; `checked` is what the edge found out about it.

        Raises:
            RemitError: CREDENTIAL_INVALID, IDENTITY_NOT_MAPPED, or IDENTITY_PROVIDER_UNAVAILABLE
                while the issuer's keys cannot be fetched.

        """
        if not self._issuers:
            raise _invalid(
                "no identity provider is configured here, so a token is no credential; present an"
                " API key"
            )
        token = parse_token(text)
        issuer = self._checked_by(token, checked)
        claims = json_format.MessageToDict(token.claims)
        self._check_head(issuer, token)
        _check_meant(issuer, claims)
        expire_time = _check_times(issuer, claims, now)
        return Identity(_principal(issuer, claims), issuer.name, token.digest, expire_time)

    def _checked_by(self, token: PresentedToken, checked: struct_pb2.Struct) -> Issuer:
        """The issuer whose signature the edge saw under exactly this token."""
        found = [name for name in self._issuers if name in checked.fields]
        if len(found) != 1:
            raise self._unchecked(token, checked)
        issuer, fields = self._issuers[found[0]], checked.fields
        head = fields[token_header_entry(issuer.name)].struct_value
        if fields[issuer.name].struct_value != token.claims or head != token.header:
            raise _invalid("what was presented is not the token that the edge has checked")
        return issuer

    def _unchecked(self, token: PresentedToken, checked: struct_pb2.Struct) -> RemitError:
        """Why the edge did not believe the token, in its own words where it has some."""
        named = token.claims.fields["iss"].string_value
        issuer = next((each for each in self._issuers.values() if each.issuer == named), None)
        if issuer is None:
            return _invalid("the token's issuer is none of those that are believed here")
        fault = checked.fields[TOKEN_FAULT_ENTRY].struct_value.fields["message"].string_value
        if fault in _NO_KEYS:
            return RemitError(
                ERROR_REASON_IDENTITY_PROVIDER_UNAVAILABLE,
                f"the public keys of {issuer.name} could not be fetched, so its tokens cannot be"
                " checked",
            )
        why = fault or "its form or signature is not one that counts"
        return _invalid(f"the edge refused the token of {issuer.name}: {why}")

    def _check_head(self, issuer: Issuer, token: PresentedToken) -> None:
        algorithm = token.header.fields["alg"].string_value
        if algorithm not in issuer.algorithms:
            raise _invalid(
                f"the token of {issuer.name} is not signed by {', '.join(issuer.algorithms)}"
            )


def _check_meant(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    if claims.get("iss") != issuer.issuer:
        raise _invalid(f"the token's issuer is not that of {issuer.name}")
    if not set(_values(claims.get("aud"))) & set(issuer.audiences):
        raise _invalid(f"the token of {issuer.name} is meant for another audience")


def _check_times(issuer: Issuer, claims: Mapping[str, Any], now: datetime) -> datetime:
    end, start = _time(claims, "exp"), _time(claims, "nbf")
    seconds = now.timestamp()
    if end is None:
        raise _invalid(f"the token of {issuer.name} does not say when it expires")
    if seconds >= end + issuer.clock_skew_s:
        raise _invalid(f"the token of {issuer.name} has expired")
    if start is not None and seconds < start - issuer.clock_skew_s:
        raise _invalid(f"the token of {issuer.name} is not valid yet")
    return datetime.fromtimestamp(end + issuer.clock_skew_s, UTC)


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(f"the token's `{name}` is no number of seconds")
    return min(float(value), _LAST_TIME - 1000)


def _principal(issuer: Issuer, claims: Mapping[str, Any]) -> Principal:
    org = _org(issuer, claims)
    user = claims.get(issuer.user_claim)
    if not isinstance(user, str) or not names.is_name("user", f"orgs/{org}/users/{user}"):
        raise _unmapped(issuer, f"its claim `{issuer.user_claim}` is no user's id")
    if issuer.user_claim == "email" and claims.get("email_verified") is not True:
        raise _unmapped(issuer, "its email address is not verified (`email_verified`)")
    groups = set(_values(claims.get(issuer.team_claim)))
    team = next((team for group, team in issuer.teams.items() if group in groups), "")
    admin = set(_values(claims.get(issuer.admin_claim))) & set(issuer.admins)
    return Principal(
        names.user_name(org, user),
        names.org_name(org),
        names.team_name(org, team) if team else "",
        (ADMIN,) if admin else (MEMBER,),
    )


def _org(issuer: Issuer, claims: Mapping[str, Any]) -> str:
    if issuer.org:
        return issuer.org
    stated = claims.get(issuer.org_claim)
    org = issuer.orgs.get(stated) if isinstance(stated, str) else None
    if org is None:
        raise _unmapped(issuer, f"its claim `{issuer.org_claim}` is none of those that are mapped")
    return org


def _values(claim: object) -> list[str]:
    """A claim that is one text or a list of them; whatever else it is says nothing."""
    values = claim if isinstance(claim, list) else [claim]
    return [value for value in values[:_MAX_GROUPS] if isinstance(value, str)]


def _bytes_of(part: str) -> bytes:
    """Base64 as tokens have it: of the URL's alphabet, without padding, each bit used."""
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise _invalid("the token is no JWT: a part of it is no base64") from error
    if base64.urlsafe_b64encode(data).decode().rstrip("=") != part:
        raise _invalid("the token is no JWT: a part of it is no base64 in its only form")
    return data


def _object_of(data: bytes, what: str) -> struct_pb2.Struct:
    fault = f"the token is no JWT: its {what} are no JSON object"
    try:
        found = json.loads(
            data, object_pairs_hook=_once_each, parse_float=_finite, parse_constant=_finite
        )
        if not isinstance(found, dict):
            raise _invalid(fault)
        return json_format.ParseDict(found, struct_pb2.Struct())
    except (ValueError, RecursionError, TypeError, json_format.ParseError) as error:
        raise _invalid(fault) from error


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        message = "no number of JSON"
        raise ValueError(message)
    return value


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose names differ: of two equal ones, each reader would take another."""
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a name stands twice"
        raise ValueError(message)
    return found


def _invalid(message: str) -> RemitError:
    return RemitError(ERROR_REASON_CREDENTIAL_INVALID, message)


def _unmapped(issuer: Issuer, why: str) -> RemitError:
    return RemitError(
        ERROR_REASON_IDENTITY_NOT_MAPPED,
        f"the token of {issuer.name} names nobody who is known here: {why}",
    )
