"""An identity provider on this machine: keys of every kind, tokens, and a page with its keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from tests.ports import free_ports

AUDIENCE = "remit"
_MAKERS: Mapping[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(65_537, 2048),
    "PS256": lambda: rsa.generate_private_key(65_537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


def localhost_tls(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS as `localhost`, and the file of the authority that vouches for it: itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "localhost.pem", folder / "localhost.key"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public


@dataclass
class SigningKey:
    """A private key, and how the provider's page shows its public half."""

    kid: str
    algorithm: str
    private: Any = None

    def __post_init__(self) -> None:
        self.private = self.private or _MAKERS[self.algorithm]()

    @property
    def jwk(self) -> dict[str, Any]:
        of_kind = get_default_algorithms()[self.algorithm]
        public: Any = self.private.public_key()
        shown: dict[str, Any] = json.loads(of_kind.to_jwk(public))
        return {
            **{name: value for name, value in shown.items() if name != "key_ops"},
            "kid": self.kid,
            "alg": self.algorithm,
            "use": "sig",
        }


@dataclass
class IdentityProvider:
    """Signs whatever a test wants."""

    issuer: str
    keys: dict[str, SigningKey] = field(default_factory=dict)
    port: int = 0
    asked: int = 0
    """How often its page was asked for, whether it answered or not."""
    away: bool = False

    def add(self, algorithm: str, kid: str) -> SigningKey:
        self.keys[kid] = SigningKey(kid, algorithm)
        return self.keys[kid]

    def jwks(self) -> str:
        return json.dumps({"keys": [key.jwk for key in self.keys.values()]})

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.issuer.rpartition('/')[2]}.jwks"
        path.write_text(self.jwks())
        return path

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims of Alice with changes; what is changed to None is not there."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "alice",
            "iat": now,
            "exp": now + 3600,
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, kid: str = "", *, head: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """A token signed by the key `kid`, else the first."""
        key = self.keys[kid or next(iter(self.keys))]
        headers = {"kid": key.kid, **(head or {})}
        return jwt.encode(self.claims(**changes), key.private, key.algorithm, headers=headers)

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Serve the keys; the address of the page. While `away`, connections are cut."""
        self.port = self.port or free_ports(1)[0]
        server = await asyncio.start_server(self._answer, "127.0.0.1", self.port, ssl=tls)
        try:
            yield f"http://127.0.0.1:{self.port}/keys"
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if not self.away:
                body = self.jwks().encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
                writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()
