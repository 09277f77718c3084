"""Remits: what verifies, and what never does."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit, RemitVerifier, encode_claims, encode_remit

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RUN = "runs/01980000-0000-7000-8000-000000000000"
REMIT = Remit(
    remit_id="r1",
    subject="orgs/acme/users/alice",
    team="orgs/acme/teams/core",
    agent="agents/assistant",
    run=RUN,
    presenter=options_pb2.CALLER_AGENT,
    audience=frozenset({options_pb2.CALLER_TOOLS, options_pb2.CALLER_COST}),
    tools=frozenset({"tools/calculator"}),
    models=frozenset({"models/builtin-rules"}),
    account=f"orgs/acme/teams/core/users/alice/agents/assistant/{RUN}",
    max_cost_nanos=5,
    fencing_token=3,
    policy_epoch=7,
    roles=frozenset({"member"}),
    key_id="k1",
    issue_time=NOW,
    expire_time=NOW + timedelta(minutes=5),
)


class Keys:
    """One key, and how often it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        self.asked += 1
        return KEY.public_key() if key_id == "k1" else None


class StillClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


async def verified(
    token: str,
    audience: Caller.ValueType = options_pb2.CALLER_TOOLS,
    presenter: Caller.ValueType | None = None,
) -> Remit:
    verifier = RemitVerifier(Keys(), StillClock())
    return await verifier.verify(token, audience=audience, presenter=presenter)


async def refused(
    token: str,
    words: str,
    audience: Caller.ValueType = options_pb2.CALLER_TOOLS,
    presenter: Caller.ValueType | None = None,
) -> None:
    with pytest.raises(RemitError, match=words) as caught:
        await verified(token, audience, presenter)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID


async def test_a_remit_says_the_same_to_everybody() -> None:
    token = encode_remit(REMIT, KEY)
    assert await verified(token, presenter=options_pb2.CALLER_AGENT) == REMIT


async def test_another_audience_or_presenter_is_refused() -> None:
    token = encode_remit(REMIT, KEY)
    await refused(token, "not meant for policy", audience=options_pb2.CALLER_POLICY)
    await refused(token, "by agent, not by public", presenter=options_pb2.CALLER_PUBLIC)


async def test_time_is_checked_each_time() -> None:
    clock, keys = StillClock(), Keys()
    verifier = RemitVerifier(keys, clock)
    token = encode_remit(replace(REMIT, expire_time=NOW + timedelta(seconds=20)), KEY)
    await verifier.verify(token, audience=options_pb2.CALLER_TOOLS)
    clock.time = NOW + timedelta(seconds=30)
    with pytest.raises(RemitError, match="expired 10 s ago"):
        await verifier.verify(token, audience=options_pb2.CALLER_TOOLS)
    clock.time = NOW - timedelta(seconds=10)
    with pytest.raises(RemitError, match="not valid yet"):
        await verifier.verify(token, audience=options_pb2.CALLER_TOOLS)
    assert keys.asked == 1, "the signature was checked once"


async def test_another_key_or_algorithm_is_refused() -> None:
    claims = encode_claims(REMIT)
    await refused(encode_remit(REMIT, OTHER_KEY), "signature")
    await refused(encode_remit(replace(REMIT, key_id="k2"), KEY), "not known")
    none = jwt.encode(claims, "", algorithm="none", headers={"kid": "k1"})
    await refused(none, "malformed")
    weak = jwt.encode(claims, "s" * 32, algorithm="HS256", headers={"kid": "k1"})
    await refused(weak, "malformed")
    await refused(jwt.encode(claims, KEY, algorithm="EdDSA"), "not known")


# JSON that nests deeper than a parser may go, in the header of a token of allowed length.
DEEP = base64.urlsafe_b64encode(b"[" * 2500).decode().rstrip("=") + ".e30.x"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "." * 10, "x" * 5000, "é.ü.ß", DEEP])
async def test_what_is_no_token_is_refused(token: str) -> None:
    await refused(token, "remit")


