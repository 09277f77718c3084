"""The file of identity providers: what it may say, and what is told of a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.oidc import Issuer, read_issuers, read_jwks
from remit.rpc.errors import RemitError
from tests.identity_provider import IdentityProvider

GOOD: dict[str, Any] = {
    "name": "corporate",
    "issuer": "https://login.example.com",
    "audiences": ["remit"],
    "jwks_uri": "https://login.example.com/keys",
    "org": "acme",
}
OTHER: dict[str, Any] = GOOD | {"name": "other", "issuer": "https://o.example", "org": "beta"}


def write(folder: Path, *issuers: dict[str, Any]) -> Path:
    path = folder / "issuers.yaml"
    path.write_text(yaml.safe_dump({"issuers": list(issuers)}))
    return path


def fault(path: Path) -> str:
    with pytest.raises(RemitError) as caught:
        read_issuers(path)
    assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID
    assert str(path) in caught.value.message
    return caught.value.message


def test_a_good_file(tmp_path: Path) -> None:
    first, second = read_issuers(write(tmp_path, GOOD, OTHER))
    assert (first.name, first.user_claim, first.clock_skew_s) == ("corporate", "sub", 30)
    assert second.org_ids() == {"beta"}
    assert read_issuers("") == read_issuers(None) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audiences": []}, "audiences"),
        ({"jwks_uri": ""}, "jwks_uri or jwks_file"),
        ({"jwks_file": "x"}, "jwks_uri or jwks_file"),
        ({"jwks_uri": "http://login.example.com/keys"}, "https"),
        ({"jwks_uri": "https:///keys"}, "https://host"),
        ({"jwks_uri": "https://u:p@example.com/keys"}, "https://host"),
        ({"jwks_uri": "https://example.com:99999/keys"}, "ort"),
        ({"org": ""}, "org"),
        ({"org_claim": "tenant"}, "org"),
        ({"org": "", "org_claim": "tenant"}, "org"),
        ({"org": "a/b"}, "org"),
        ({"team_claim": "groups"}, "team_claim"),
        ({"teams": {"a": "b"}}, "team_claim"),
        ({"team_claim": "g", "teams": {"a": "b/c"}}, "team"),
        ({"admins": ["a"]}, "admin_claim"),
        ({"clock_skew_s": 0}, "clock_skew_s"),
        ({"clock_skew_s": 301}, "clock_skew_s"),
        ({"name": "fault"}, "named"),
        ({"name": "A.header"}, "name"),
        ({"secret": "x"}, "secret"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in fault(write(tmp_path, GOOD | change))


@pytest.mark.parametrize("same", ["name", "issuer", "org"])
def test_no_two_issuers_share_what_tells_them_apart(tmp_path: Path, same: str) -> None:
    assert f"{same} {GOOD[same]} stands at two" in fault(
        write(tmp_path, GOOD, OTHER | {same: GOOD[same]})
    )


def test_an_org_belongs_to_one_issuer_however_it_is_mapped(tmp_path: Path) -> None:
    mapped = OTHER | {"org": "", "org_claim": "tenant", "orgs": {"t": "acme"}}
    assert "org acme" in fault(write(tmp_path, GOOD, mapped))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "No such file" in fault(tmp_path / "nothing.yaml")
    path = tmp_path / "issuers.yaml"
    for text in ("issuers: {", "- a", "issuers: 7", "\x00"):
        path.write_text(text)
        fault(path)


def keys_of(folder: Path, document: object) -> str:
    path = folder / "keys.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_jwks(Issuer(**GOOD | {"jwks_uri": "", "jwks_file": str(path)}))


def test_only_public_keys_are_taken(tmp_path: Path) -> None:
    provider = IdentityProvider("i")
    rsa, curve = provider.add("RS256", "a").jwk, provider.add("EdDSA", "b").jwk
    assert json.loads(keys_of(tmp_path, {"keys": [rsa, curve]}))["keys"] == [rsa, curve]
    bad: tuple[object, ...] = (
        {},
        [],
        "{",
        "[" * 100_000,
        " " * 70_000,
        {"keys": []},
        {"keys": ["a"]},
        {"keys": [rsa, {"kty": "oct", "k": "c2VjcmV0"}]},
        {"keys": [rsa | {"d": "AQAB"}]},
        {"keys": [rsa | {"n": rsa["n"][:170]}]},
    )
    for document in bad:
        with pytest.raises(RemitError) as caught:
            keys_of(tmp_path, document)
        assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID
