"""A real SMTP server on loopback, which can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.ports import free_ports
from tests.tools.calls import NOON


@dataclass
class Mailbox:
    """What arrived, and how the server is to answer."""

    envelopes: list[Envelope] = field(default_factory=list)
    refused_recipients: set[str] = field(default_factory=set)
    data_reply: str = "250 OK"
    cut_after_data: bool = False
    hang_at_data: bool = False
    hang_at_recipient: bool = False
    asked_recipients: list[str] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def messages(self) -> list[Message]:
        return [message_from_bytes(e.original_content or b"") for e in self.envelopes]

    # ------------------------------------------------------------ what aiosmtpd asks its handler

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        self.asked_recipients.append(address)
        if self.hang_at_recipient:
            await self.release.wait()
        if address in self.refused_recipients:
            return "550 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:
        if self.hang_at_data:
            await self.release.wait()
        if self.cut_after_data:
            assert server.transport is not None
            server.transport.close()
            return "250 never seen"
        self.envelopes.append(envelope)
        return self.data_reply

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"opensesame", handled=False)


@contextlib.asynccontextmanager
async def smtp_server(
    mailbox: Mailbox, tls: ssl.SSLContext | None = None, *, login: bool = False
) -> AsyncIterator[int]:
    """Serves until the end of the body; yields the port."""
    (port,) = free_ports(1)
    loop = asyncio.get_running_loop()

    def protocol() -> SMTP:
        return SMTP(
            mailbox,
            loop=loop,
            hostname="mail.test",
            tls_context=tls,
            require_starttls=tls is not None,
            authenticator=mailbox.authenticate if login else None,
            auth_required=login,
        )

    server = await loop.create_server(protocol, "127.0.0.1", port)
    try:
        yield port
    finally:
        mailbox.release.set()
        server.close()
        await server.wait_closed()


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for 127.0.0.1, and the file that a client trusts it by."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    import ipaddress  # noqa: PLC0415 - nothing else here needs it

    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOON.replace(year=2020))
        .not_valid_after(NOON.replace(year=2090))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = folder / "mail.pem"
    key_pem = folder / "mail.key"
    pem.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    return context, pem
