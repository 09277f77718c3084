"""Who the gateway is and whom it believes: TLS 1.3 with a certificate on both sides.

The edge and the mesh listener have certificates of their own, because a service grants them
different things: the edge speaks for clients, the mesh listener forwards the identity of a service.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from envoy_data_plane.envoy.config.core.v3 import DataSource, TransportSocket
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    DownstreamTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from remit.rpc.identity import TRUST_DOMAIN, dns_name, spiffe_id

SYSTEM_AUTHORITIES: Final = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian, its descendants and Envoy's own images keep whom they believe."""
_SOCKET: Final = "envoy.transport_sockets.tls"
# An upstream connection needs the maximum as well: the default allows TLS 1.2 at most.
_TLS_1_3: Final = TlsParameters(
    tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
    tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
)


def upstream_tls(tls_dir: str, party: str, area: str) -> TransportSocket:
    """Connects as `party` (edge or mesh) to replicas of `area`, and to nobody else."""
    only_this_area = StringMatcher(exact=spiffe_id(area))
    context = UpstreamTlsContext(
        common_tls_context=_common(tls_dir, party, only_this_area),
        sni=dns_name(area),
    )
    return TransportSocket(name=_SOCKET, typed_config=Any.pack(context))


def mesh_downstream_tls(tls_dir: str) -> TransportSocket:
    """Accepts whoever has a certificate of this mesh."""
    any_party = StringMatcher(prefix=f"spiffe://{TRUST_DOMAIN}/")
    context = DownstreamTlsContext(
        common_tls_context=_common(tls_dir, "mesh", any_party),
        require_client_certificate=True,
    )
    return TransportSocket(name=_SOCKET, typed_config=Any.pack(context))


def public_tls(host: str, ca_file: str = "") -> TransportSocket:
    """Connects to a server outside the mesh that proves to be `host`, without a certificate.

    It is believed by the authorities in `ca_file`, else by the system's.
    """
    context = CertificateValidationContext(
        trusted_ca=DataSource(filename=ca_file or SYSTEM_AUTHORITIES),
        match_typed_subject_alt_names=[
            SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=host))
            for kind in (SubjectAltNameMatcherSanType.DNS, SubjectAltNameMatcherSanType.IP_ADDRESS)
        ],
    )
    tls = CommonTlsContext(
        tls_params=TlsParameters(
            tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2,
            tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
        ),
        validation_context=context,
    )
    return TransportSocket(
        name=_SOCKET,
        typed_config=Any.pack(UpstreamTlsContext(common_tls_context=tls, sni=host)),
    )


def _common(tls_dir: str, party: str, peer: StringMatcher) -> CommonTlsContext:
    folder = PurePosixPath(tls_dir) / party
    return CommonTlsContext(
        tls_params=_TLS_1_3,
        tls_certificates=[
            TlsCertificate(
                certificate_chain=DataSource(filename=str(folder / "cert.pem")),
                private_key=DataSource(filename=str(folder / "key.pem")),
            )
        ],
        validation_context=CertificateValidationContext(
            trusted_ca=DataSource(filename=str(folder / "ca.pem")),
            match_typed_subject_alt_names=[
                SubjectAltNameMatcher(san_type=SubjectAltNameMatcherSanType.URI, matcher=peer)
            ],
        ),
        alpn_protocols=["h2"],
    )
