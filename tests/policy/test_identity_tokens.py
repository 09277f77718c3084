"""Tokens of identity providers as policy reads them: of a bad one comes a refusal, nothing else."""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.oidc import Issuer
from remit.policy.identity_tokens import (
    MAX_TOKEN_CHARS,
    IdentityTokens,
    is_token,
    parse_token,
    shown_token,
)
from remit.rpc.errors import RemitError
from tests.identity_provider import IdentityProvider

ISSUER = Issuer(
    name="corporate",
    issuer="https://login.example.com",
    audiences=("remit",),
    jwks_file="keys.json",
    algorithms=("EdDSA",),
    org="acme",
)
PROVIDER = IdentityProvider(ISSUER.issuer)
PROVIDER.add("EdDSA", "k")
GOOD = PROVIDER.token()
TOKENS = IdentityTokens([ISSUER])


def checked(
    token: str = GOOD, name: str = "corporate", head: dict[str, Any] | None = None
) -> struct_pb2.Struct:
    """What the edge says of a token whose signature holds."""
    parsed = parse_token(token)
    facts = {
        name: json_format.MessageToDict(parsed.claims),
        f"{name}.header": head or json_format.MessageToDict(parsed.header),
    }
    return json_format.ParseDict(facts, struct_pb2.Struct())


def refused(token: str, facts: struct_pb2.Struct, now: datetime | None = None) -> RemitError:
    with pytest.raises(RemitError) as caught:
        TOKENS.identity(token, facts, now or datetime.now(UTC))
    return caught.value


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_what_the_edge_has_checked_speaks_for_somebody() -> None:
    identity = TOKENS.identity(GOOD, checked(), datetime.now(UTC))
    assert identity.principal.user == "orgs/acme/users/alice"
    assert identity.issuer == "corporate"


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 127))
def test_a_flipped_byte_anywhere_is_refused(position: int, mask: int) -> None:
    """Of the head and the claims here, where the edge checked the good one.

    A flipped signature is the edge's to refuse: it then has nothing that it checked.
    """
    flipped = GOOD[:position] + chr(ord(GOOD[position]) ^ mask) + GOOD[position + 1 :]
    nothing = struct_pb2.Struct()
    assert refused(flipped, nothing).reason == reasons.ERROR_REASON_CREDENTIAL_INVALID
    if position < GOOD.rindex("."):
        assert refused(flipped, checked()).reason == reasons.ERROR_REASON_CREDENTIAL_INVALID


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
PART = st.text(max_size=40) | st.binary(max_size=60).map(part) | JSON.map(part)


@given(
    st.text(max_size=80)
    | st.lists(PART, min_size=2, max_size=4).map(".".join)
    | st.just("eyJ" + "[" * 4000 + ".e30.x")
)
def test_no_text_breaks_the_parser(text: str) -> None:
    shown_token(text)
    with contextlib.suppress(RemitError):  # and nothing else is ever raised
        parse_token(text)
        assert is_token(text)


CLAIMS = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | st.sampled_from(["alice", ISSUER.issuer, "remit", 1e300, -1e300, 4e9])
        for name in ("iss", "aud", "sub", "exp", "nbf", "iat", "email")
    },
)


@given(CLAIMS)
def test_no_claims_that_were_signed_break_the_mapping(claims: dict[str, Any]) -> None:
    given_claims = {"iss": ISSUER.issuer, "aud": "remit", "exp": 4e9, "sub": "alice"} | claims
    token = f"{part({'alg': 'EdDSA'})}.{part(given_claims)}.c2ln"
    with contextlib.suppress(RemitError):
        identity = TOKENS.identity(token, checked(token), datetime.now(UTC))
        assert given_claims["sub"] == identity.principal.user.rpartition("/")[2]
        assert given_claims["iss"] == ISSUER.issuer


def test_the_edge_must_have_checked_this_very_token() -> None:
    other = PROVIDER.token(sub="bob")
    for facts in (
        struct_pb2.Struct(),
        checked(other),
        checked(name="nobody"),
        json_format.ParseDict({"corporate": {"sub": "alice"}}, struct_pb2.Struct()),
        json_format.ParseDict({"corporate": "alice"}, struct_pb2.Struct()),
        checked(head={"alg": "none"}),
    ):
        assert refused(GOOD, facts).reason == reasons.ERROR_REASON_CREDENTIAL_INVALID


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iss": "https://login.example.org"}, "issuer is not that"),
        ({"aud": "elsewhere"}, "another audience"),
        ({"aud": None}, "another audience"),
        ({"aud": {"remit": 1}}, "another audience"),
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "when it expires"),
        ({"exp": True}, "no number"),
        ({"exp": "4000000000"}, "no number"),
        ({"nbf": 4_000_000_000}, "not valid yet"),
    ],
)
def test_whatever_the_edge_let_pass_is_checked_again(changes: dict[str, Any], words: str) -> None:
    claims = {k: v for k, v in (PROVIDER.claims() | changes).items() if v is not None}
    token = f"{part({'alg': 'EdDSA'})}.{part(claims)}.c2ln"
    error = refused(token, checked(token))
    assert words in error.message
    assert error.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256", "eddsa", "", None, 7])
def test_only_the_issuers_algorithms_count(algorithm: object) -> None:
    token = f"{part({'alg': algorithm})}.{part(PROVIDER.claims())}.c2ln"
    assert "not signed by EdDSA" in refused(token, checked(token)).message


def test_a_token_has_one_form() -> None:
    head, claims, signature = GOOD.split(".")
    twice = part(b'{"sub":"alice","sub":"bob"}')
    for text in (
        f"{head}=.{claims}.{signature}",
        f"{head}.{twice}.{signature}",
        f"{head}.{part(b'[1]')}.{signature}",
        f"{head}.{part(bytes([255]))}.{signature}",
        f"{head}.{claims}.{signature}\n",
        f"{head}.{claims}.{'x' * MAX_TOKEN_CHARS}",
    ):
        with pytest.raises(RemitError) as caught:
            parse_token(text)
        assert caught.value.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID


def test_without_an_issuer_a_token_is_no_credential() -> None:
    with pytest.raises(RemitError, match="no identity provider is configured"):
        IdentityTokens([]).identity(GOOD, checked(), datetime.now(UTC))


def test_no_message_holds_the_token() -> None:
    for error in (refused(GOOD, struct_pb2.Struct()), refused(GOOD[:-3] + ".", checked())):
        assert GOOD[-20:] not in error.message
    assert shown_token(GOOD)[4:] not in GOOD
