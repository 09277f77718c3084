"""A certificate authority for one machine, and a certificate for each party of its mesh.

ECDSA P-256 keys; a leaf names its party twice, as SPIFFE-style URI (who the caller is) and as DNS
name (which server this is), and serves both ends of a connection. Leaves are renewed at a start of
the mesh when less than a third of their life is left. Keys are files of mode 0600.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from remit.local.state import StateDirectory, corrupt, private_folder, write_private
from remit.rpc.clock import Clock
from remit.rpc.contracts import AREAS
from remit.rpc.identity import dns_name, spiffe_id

PARTIES: Final = (*AREAS, "edge", "mesh", "cli")
LEAF_LIFE: Final = timedelta(days=365)
AUTHORITY_LIFE: Final = timedelta(days=3650)
_BACKDATE: Final = timedelta(minutes=5)
"""Certificates are valid a little before they are made, for clocks that lag."""


@dataclass(frozen=True)
class Certified:
    """A certificate and the key that it certifies."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def matches(self) -> bool:
        """Whether the key is the one in the certificate."""
        return self.certificate.public_key() == self.key.public_key()


def ensure_certificates(state: StateDirectory, clock: Clock) -> list[str]:
    """Makes the authority and every leaf that is missing or near its end.

    Returns the parties whose leaf is new.

    Raises:
        RemitError: DATA_CORRUPT naming a file that is no certificate or key.

    """
    folders = {party: state.tls_folder(party) for party in PARTIES}
    return ensure_leaves(state.folder / "ca", folders, clock)


def ensure_leaves(authority: Path, folders: Mapping[str, Path], clock: Clock) -> list[str]:
    """Makes the authority in its folder and a leaf in the folder of each party, where needed.

    Returns the parties whose leaf is new. Raises as `ensure_certificates`.
    """
    issuer = _authority(authority, clock)
    return [
        party for party, folder in folders.items() if _ensure_leaf(folder, party, issuer, clock)
    ]


def _authority(path: Path, clock: Clock) -> Certified:
    folder = private_folder(path)
    known = _read(folder / "ca.pem", folder / "key.pem")
    if known is not None:
        if not known.matches:
            raise corrupt(folder / "key.pem", f"it is not the key of {folder / 'ca.pem'};{_REMAKE}")
        if _fresh(known.certificate, clock):
            return known
    made = _make_authority(clock)
    _write(made, folder / "ca.pem", folder / "key.pem")
    return made


_REMAKE: Final = (
    " move the folders `ca` and `tls` away while the mesh is stopped, and `remit up` makes new ones"
)


def _ensure_leaf(path: Path, party: str, authority: Certified, clock: Clock) -> bool:
    folder = private_folder(path)
    files = folder / "cert.pem", folder / "key.pem"
    known = _read(*files)
    usable = (
        known is not None
        and known.matches
        and _issued_by(known.certificate, authority)
        and _fresh(known.certificate, clock)
    )
    if not usable:
        _write(_make_leaf(party, authority, clock), *files)
    write_private(folder / "ca.pem", authority.certificate.public_bytes(Encoding.PEM))
    return not usable


def _read(certificate_file: Path, key_file: Path) -> Certified | None:
    """The pair in two files, or None if one is missing."""
    if not (certificate_file.exists() and key_file.exists()):
        return None
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    except ValueError as error:
        raise corrupt(certificate_file, f"restore it, or{_REMAKE}") from error
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise corrupt(key_file, f"restore it, or{_REMAKE}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise corrupt(key_file, f"it holds another kind of key;{_REMAKE}")
    return Certified(certificate, key)


def _write(made: Certified, certificate_file: Path, key_file: Path) -> None:
    # Dying between the two leaves a pair that does not match, which the next start renews.
    write_private(
        key_file,
        made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    write_private(certificate_file, made.certificate.public_bytes(Encoding.PEM))


def _fresh(certificate: x509.Certificate, clock: Clock) -> bool:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - clock.now() > life / 3


def _issued_by(certificate: x509.Certificate, authority: Certified) -> bool:
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _make_authority(clock: Clock) -> Certified:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Remit local authority")
    builder = (
        _builder(name, name, key.public_key(), clock, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return Certified(builder.sign(key, hashes.SHA256()), key)


def _make_leaf(party: str, authority: Certified, clock: Clock) -> Certified:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(spiffe_id(party)), x509.DNSName(dns_name(party))]
    )
    usage = x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    builder = (
        _builder(_name(dns_name(party)), issuer.subject, key.public_key(), clock, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    return Certified(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    clock: Clock,
    life: timedelta,
) -> x509.CertificateBuilder:
    now = clock.now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
