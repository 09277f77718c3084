"""What an installation must keep to itself, in one folder with a part for each party.

    ca/                  the authority's certificate and key; whoever renews certificates needs it
    AREA/tls/            ca.pem, cert.pem and key.pem of a service
    AREA/secrets/        REMIT_AREA_DSN, and the key files of audit and policy
    gateway/tls/edge/    certificate of the gateway's edge listener; mesh/ of its mesh listener
    setup/secrets/       DSNs of every role: who makes and migrates databases needs them
    postgres/secrets/    password of the superuser, for a PostgreSQL that the installation runs

Whoever has a DSN that verifies PostgreSQL's certificate has postgres-ca.pem beside it.

A party is given its own part and nothing else, as a volume or as Secrets. Files are made once and
never overwritten, except certificates near their end: new keys beside old databases would break
them without a word.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from remit.api.errors.v1 import error_reason_pb2
from remit.local.certificates import ensure_leaves
from remit.local.databases import FURTHER, owner_of, service_role
from remit.local.state import private_folder, read_small, write_private
from remit.postgres import DATABASES
from remit.rpc.clock import Clock
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError

GATEWAY: Final = "gateway"
SETUP: Final = "setup"
POSTGRES: Final = "postgres"
LISTENERS: Final = ("edge", "mesh")
ADMIN_DSN: Final = "REMIT_ADMIN_DSN"
SECRETS_MOUNT: Final = PurePosixPath("/etc/remit/secrets")
"""Where a container finds its party's secrets."""
DATABASE_AUTHORITY: Final = "postgres-ca.pem"
PASSWORD_FILE: Final = "password"  # noqa: S105 - a file's name
_PASSWORD_BYTES: Final = 32


@dataclass(frozen=True)
class Server:
    """Where PostgreSQL is and how connections to it are secured."""

    address: str
    parameters: tuple[tuple[str, str], ...] = ()

    def dsn(self, role: str, password: str, database: str) -> str:
        """A DSN for one role."""
        query = f"?{urlencode(self.parameters)}" if self.parameters else ""
        return f"postgresql://{role}:{password}@{self.address}/{database}{query}"


class Installation:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tls_folders(self) -> dict[str, Path]:
        """Where each party's certificate lies."""
        folders = {area: self.folder / area / "tls" for area in AREAS}
        return folders | {name: self.folder / GATEWAY / "tls" / name for name in LISTENERS}

    def secrets_folder(self, party: str) -> Path:
        """Folder of a party's secrets, made if it is missing."""
        return private_folder(self.folder / party / "secrets")

    def ensure_certificates(self, clock: Clock) -> list[str]:
        """Makes the authority and what certificates are missing or near their end."""
        folders = self.tls_folders()
        for folder in folders.values():
            private_folder(folder)
        return ensure_leaves(self.folder / "ca", folders, clock)

    def ensure_keys(self) -> None:
        """Makes the key files of policy, tools and audit.

        Raises:
            RemitError: CONFIGURATION_INVALID for files that are there in part, or damaged.

        """
        from remit.audit.key_files import make_log_keys  # noqa: PLC0415 - slow
        from remit.policy.key_files import make_keys, make_pepper  # noqa: PLC0415 - slow
        from remit.tools.webhook_keys import make_webhook_key  # noqa: PLC0415 - slow

        policy = self.secrets_folder("policy")
        make_pepper(policy)
        make_keys(policy)
        make_webhook_key(self.secrets_folder("tools"))
        # They come into being together with their folder, so they are made before anything else
        # lies in it; a folder that lost them is refused.
        private_folder(self.folder / "audit")
        make_log_keys(self.folder / "audit" / "secrets")

    def ensure_dsns(self, server: Server) -> None:
        """Makes a password for every role, and the DSNs with them."""
        setup = self.secrets_folder(SETUP)
        for database in DATABASES:
            for variable, role in (
                (owner_variable(database), owner_of(database)),
                (service_variable(database), service_role(database)),
            ):
                dsn = server.dsn(role, secrets.token_hex(_PASSWORD_BYTES), f"remit_{database}")
                _keep(setup / variable, f"{dsn}\n")
            self._hand_on(service_variable(database), database)
        for name, database in FURTHER.items():
            dsn = server.dsn(
                service_role(name), secrets.token_hex(_PASSWORD_BYTES), f"remit_{database}"
            )
            _keep(setup / service_variable(name), f"{dsn}\n")
            self._hand_on(service_variable(name), database)

    def _hand_on(self, variable: str, database: str) -> None:
        """Gives a DSN to the area whose database it is."""
        area = next(area for area in AREAS if database.startswith(area))
        kept = read_small(self.secrets_folder(SETUP) / variable)
        _keep(self.secrets_folder(area) / variable, kept)

    def write_database_authority(self, certificates: bytes) -> None:
        """Gives everybody who connects the certificates that PostgreSQL's own is verified with."""
        for party in (*AREAS, SETUP):
            write_private(self.secrets_folder(party) / DATABASE_AUTHORITY, certificates)

    def ensure_superuser(self, server: Server) -> None:
        """Makes the superuser's password for a PostgreSQL that this installation runs itself."""
        password = self.secrets_folder(POSTGRES) / PASSWORD_FILE
        _keep(password, secrets.token_hex(_PASSWORD_BYTES))
        dsn = server.dsn("postgres", read_small(password), "postgres")
        _keep(self.secrets_folder(SETUP) / ADMIN_DSN, f"{dsn}\n")

    def manifests(self, namespace: str, *, only_tls: bool = False) -> Iterator[dict[str, Any]]:
        """Kubernetes Secrets, one for each folder that is there."""
        for party, folder in self.tls_folders().items():
            owner = f"{GATEWAY}-{party}" if party in LISTENERS else party
            if folder.is_dir():
                yield _manifest(f"remit-{owner}-tls", namespace, folder)
        for party in () if only_tls else (*AREAS, SETUP, POSTGRES):
            folder = self.folder / party / "secrets"
            if folder.is_dir():
                yield _manifest(f"remit-{party}", namespace, folder)


def owner_variable(database: str) -> str:
    """Name of the setting with the owner's DSN."""
    return f"REMIT_{database.upper()}_OWNER_DSN"


def service_variable(database: str) -> str:
    """Name of the setting with the service's DSN."""
    return f"REMIT_{database.upper()}_DSN"


def password_of(dsn: str, variable: str) -> str:
    """The password in a DSN. Raises CONFIGURATION_INVALID if there is none."""
    try:
        password = urlsplit(dsn).password
    except ValueError:
        password = None
    if not password:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{variable} must be a DSN with a password, postgresql://ROLE:PASSWORD@HOST/DATABASE",
        )
    return password


def _keep(file: Path, content: str) -> None:
    """Writes a file unless it is there."""
    if not file.exists():
        write_private(file, content)


def _manifest(name: str, namespace: str, folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "remit"},
        },
        "type": "Opaque",
        "data": {
            file.name: base64.b64encode(file.read_bytes()).decode()
            for file in sorted(folder.iterdir())
            if file.is_file() and not file.name.startswith(".")
        },
    }
