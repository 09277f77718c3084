"""The local authority: who a certificate names, when it is renewed, what damage does."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from remit.api.errors.v1 import error_reason_pb2
from remit.local.certificates import LEAF_LIFE, PARTIES, ensure_certificates
from remit.local.state import StateDirectory
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity


class MovableClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


def leaf(state: StateDirectory, party: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((state.tls_folder(party) / "cert.pem").read_bytes())


def authority(state: StateDirectory) -> x509.Certificate:
    return x509.load_pem_x509_certificate((state.folder / "ca" / "ca.pem").read_bytes())


@pytest.mark.parametrize("party", PARTIES)
def test_a_leaf_names_its_party_alone(
    state: StateDirectory, clock: MovableClock, party: str
) -> None:
    ensure_certificates(state, clock)
    certificate = leaf(state, party)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == [f"spiffe://remit.internal/{party}"]
    assert names.get_values_for_type(x509.DNSName) == [f"{party}.remit.internal"]
    public_key = certificate.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert public_key.curve.name == "secp256r1"
    certificate.verify_directly_issued_by(authority(state))
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca
    TlsIdentity.load(state.tls_folder(party)).server_credentials()


def test_keys_are_private(state: StateDirectory, clock: MovableClock) -> None:
    ensure_certificates(state, clock)
    keys = list(state.folder.rglob("key.pem"))
    assert len(keys) == len(PARTIES) + 1
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_a_second_start_changes_nothing(state: StateDirectory, clock: MovableClock) -> None:
    assert ensure_certificates(state, clock) == list(PARTIES)
    before = leaf(state, "cost")
    assert ensure_certificates(state, clock) == []
    assert leaf(state, "cost") == before


def test_a_leaf_is_renewed_long_before_its_end(state: StateDirectory, clock: MovableClock) -> None:
    ensure_certificates(state, clock)
    issuer, before = authority(state), leaf(state, "cost")
    clock.time += LEAF_LIFE * 2 / 3 + timedelta(days=1)
    assert clock.time < before.not_valid_after_utc
    assert ensure_certificates(state, clock) == list(PARTIES)
    assert authority(state) == issuer
    assert leaf(state, "cost").not_valid_after_utc > clock.time + LEAF_LIFE - timedelta(minutes=1)


def test_a_new_authority_renews_every_leaf(state: StateDirectory, clock: MovableClock) -> None:
    ensure_certificates(state, clock)
    for file in (state.folder / "ca").iterdir():
        file.rename(file.with_suffix(".old"))
    assert ensure_certificates(state, clock) == list(PARTIES)
    leaf(state, "cost").verify_directly_issued_by(authority(state))
    assert (state.tls_folder("cost") / "ca.pem").read_bytes() == (
        state.folder / "ca" / "ca.pem"
    ).read_bytes()


def test_dying_between_key_and_certificate_is_mended(
    state: StateDirectory, clock: MovableClock
) -> None:
    ensure_certificates(state, clock)
    other = (state.tls_folder("agent") / "key.pem").read_bytes()
    (state.tls_folder("cost") / "key.pem").write_bytes(other)
    assert ensure_certificates(state, clock) == ["cost"]


@pytest.mark.parametrize(
    "file", ["ca/ca.pem", "ca/key.pem", "tls/cost/cert.pem", "tls/cost/key.pem"]
)
def test_a_damaged_file_is_named_and_kept(
    state: StateDirectory, clock: MovableClock, file: str
) -> None:
    ensure_certificates(state, clock)
    damaged = state.folder / file
    damaged.write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(RemitError) as caught:
        ensure_certificates(state, clock)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT
    assert str(damaged) in caught.value.message
    assert "remit up" in caught.value.message
    assert damaged.read_bytes() == b"-----BEGIN NOTHING-----"


def test_a_key_of_another_authority_is_refused(state: StateDirectory, clock: MovableClock) -> None:
    ensure_certificates(state, clock)
    other = (state.tls_folder("agent") / "key.pem").read_bytes()
    (state.folder / "ca" / "key.pem").write_bytes(other)
    with pytest.raises(RemitError, match="key of") as caught:
        ensure_certificates(state, clock)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT
