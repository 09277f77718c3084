"""Whose tokens are believed: the file of OIDC issuers, which the gateway and policy both read.

    issuers:
      - name: corporate
        issuer: https://login.example.com
        audiences: [remit]
        jwks_uri: https://login.example.com/keys
        user_claim: email
        org: acme

The gateway takes from it how a signature is checked, policy what the claims mean. An org belongs to
one issuer at most: otherwise one issuer's `alice` would be the other's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import pydantic
import yaml

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.rpc.envoy import TOKEN_FAULT_ENTRY
from remit.rpc.errors import RemitError

MAX_ISSUERS: Final = 20
MAX_JWKS_BYTES: Final = 65_536
_LEAST_RSA_BITS: Final = 2048
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_ASYMMETRIC: Final = frozenset({"RSA", "EC", "OKP"})

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""Every signature whose key can be public (RFC 7518, RFC 8037): no `none`, no shared secret."""
Claim = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=200)]
Value = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=400)]


class Issuer(pydantic.BaseModel):
    """An identity provider: how its tokens are checked, and whom they speak for."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str = pydantic.Field(
        pattern=r"^[a-z][a-z0-9-]{0,30}$", description="what logs and errors call it"
    )
    issuer: str = pydantic.Field(
        min_length=1, max_length=400, description="what `iss` must be, to the letter"
    )
    audiences: tuple[Value, ...] = pydantic.Field(
        min_length=1, max_length=20, description="`aud` must hold one of these"
    )
    jwks_uri: str = pydantic.Field(
        default="", max_length=400, description="where its public keys are, https://..."
    )
    jwks_file: str = pydantic.Field(
        default="", max_length=400, description="or a file with them, read with this one"
    )
    jwks_cache_s: int = pydantic.Field(
        default=300, ge=1, le=86_400, description="seconds after which the keys are fetched again"
    )
    jwks_ca_file: str = pydantic.Field(
        default="",
        max_length=400,
        description="whom to believe about jwks_uri, PEM; the system's authorities without it",
    )
    algorithms: tuple[Algorithm, ...] = pydantic.Field(
        default=("RS256", "ES256", "EdDSA"), min_length=1, description="signatures that count"
    )
    clock_skew_s: int = pydantic.Field(
        default=30, ge=1, le=300, description="seconds by which clocks may differ"
    )
    user_claim: Claim = pydantic.Field(
        default="sub", description="its value is the user's id; `email` must be verified"
    )
    org: str = pydantic.Field(default="", description="id of the org that all its users are in")
    org_claim: str = pydantic.Field(
        default="", max_length=200, description="or the claim that says which, by `orgs`"
    )
    orgs: dict[Value, str] = pydantic.Field(
        default_factory=dict, max_length=1000, description="org id by value of org_claim; no other"
    )
    team_claim: str = pydantic.Field(
        default="", max_length=200, description="claim with groups, of which `teams` names some"
    )
    teams: dict[Value, str] = pydantic.Field(
        default_factory=dict,
        max_length=1000,
        description="team id by group; of several groups the first here decides",
    )
    admin_claim: str = pydantic.Field(
        default="", max_length=200, description="claim with groups, of which `admins` are admins"
    )
    admins: tuple[Value, ...] = pydantic.Field(
        default=(), max_length=100, description="groups whose users have the role `admin`"
    )

    @pydantic.model_validator(mode="after")
    def _keys_are_somewhere(self) -> Self:
        if bool(self.jwks_uri) == bool(self.jwks_file):
            message = "state jwks_uri or jwks_file"
            raise ValueError(message)
        if self.jwks_uri:
            _check_uri(self.jwks_uri)
        return self

    @pydantic.model_validator(mode="after")
    def _maps_to_orgs(self) -> Self:
        if bool(self.org) == bool(self.org_claim) or bool(self.org_claim) != bool(self.orgs):
            message = "state org, or org_claim with orgs; what neither names is refused"
            raise ValueError(message)
        for pair in (("team_claim", "teams"), ("admin_claim", "admins")):
            if bool(getattr(self, pair[0])) != bool(getattr(self, pair[1])):
                message = f"state {pair[0]} and {pair[1]}, or neither"
                raise ValueError(message)
        for org in self.org_ids():
            names.org_name(org)
        for team in self.teams.values():
            names.team_name("o", team)
        if self.name == TOKEN_FAULT_ENTRY:
            message = f"an issuer cannot be named {TOKEN_FAULT_ENTRY}"
            raise ValueError(message)
        return self

    def org_ids(self) -> frozenset[str]:
        """Every org that its users may be in."""
        return frozenset(self.orgs.values()) or frozenset({self.org})


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    issuers: tuple[Issuer, ...] = pydantic.Field(default=(), max_length=MAX_ISSUERS)

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> Self:
        _once("name", (issuer.name for issuer in self.issuers))
        _once("issuer", (issuer.issuer for issuer in self.issuers))
        _once("org", (org for issuer in self.issuers for org in issuer.org_ids()))
        return self


def read_issuers(path: str | Path | None) -> tuple[Issuer, ...]:
    """Read the file; none without a path.

    Raises:
        RemitError: CONFIGURATION_INVALID naming the file and what is wrong with it.

    """
    if not path:
        return ()
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _invalid(path, " ".join(str(error).split())) from error
    try:
        return _File.model_validate(document).issuers
    except pydantic.ValidationError as error:
        raise _invalid(path, _first_fault(error)) from error


def read_jwks(issuer: Issuer) -> str:
    """The public keys of an issuer that names a file, as JSON.

    Raises:
        RemitError: CONFIGURATION_INVALID; it holds no keys, or one that is not public or too weak.

    """
    path = Path(issuer.jwks_file)
    try:
        if path.stat().st_size > MAX_JWKS_BYTES:
            raise _invalid(path, f"has more than {MAX_JWKS_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        document: Any = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise _invalid(path, f"cannot be read as a JWKS: {error}") from error
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not keys:
        raise _invalid(path, "holds no `keys` (RFC 7517)")
    for key in keys:
        if fault := _key_fault(key):
            raise _invalid(path, fault)
    return text


def _key_fault(key: object) -> str:
    if not isinstance(key, Mapping) or key.get("kty") not in _ASYMMETRIC:
        return "a key is neither RSA, EC nor OKP: only public keys check signatures here"
    if "d" in key:
        return "a key is private; write public keys alone"
    # Base64 without padding: six bits a character.
    if key["kty"] == "RSA" and len(str(key.get("n", ""))) * 6 < _LEAST_RSA_BITS:
        return f"an RSA key has less than {_LEAST_RSA_BITS} bits"
    return ""


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.port == 0 or not parts.hostname or parts.username or parts.fragment:
        message = "jwks_uri must be https://host[:port]/path"
        raise ValueError(message)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        message = "jwks_uri must be https; plain http is for this machine alone"
        raise ValueError(message)


def _once(what: str, values: Iterable[str]) -> None:
    twice = sorted(value for value, count in Counter(values).items() if count > 1)
    if twice:
        message = f"{what} {twice[0]} stands at two issuers"
        raise ValueError(message)


def _first_fault(error: pydantic.ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _invalid(path: str | Path, message: str) -> RemitError:
    return RemitError(ERROR_REASON_CONFIGURATION_INVALID, f"{path}: {message}")
