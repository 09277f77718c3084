"""Tokens of identity providers through a real Envoy and policy's own code, good ones and bad ones.

Two issuers: `corporate`, whose keys are in a file, and `cloud`, whose keys are fetched.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import yaml
from cryptography.hazmat.primitives import serialization

from remit.access import OPERATOR, UNVERIFIED
from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.oidc import read_issuers
from remit.policy.ext_authz import EdgeAuthorization
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit
from tests.conftest import PostgresCluster
from tests.gateway.conftest import World, running_world
from tests.identity_provider import IdentityProvider, SigningKey, localhost_tls
from tests.policy.world import ALICE, INTERVAL_S, MovedClock
from tests.policy.world import World as PolicyWorld
from tests.ports import free_ports
from tests.rest import Client
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIST_AGENTS = "/remit.api.agent.v1.AgentCatalogService/ListAgents"
CREATE_KEY = "/remit.api.policy.v1.PolicyAdminService/CreateApiKey"
OVER_TLS = ("private", "forged")
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")


@dataclass
class Edge:
    """The gateway with two issuers, before policy on a database."""

    world: World
    policy: PolicyWorld
    corporate: IdentityProvider
    cloud: IdentityProvider
    late: IdentityProvider
    """Whose page nothing serves until a test does."""
    private: IdentityProvider
    """Whose page is served over TLS, for which an authority of its own vouches."""
    forged: IdentityProvider
    """The same, but the edge was told of another authority."""

    async def call(self, token: str, *more: tuple[str, str], path: str = LIST_AGENTS) -> None:
        """Raises what the client reads."""
        method: Any = self.world.edge().unary_unary(path)
        metadata = (("authorization", f"Bearer {token}"), *more)
        try:
            await method(b"", metadata=metadata, timeout=60)
        except grpc.aio.AioRpcError as error:
            raise RemitError.from_rpc(error) from error

    async def admitted(self, token: str, *more: tuple[str, str]) -> Remit:
        """The remit that the service got in its place."""
        await self.call(token, *more)
        metadata = dict(self.world.seen[-1].metadata)
        assert "authorization" not in metadata
        return await self.policy.verifier.verify(
            str(metadata["remit-token"]),
            audience=options_pb2.CALLER_AGENT,
            presenter=options_pb2.CALLER_PUBLIC,
        )

    async def enters(self, token: str) -> bool:
        try:
            await self.call(token)
        except RemitError as error:
            if error.code not in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE}:
                raise
            return False
        return True

    async def refused(self, token: str, *more: tuple[str, str]) -> RemitError:
        seen = len(self.world.seen)
        with pytest.raises(RemitError) as caught:
            await self.call(token, *more)
        assert len(self.world.seen) == seen, "nothing passes"
        assert caught.value.next_step
        return caught.value


def issuers_file(
    folder: Path,
    corporate: IdentityProvider,
    cloud: IdentityProvider,
    late: IdentityProvider,
    over_tls: Sequence[IdentityProvider],
    authority: Path,
) -> Path:
    file = {
        "issuers": [
            {
                "name": "corporate",
                "issuer": corporate.issuer,
                "audiences": ["other", "remit"],
                "jwks_file": str(corporate.write(folder)),
                "algorithms": list(ALGORITHMS),
                "clock_skew_s": 30,
                "org": "acme",
                "team_claim": "groups",
                "teams": {"eng": "engineering", "ops": "operations"},
                "admin_claim": "groups",
                "admins": ["remit-admins"],
            },
            {
                "name": "cloud",
                "issuer": cloud.issuer,
                "audiences": ["remit"],
                "jwks_uri": f"http://127.0.0.1:{cloud.port}/keys",
                "jwks_cache_s": 1,
                "user_claim": "email",
                "org_claim": "tenant",
                "orgs": {"t-1": "beta", "t-2": "gamma"},
            },
            {
                "name": "late",
                "issuer": late.issuer,
                "audiences": ["remit"],
                "jwks_uri": f"http://127.0.0.1:{late.port}/keys",
                "jwks_cache_s": 1,
                "org": "delta",
            },
            *(
                {
                    "name": name,
                    "issuer": each.issuer,
                    "audiences": ["remit"],
                    "jwks_uri": f"https://localhost:{each.port}/keys",
                    "jwks_cache_s": 1,
                    "jwks_ca_file": str(authority),
                    "org": name,
                }
                for name, each in zip(OVER_TLS, over_tls, strict=True)
            ),
        ]
    }
    path = folder / "issuers.yaml"
    path.write_text(yaml.safe_dump(file))
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresCluster
) -> AsyncIterator[Edge]:
    folder = tmp_path_factory.mktemp("issuers")
    corporate = IdentityProvider("https://login.example.com")
    for algorithm in ALGORITHMS:
        corporate.add(algorithm, algorithm.lower())
    cloud = IdentityProvider("https://cloud.example.com")
    cloud.add("RS256", "first")
    late = IdentityProvider("https://late.example.com", port=free_ports(1)[0])
    late.add("ES256", "only")
    private, forged = (IdentityProvider(f"https://{name}.example.com") for name in OVER_TLS)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(cloud.serving())
        authorities = []
        for each in (private, forged):
            each.add("ES256", "only")
            own = folder / each.issuer.rpartition("/")[2]
            own.mkdir()
            tls, authority = localhost_tls(own)
            authorities.append(authority)
            await stack.enter_async_context(each.serving(tls))
        path = issuers_file(folder, corporate, cloud, late, (private, forged), authorities[0])
        dsn = postgres.dsn(await postgres.fresh("policy"), "remit_policy")
        database = await stack.enter_async_context(Database.open(dsn, pool_size=4))
        policy = await PolicyWorld.open(database, MovedClock())
        world = await stack.enter_async_context(running_world(folder, {}, oidc_file=str(path)))
        world.judge = EdgeAuthorization(
            policy.credentials,
            policy.policies,
            policy.accesses,
            SystemClock(),
            read_issuers(path),
        ).Check
        yield Edge(world, policy, corporate, cloud, late, private, forged)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_is_exchanged_for_a_remit(edge: Edge, algorithm: str) -> None:
    remit = await edge.admitted(edge.corporate.token(algorithm.lower()))
    assert (remit.subject, remit.team, remit.roles) == (ALICE, "", frozenset({"member"}))
    assert remit.api_key == ""


async def test_groups_say_team_and_role(edge: Edge) -> None:
    token = edge.corporate.token(sub="bob", groups=["ops", "eng", "else", "remit-admins"])
    remit = await edge.admitted(token)
    assert remit.subject == "orgs/acme/users/bob"
    assert remit.team == "orgs/acme/teams/engineering"
    assert remit.roles == {"admin"}
    await edge.call(token, path=CREATE_KEY)
    with pytest.raises(RemitError) as caught:
        await edge.call(edge.corporate.token(sub="bob"), path=CREATE_KEY)
    assert caught.value.reason == reasons.ERROR_REASON_PERMISSION_DENIED


async def test_a_claim_says_which_org_by_the_operators_list_alone(edge: Edge) -> None:
    who: dict[str, Any] = {"email": "carol@example.com", "email_verified": True}
    remit = await edge.admitted(edge.cloud.token(tenant="t-2", **who))
    assert remit.subject == "orgs/gamma/users/carol@example.com"
    for tenant in ("t-3", "gamma", "", ["t-2"], None):
        error = await edge.refused(edge.cloud.token(tenant=tenant, **who))
        assert error.reason == reasons.ERROR_REASON_IDENTITY_NOT_MAPPED, tenant
    for changes in ({"email_verified": False}, {"email_verified": "true"}, {"email": None}):
        claims: dict[str, Any] = {**who, **changes}
        error = await edge.refused(edge.cloud.token(tenant="t-2", **claims))
        assert error.reason == reasons.ERROR_REASON_IDENTITY_NOT_MAPPED, changes


def encoded(part: object) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unsigned(head: object, claims: object, signature: bytes = b"") -> str:
    return f"{encoded(head)}.{encoded(claims)}.{encoded(signature)}"


def by_public_key(provider: IdentityProvider, kid: str) -> list[str]:
    """HS256 with each form of the public key as the secret."""
    public = provider.keys[kid].private.public_key()
    forms = [
        public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
    ]
    forms += [forms[0].strip(), json.dumps(provider.keys[kid].jwk).encode()]
    head = {"alg": "HS256", "kid": kid, "typ": "JWT"}
    signed = f"{encoded(head)}.{encoded(provider.claims())}"
    return [
        f"{signed}.{encoded(hmac.new(form, signed.encode(), hashlib.sha256).digest())}"
        for form in forms
    ]


def bad_tokens(provider: IdentityProvider) -> dict[str, str]:
    now = int(time.time())
    good = provider.token()
    head, claims, signature = good.split(".")
    stranger = IdentityProvider(provider.issuer)
    stranger.add("RS256", "rs256")
    elsewhere = IdentityProvider("https://login.example.org")
    elsewhere.keys = provider.keys
    half = len(good) // 2
    bad = {
        "no json": f"{encoded(b'{')}.{claims}.{signature}",
        "claims that are a list": unsigned({"alg": "RS256"}, [], b"x"),
        "two parts": f"{head}.{claims}",
        "no signature": f"{head}.{claims}.",
        "four parts": f"{good}.{signature}",
        "truncated": good[:-8],
        "half": f"{good[:half]}.",
        "another's signature": f"{head}.{claims}.{provider.token(sub='bob').split('.')[2]}",
        "another's claims": f"{head}.{encoded(provider.claims(sub='bob'))}.{signature}",
        "re-signed by another key": stranger.token(),
        "expired": provider.token(exp=now - 31),
        "not valid yet": provider.token(nbf=now + 300),
        "never expires": provider.token(exp=None),
        "expires in words": provider.token(exp="tomorrow"),
        "another audience": provider.token(aud="elsewhere"),
        "no audience": provider.token(aud=None),
        "another issuer": elsewhere.token(),
        "an issuer with a slash more": provider.token(iss=provider.issuer + "/"),
        "no issuer": provider.token(iss=None),
        "an unknown kid": provider.token(head={"kid": "nobody"}),
        "another key's kid": provider.token("rs256", head={"kid": "es256"}),
        "none": unsigned({"alg": "none"}, provider.claims(), b"x"),
        "None": unsigned({"alg": "None", "kid": "rs256"}, provider.claims(), b"x"),
        "none, without a signature": unsigned({"alg": "none"}, provider.claims()),
        "no algorithm": unsigned({"kid": "rs256"}, provider.claims(), b"x"),
        "too long": provider.token(pad="x" * 6000),
    }
    for number, token in enumerate(by_public_key(provider, "rs256")):
        bad[f"HS256 with the public key ({number})"] = token
    return bad


async def test_bad_tokens_are_refused_told_and_in_the_log(edge: Edge) -> None:
    await edge.policy.accesses.flush()
    edge.policy.audit.events.clear()
    bad = bad_tokens(edge.corporate)
    for what, token in bad.items():
        error = await edge.refused(token)
        assert (what, error.reason_name) == (what, "CREDENTIAL_INVALID")
    edge.policy.clock.move(INTERVAL_S)
    await edge.policy.accesses.flush()
    told = [
        event
        for event in edge.policy.audit.events.values()
        if "CREDENTIAL_INVALID" in event.detail_json
    ]
    assert {(event.org, event.subject, event.outcome) for event in told} == {
        (OPERATOR, UNVERIFIED, event_pb2.OUTCOME_REFUSED)
    }
    details = [json.loads(event.detail_json) for event in told]
    assert sum(detail["count"] for detail in details) == len(bad)
    assert all(shown.startswith("jwt:") for detail in details for shown in detail["shown"])
    assert {detail["peer"] for detail in details} == {"127.0.0.1"}


@pytest.mark.parametrize("claim", [None, "", 7, ["alice"], "a/b", "../bob", "é", "a" * 101])
async def test_a_token_without_a_users_id_speaks_for_nobody(edge: Edge, claim: object) -> None:
    error = await edge.refused(edge.corporate.token("rs256", sub=claim))
    # Some Envoy refuses itself, as no form of a token.
    assert error.reason_name in {"IDENTITY_NOT_MAPPED", "CREDENTIAL_INVALID"}


async def test_why_a_token_is_refused_is_said(edge: Edge) -> None:
    now = int(time.time())
    said: tuple[tuple[dict[str, Any], str], ...] = (
        ({"exp": now - 31}, "expired"),
        ({"nbf": now + 300}, "not yet valid"),
        ({"aud": "elsewhere"}, "udience"),
        ({"iss": "https://nobody.example"}, "issuer"),
    )
    for changes, words in said:
        error = await edge.refused(edge.corporate.token(**changes))
        assert words in error.message, error.message


async def test_clocks_may_differ_by_what_the_operator_says(edge: Edge) -> None:
    now = int(time.time())
    # Neither bound is near: a slow machine must not decide.
    await edge.admitted(edge.corporate.token(nbf=now + 10))
    await edge.refused(edge.corporate.token(exp=now - 35))


async def test_what_a_client_says_of_itself_changes_nothing(edge: Edge) -> None:
    claims = json.dumps({"corporate": edge.corporate.claims(sub="root")})
    forged = (
        ("x-jwt-payload", encoded(edge.corporate.claims(sub="root"))),
        ("envoy.filters.http.jwt_authn", claims),
        ("x-remit-user", "orgs/acme/users/root"),
        ("x-forwarded-user", "root"),
        ("corporate", claims),
        ("remit-token", "forged"),
    )
    remit = await edge.admitted(edge.corporate.token(), *forged)
    assert remit.subject == ALICE
    stranger = IdentityProvider(edge.corporate.issuer, {"rs256": SigningKey("rs256", "RS256")})
    error = await edge.refused(stranger.token(), *forged)
    assert error.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID
    asked = edge.world.checks[-1].attributes.metadata_context.filter_metadata
    assert set(asked) <= {"envoy.filters.http.jwt_authn"}


async def test_a_token_counts_in_one_place_alone(edge: Edge) -> None:
    token, secret = edge.corporate.token(), await edge.policy.admin_secret()
    assert (await edge.admitted(secret)).api_key, "API keys work beside tokens"
    error = await edge.refused(token, ("x-api-key", secret))
    assert "one credential" in error.message
    method: Any = edge.world.edge().unary_unary(LIST_AGENTS)
    for metadata in (
        (("x-api-key", token),),
        (("authorization", token),),
        (("authorization", f"Basic {token}"),),
        (("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")),
        (("authorization", f"Bearer {secret} {token}"),),
        (("cookie", f"token={token}"),),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"", metadata=metadata, timeout=60)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    client = Client(str(edge.world.topology.edge))
    answer = await client.get(f"/v1/agents?access_token={token}")
    assert answer.status == 400, "no RPC has such a field"
    answer = await client.get("/v1/agents", authorization=f"bearer {edge.corporate.token()[:-4]}")
    assert answer.status == 401
    assert answer.error().reason == reasons.ERROR_REASON_CREDENTIAL_INVALID


async def test_a_users_name_in_any_case_of_the_scheme(edge: Edge) -> None:
    method: Any = edge.world.edge().unary_unary(LIST_AGENTS)
    token = edge.corporate.token()
    await method(b"", metadata=(("authorization", f"bearer {token}"),), timeout=60)


async def test_a_user_who_is_disabled_is_refused(edge: Edge) -> None:
    token = edge.corporate.token(sub="dave")
    await edge.admitted(token)
    await edge.policy.database.execute(
        "UPDATE principals SET disable_time = now() WHERE name = 'orgs/acme/users/dave'"
    )
    edge.policy.credentials.forget_all()
    error = await edge.refused(token)
    assert error.reason == reasons.ERROR_REASON_PRINCIPAL_DISABLED
    await edge.admitted(edge.corporate.token())


def of_carol(edge: Edge, kid: str) -> str:
    return edge.cloud.token(kid, tenant="t-1", email="carol@b.example", email_verified=True)


async def test_new_keys_of_a_provider_count_and_old_ones_stop(edge: Edge) -> None:
    await edge.admitted(of_carol(edge, "first"))
    old = of_carol(edge, "first")
    edge.cloud.add("ES256", "second")
    new = of_carol(edge, "second")

    await eventually(lambda: edge.enters(new), timeout_s=20)
    del edge.cloud.keys["first"]

    async def is_refused() -> bool:
        return not await edge.enters(old)

    await eventually(is_refused, timeout_s=20)
    error = await edge.refused(old)
    assert error.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID
    await edge.admitted(new)


async def test_without_the_providers_keys_nobody_of_it_enters(edge: Edge) -> None:
    token = edge.late.token()
    error = await edge.refused(token)
    assert error.reason == reasons.ERROR_REASON_IDENTITY_PROVIDER_UNAVAILABLE
    assert error.retryable
    assert "late" in error.message
    answer = await Client(str(edge.world.topology.edge)).get(
        "/v1/agents", authorization=f"Bearer {token}"
    )
    assert answer.status == 503
    assert answer.headers["retry-after"]
    await edge.admitted(edge.corporate.token())
    async with edge.late.serving():
        await eventually(lambda: edge.enters(token), timeout_s=30)
        error = await edge.refused(edge.late.token(exp=1))
        assert error.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID


async def test_keys_come_over_tls_from_whom_the_named_authority_vouches_for(edge: Edge) -> None:
    await eventually(lambda: edge.enters(edge.private.token()), timeout_s=30)
    remit = await edge.admitted(edge.private.token())
    assert remit.subject == "orgs/private/users/alice"
    # The other has had as long, and was asked nothing: its certificate is of nobody we know.
    error = await edge.refused(edge.forged.token())
    assert error.reason == reasons.ERROR_REASON_IDENTITY_PROVIDER_UNAVAILABLE
    assert (edge.private.asked > 0, edge.forged.asked) == (True, 0)


async def test_keys_that_were_fetched_count_through_an_outage(edge: Edge) -> None:
    edge.cloud.add("RS256", "third")
    token = of_carol(edge, "third")
    await eventually(lambda: edge.enters(token), timeout_s=30)
    edge.cloud.away, asked = True, edge.cloud.asked
    await eventually(lambda: edge.cloud.asked > asked + 1, timeout_s=30)
    await edge.admitted(token)
    edge.cloud.add("RS256", "fourth")
    error = await edge.refused(of_carol(edge, "fourth"))
    assert error.reason == reasons.ERROR_REASON_CREDENTIAL_INVALID
    edge.cloud.away = False
    await eventually(lambda: edge.enters(of_carol(edge, "fourth")), timeout_s=30)


async def test_a_flipped_bit_anywhere_is_refused(edge: Edge) -> None:
    """Head, claims and each bit of the signature that a last character could hide."""
    token = edge.corporate.token("eddsa")
    for position, character in enumerate(token):
        flipped = token[:position] + chr(ord(character) ^ 1) + token[position + 1 :]
        error = await edge.refused(flipped)
        assert (position, error.reason_name) == (position, "CREDENTIAL_INVALID")
    await edge.admitted(token)
