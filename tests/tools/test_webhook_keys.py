"""The keys that sign webhooks: one an org, the same on every replica, changed without a gap."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from remit.rpc.errors import RemitError
from remit.tools.webhook_keys import KEY_FILE, WebhookKeys, make_webhook_key

ACME, GLOBEX = "orgs/acme", "orgs/globex"
OLD, NEW = b"o" * 32, b"n" * 32
SIGNED = ("run_ended_1", 1_700_000_000, b'{"type":"run.ended"}')


def verifies(public_key: str, signature: str, signed: bytes) -> bool:
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key.removeprefix("whpk_")))
    assert signature.startswith("v1a,")
    try:
        key.verify(base64.b64decode(signature.removeprefix("v1a,")), signed)
    except InvalidSignature:
        return False
    return True


def test_a_signature_is_of_id_time_and_body_by_the_orgs_key() -> None:
    keys = WebhookKeys([OLD])
    [public] = keys.public(ACME)
    signature = keys.signature(ACME, *SIGNED)
    assert verifies(public, signature, b'run_ended_1.1700000000.{"type":"run.ended"}')
    assert not verifies(public, signature, b'run_ended_1.1700000001.{"type":"run.ended"}')
    assert not verifies(public, signature, b'run_ended_2.1700000000.{"type":"run.ended"}')
    assert not verifies(keys.public(GLOBEX)[0], signature, b"run_ended_1.1700000000." + SIGNED[2])


def test_every_replica_has_the_same_key_and_every_org_another() -> None:
    assert WebhookKeys([OLD]).public(ACME) == WebhookKeys([OLD]).public(ACME)
    assert WebhookKeys([OLD]).public(ACME) != WebhookKeys([NEW]).public(ACME)
    assert WebhookKeys([OLD]).public(ACME) != WebhookKeys([OLD]).public(GLOBEX)


def test_while_keys_change_a_message_is_signed_with_both() -> None:
    both = WebhookKeys([NEW, OLD])
    signed = b"run_ended_1.1700000000." + SIGNED[2]
    by_new, by_old = both.signature(ACME, *SIGNED).split(" ")
    assert verifies(WebhookKeys([NEW]).public(ACME)[0], by_new, signed)
    assert verifies(WebhookKeys([OLD]).public(ACME)[0], by_old, signed)
    assert both.public(ACME) == (*WebhookKeys([NEW]).public(ACME), *WebhookKeys([OLD]).public(ACME))


def test_the_secret_is_a_private_file_made_once(tmp_path: Path) -> None:
    path = make_webhook_key(tmp_path)
    assert path == tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    first = WebhookKeys.load([path]).public(ACME)
    assert WebhookKeys.load([make_webhook_key(tmp_path)]).public(ACME) == first
    path.chmod(0o644)
    with pytest.raises(RemitError, match="open to others"):
        WebhookKeys.load([path])


def test_without_a_secret_there_are_no_keys() -> None:
    none = WebhookKeys([])
    assert not none
    assert none.public(ACME) == ()
