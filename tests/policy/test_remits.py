"""Remits: what they say, and that nobody accepts one that was changed, swapped or is too old."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.guardrails import parse_wanted
from remit.policy.entities import Principal
from remit.policy.key_ring import KeyRing
from remit.policy.remits import RemitIssuer, principal_of
from remit.policy.runs import Registration
from remit.policy.signing import SigningKey
from remit.rpc.errors import RemitError
from remit.rpc.remits import MAX_TOKEN_BYTES, RemitVerifier, encode_claims
from tests.policy.world import ALICE, MovedClock, RandomIds, World

PRIVATE = Ed25519PrivateKey.generate()
RUN = "runs/01980000-0000-7000-8000-000000000001"
POLICY, TOOLS, AGENT, PUBLIC = (
    options_pb2.CALLER_POLICY,
    options_pb2.CALLER_TOOLS,
    options_pb2.CALLER_AGENT,
    options_pb2.CALLER_PUBLIC,
)
PRINCIPAL = Principal(ALICE, "orgs/acme", "orgs/acme/teams/core", ("admin", "member"))
REGISTRATION = Registration(
    run=RUN,
    subject=ALICE,
    team="orgs/acme/teams/core",
    roles=("member",),
    agent="agents/assistant",
    tools=("tools/calculator",),
    models=("models/rules",),
    account=f"orgs/acme/teams/core/users/alice/agents/assistant/{RUN}",
    max_cost_nanos=5_000,
)


class OneKey(KeyRing):
    """A ring with one key and no database."""

    def __init__(self) -> None:
        self._signing = SigningKey("k1", PRIVATE)

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        return PRIVATE.public_key() if key_id == "k1" else None


def issuer_and_verifier(clock: MovedClock) -> tuple[RemitIssuer, RemitVerifier]:
    keys = OneKey()
    return RemitIssuer(keys, clock, RandomIds(), lifetime_s=600), RemitVerifier(keys, clock)


async def test_a_clients_remit_says_who_and_pays_from_the_users_account(clock: MovedClock) -> None:
    issuer, verifier = issuer_and_verifier(clock)
    issued = issuer.for_client(PRINCIPAL, api_key="k", epoch=3)
    remit = await verifier.verify(issued.token, audience=TOOLS, presenter=PUBLIC)
    assert principal_of(remit) == Principal(
        PRINCIPAL.user, PRINCIPAL.org, PRINCIPAL.team, ("admin", "member")
    )
    assert remit.account == "orgs/acme/teams/core/users/alice"
    assert (remit.policy_epoch, remit.fencing_token, remit.is_run) == (3, 0, False)
    assert 599 <= issued.lifetime_s <= 600


async def test_a_runs_remit_is_the_agents_to_present_and_names_its_grants(
    clock: MovedClock,
) -> None:
    issuer, verifier = issuer_and_verifier(clock)
    token = issuer.for_run(REGISTRATION, 7, epoch=3).token
    remit = await verifier.verify(token, audience=TOOLS, presenter=AGENT)
    assert remit.tools == {"tools/calculator"}
    assert remit.models == {"models/rules"}
    assert (remit.fencing_token, remit.max_cost_nanos) == (7, 5_000)
    assert remit.account == REGISTRATION.account
    with pytest.raises(RemitError, match="presented by agent, not by public"):
        await verifier.verify(token, audience=TOOLS, presenter=PUBLIC)
    with pytest.raises(RemitError, match="not meant for agent"):
        await verifier.verify(token, audience=AGENT)


async def test_a_remit_never_outlives_the_credential_behind_it(clock: MovedClock) -> None:
    issuer, verifier = issuer_and_verifier(clock)
    end = clock.now() + timedelta(seconds=20)
    issued = issuer.for_client(PRINCIPAL, api_key="k", epoch=1, not_after=end)
    assert issued.lifetime_s <= 20
    clock.move(23)
    with pytest.raises(RemitError, match="expired"):
        await verifier.verify(issued.token, audience=TOOLS)


async def test_an_expired_remit_is_refused_even_if_it_was_accepted_before(
    clock: MovedClock,
) -> None:
    issuer, verifier = issuer_and_verifier(clock)
    token = issuer.for_client(PRINCIPAL, api_key="k", epoch=1).token
    await verifier.verify(token, audience=TOOLS)
    clock.move(603)
    with pytest.raises(RemitError, match="expired") as refused:
        await verifier.verify(token, audience=TOOLS)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID


def test_grants_that_do_not_fit_are_refused_rather_than_cut(clock: MovedClock) -> None:
    issuer, _ = issuer_and_verifier(clock)
    many = tuple(f"tools/{'x' * 60}{n}" for n in range(100))
    with pytest.raises(RemitError, match="too many tools") as refused:
        issuer.for_run(replace(REGISTRATION, tools=many), 1, epoch=1)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_TOO_LARGE


CLOCK = MovedClock()
TOKEN = issuer_and_verifier(CLOCK)[0].for_run(REGISTRATION, 1, epoch=1).token


@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, len(TOKEN) - 1), mask=st.integers(1, 127))
async def test_a_flipped_byte_anywhere_is_refused(position: int, mask: int) -> None:
    flipped = TOKEN[:position] + chr(ord(TOKEN[position]) ^ mask) + TOKEN[position + 1 :]
    await assert_refused(flipped)


async def test_every_flip_of_the_signature_is_refused() -> None:
    """Base64 has spare bits at its end: a second spelling of a signature must not pass either."""
    for position in range(TOKEN.rindex("."), len(TOKEN)):
        for bit in range(7):
            flipped = chr(ord(TOKEN[position]) ^ (1 << bit))
            await assert_refused(TOKEN[:position] + flipped + TOKEN[position + 1 :])


@settings(deadline=None)
@given(st.integers(0, len(TOKEN) - 1))
async def test_a_truncated_remit_is_refused(length: int) -> None:
    await assert_refused(TOKEN[:length])


@settings(deadline=None)
@given(st.text(max_size=300))
async def test_no_text_breaks_the_verifier(text: str) -> None:
    await assert_refused(text)


def segment(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
async def test_a_remit_without_a_signature_is_refused(algorithm: str) -> None:
    payload = TOKEN.split(".")[1]
    header = segment({"alg": algorithm, "typ": "JWT", "kid": "k1"})
    for signature in ("", TOKEN.rpartition(".")[2]):
        await assert_refused(f"{header}.{payload}.{signature}")


async def test_what_policy_wants_screened_cannot_be_taken_out_or_put_in() -> None:
    issuer = issuer_and_verifier(CLOCK)[0]
    wanted = parse_wanted("tools.personal_data.output=redact")
    token = issuer.for_run(REGISTRATION, 1, epoch=1, guardrails=wanted).token
    header, _, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["guardrails"] == wanted.claim
    without = {name: value for name, value in claims.items() if name != "guardrails"}
    for changed in (without, claims | {"guardrails": ""}, claims | {"guardrails": "secrets:00001"}):
        await assert_refused(f"{header}.{segment(changed)}.{signature}")
    await assert_refused(f"{header}.{TOKEN.split('.')[1]}.{signature}")
    remit = await issuer_and_verifier(CLOCK)[1].verify(token, audience=TOOLS)
    assert remit.guardrails == wanted.claim
    assert encode_claims(remit) == claims


async def test_the_public_key_is_no_secret_to_sign_with() -> None:
    claims = jwt.decode(TOKEN, options={"verify_signature": False})
    secret = PRIVATE.public_key().public_bytes_raw()
    forged = jwt.encode(claims, secret, algorithm="HS256", headers={"kid": "k1"})
    await assert_refused(forged)


async def test_a_remit_signed_again_by_another_key_or_under_another_id_is_refused() -> None:
    claims = jwt.decode(TOKEN, options={"verify_signature": False})
    other = Ed25519PrivateKey.generate()
    for key, key_id in ((other, "k1"), (PRIVATE, "k2"), (other, "k2")):
        await assert_refused(jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": key_id}))
    await assert_refused(jwt.encode(claims, PRIVATE, algorithm="EdDSA"))


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "somebody else"},
        {"aud": ["everybody"]},
        {"presenter": "unspecified"},
        {"account": "orgs/acme/users/bob"},
        {"sub": "root"},
        {"exp": "soon"},
        {"team": "orgs/other/teams/t"},
    ],
)
async def test_claims_that_make_no_sense_are_refused_though_signed(change: dict[str, Any]) -> None:
    claims = jwt.decode(TOKEN, options={"verify_signature": False}) | change
    await assert_refused(jwt.encode(claims, PRIVATE, algorithm="EdDSA", headers={"kid": "k1"}))


async def test_an_overlong_token_is_refused_before_it_is_read() -> None:
    await assert_refused("a" * (MAX_TOKEN_BYTES + 1))


async def assert_refused(token: str) -> None:
    verifier = issuer_and_verifier(CLOCK)[1]
    with pytest.raises(RemitError) as refused:
        await verifier.verify(token, audience=TOOLS)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID
    assert TOKEN.rpartition(".")[2] not in refused.value.message


async def test_the_token_under_test_is_good() -> None:
    verifier = issuer_and_verifier(CLOCK)[1]
    assert (await verifier.verify(TOKEN, audience=TOOLS)).run == RUN


async def test_claims_survive_the_wire(world: World) -> None:
    token = world.issuer.for_run(REGISTRATION, 2, epoch=4).token
    remit = await world.verifier.verify(token, audience=POLICY)
    assert encode_claims(remit) == jwt.decode(token, options={"verify_signature": False})
