"""Who is calling: the peer's certificate says, and for the gateway's mesh listener its word.

Identities are SPIFFE-style URIs `spiffe://remit.internal/<party>`. The mesh listener forwards the
caller's URI in exactly one x-forwarded-client-cert element; a service believes it only from a peer
that holds the mesh listener's own certificate. The edge listener has another certificate and
speaks for clients outside the mesh, nobody else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.rpc.errors import RemitError
from remit.rpc.parties import caller_of_label

TRUST_DOMAIN: Final = "remit.internal"
FORWARDED_KEY: Final = "x-forwarded-client-cert"
_SPIFFE: Final = re.compile(rf"spiffe://{re.escape(TRUST_DOMAIN)}/([a-z]+)")
_FORWARDED_URI: Final = re.compile(r"(?:^|;)URI=([^;,]*)")
_KNOWN_PEERS: Final = 256
"""Texts whose meaning is kept. The same few come with every call: one for each certificate."""
_MESH: Final = "mesh"
_EDGE: Final = "edge"


def spiffe_id(party: str) -> str:
    """`spiffe://remit.internal/<party>`; a party is an area, `edge` or `mesh`."""
    return f"spiffe://{TRUST_DOMAIN}/{party}"


def dns_name(party: str) -> str:
    """`<party>.remit.internal`: the DNS name in the party's certificate."""
    return f"{party}.{TRUST_DOMAIN}"


@dataclass(frozen=True)
class TlsIdentity:
    """This process's certificate, key and the authority that it trusts, all PEM."""

    ca: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def load(cls, folder: Path) -> TlsIdentity:
        """Reads ca.pem, cert.pem, key.pem. Raises CONFIGURATION_INVALID naming a missing one."""
        try:
            ca, certificate, key = (
                (folder / name).read_bytes() for name in ("ca.pem", "cert.pem", "key.pem")
            )
        except OSError as error:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
                f"the certificate folder is not complete: {error.filename}: {error.strerror}",
            ) from error
        return cls(ca, certificate, key)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server that demands a client certificate."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.ca,
            require_client_auth=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a client that presents its certificate."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca,
            private_key=self.key,
            certificate_chain=self.certificate,
        )


def caller_of(
    auth_context: Mapping[str, Iterable[bytes]], metadata: Iterable[tuple[str, str | bytes]]
) -> Caller.ValueType:
    """The party behind a call. Raises CALLER_NOT_ALLOWED if its certificate names none."""
    party = _party_of_certificate(auth_context)
    if party == _EDGE:
        return options_pb2.CALLER_PUBLIC
    if party == _MESH:
        party = _forwarded_party(metadata)
    try:
        caller = caller_of_label(party)
    except ValueError as error:
        raise _unknown() from error
    if caller == options_pb2.CALLER_PUBLIC:
        raise _unknown()
    return caller


def _party_of_certificate(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    uris = [uri.decode(errors="replace") for uri in auth_context.get("peer_spiffe_id", ())]
    party = _party_of_uri(uris[0]) if len(uris) == 1 else None
    if party is None:
        raise _unknown()
    return party


def _forwarded_party(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    elements = [str(value) for key, value in metadata if key == FORWARDED_KEY]
    party = _party_of_element(elements[0]) if len(elements) == 1 else None
    if party is None:
        raise _unknown()
    return party


@functools.lru_cache(_KNOWN_PEERS)
def _party_of_uri(uri: str) -> str | None:
    match = _SPIFFE.fullmatch(uri)
    return match[1] if match else None


@functools.lru_cache(_KNOWN_PEERS)
def _party_of_element(element: str) -> str | None:
    """The party of a forwarded certificate; None unless there is exactly one, with one URI."""
    uris = _FORWARDED_URI.findall(element)
    return _party_of_uri(uris[0]) if len(uris) == 1 and "," not in element else None


def _unknown() -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED,
        "the caller's certificate names no party of this mesh",
    )