@given(st.data())
async def test_a_flipped_bit_anywhere_is_refused(data: st.DataObject) -> None:
    token = encode_remit(REMIT, KEY)
    parts = token.split(".")
    which = data.draw(st.integers(0, 2))
    raw = bytearray(base64.urlsafe_b64decode(parts[which] + "=" * (-len(parts[which]) % 4)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    parts[which] = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    with pytest.raises(RemitError):
        await verified(".".join(parts))


def respelt(segment: str, how: str) -> str:
    """The same bytes in another spelling, or nearly."""
    if how == "padded":
        return segment + "=" * (-len(segment) % 4 or 4)
    if how == "line":
        return segment[:4] + "\n" + segment[4:]
    if how == "standard":
        return segment.replace("-", "+").replace("_", "/") + "+"
    # The last character of a segment may hold bits that no byte needs.
    return segment[:-1] + chr(ord(segment[-1]) + 1)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("how", ["padded", "line", "standard", "loose bits"])
async def test_a_token_has_one_spelling(which: int, how: str) -> None:
    parts = encode_remit(REMIT, KEY).split(".")
    parts[which] = respelt(parts[which], how)
    await refused(".".join(parts), "remit")


@pytest.mark.parametrize(
    "more", [{"crit": ["b64"], "b64": False}, {"crit": []}, {"jwk": {}}, {"x5u": "https://x"}]
)
async def test_a_header_that_says_more_is_refused(more: dict[str, object]) -> None:
    header = {"alg": "EdDSA", "kid": "k1", "typ": "JWT"} | more
    await refused(signed(header, encode_claims(REMIT)), "malformed")


def signed(header: object, claims: object) -> str:
    """A token with our key's signature over any header and claims."""
    parts = (base64.urlsafe_b64encode(json.dumps(p).encode()) for p in (header, claims))
    body = b".".join(part.rstrip(b"=") for part in parts)
    return f"{body.decode()}.{base64.urlsafe_b64encode(KEY.sign(body)).decode().rstrip('=')}"


HEADERS = st.fixed_dictionaries(
    {"alg": st.sampled_from(["EdDSA", "EdDSA", "none", "HS256", "eddsa", 1])},
    optional={
        "kid": st.sampled_from(["k1", "k2", "", 1, None]),
        "typ": st.sampled_from(["JWT", "at+jwt"]),
        "cty": st.just("JWT"),
    },
)


@given(HEADERS, st.data())
async def test_what_our_reader_takes_the_library_takes_too(
    header: dict[str, object], data: st.DataObject
) -> None:
    parts = signed(header, encode_claims(REMIT)).split(".")
    which, at = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 40))
    if data.draw(st.booleans()):
        swap = data.draw(st.sampled_from("Aaz09-_=+/. \n"))
        parts[which] = parts[which][:at] + swap + parts[which][at + 1 :]
    token = ".".join(parts)
    try:
        remit = await verified(token)
    except RemitError:
        return
    claims = jwt.decode(
        token,
        KEY.public_key(),
        algorithms=["EdDSA"],
        options={"verify_exp": False, "verify_aud": False},
    )
    assert claims == encode_claims(remit)


@pytest.mark.parametrize(
    "claim", ["iss", "sub", "aud", "exp", "jti", "account", "presenter", "fence", "roles"]
)
async def test_a_token_of_ours_without_a_claim_is_refused(claim: str) -> None:
    claims = encode_claims(REMIT)
    del claims[claim]
    token = jwt.encode(claims, KEY, algorithm="EdDSA", headers={"kid": "k1"})
    await refused(token, "malformed")


async def test_the_account_must_be_the_subjects() -> None:
    claims = encode_claims(REMIT) | {"account": "orgs/other/users/alice"}
    token = jwt.encode(claims, KEY, algorithm="EdDSA", headers={"kid": "k1"})
    await refused(token, "malformed")


def test_a_remit_has_at_most_four_kibibytes() -> None:
    many = replace(REMIT, tools=frozenset(f"tools/{n:050d}" for n in range(100)))
    with pytest.raises(ValueError, match="limit"):
        encode_remit(many, KEY)
    assert len(json.dumps(encode_claims(REMIT))) < 1500


def test_a_run_is_offered_what_its_remit_names_and_a_client_what_policy_allows() -> None:
    assert REMIT.offers_tool("tools/calculator")
    assert not REMIT.offers_tool("tools/send_email")
    assert not REMIT.offers_model("models/gpt")
    client = replace(REMIT, run="", tools=frozenset(), models=frozenset())
    assert client.offers_tool("tools/send_email")
    assert client.offers_model("models/gpt")
