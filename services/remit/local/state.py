"""The state directory: everything that a local mesh keeps, in one folder that one `remit up` owns.

    version        form of this folder
    lock           held by the running `remit up`; its process id
    mesh.json      what runs now: process ids and addresses, for `remit status`
    topology.yaml  addresses of the mesh
    api-key        the first API key (0600)
    audit.pub      public key that verifies an export of the audit log
    tiles/         the audit log as static files, for mirrors
    archive/       what old months of the audit log had beside that, still encrypted (0600)
    secrets/       keys of services, made once (0600)
    ca/ tls/       local certificate authority; a folder with a certificate for each party
    postgres/      the databases
    logs/          what each process printed

Nothing here is ever deleted to repair it: a damaged file is named, with what can be done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError

STATE_VARIABLE: Final = "REMIT_STATE"
VERSION: Final = "1"
_ROOT_STATE: Final = Path("/var/lib/remit")
_MAX_SMALL_FILE_BYTES: Final = 65_536


class AlreadyRunningError(RemitError):
    """Another `remit up` owns the state directory."""

    def __init__(self, folder: Path, pid: str) -> None:
        super().__init__(
            error_reason_pb2.ERROR_REASON_INVALID_STATE,
            f"a mesh already runs on {folder} (process {pid}); look at it with `remit status`, stop"
            " it with Ctrl-C in its terminal, or choose another folder with --state",
        )


def default_state() -> Path:
    """The folder used when nobody chooses one: of the machine as root, else of the user."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return _ROOT_STATE
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "remit"


class StateDirectory:
    """The files of one local mesh. `open` makes or checks the folder; `locked` claims it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> StateDirectory:
        """Makes the folder, or checks that it is one of ours and of this version.

        Raises:
            RemitError: CONFIGURATION_INVALID or DATA_CORRUPT, naming the file and what to do.

        """
        state = cls(folder.expanduser().absolute())
        state._create()
        state._check_version()
        return state

    @classmethod
    def existing(cls, folder: Path) -> StateDirectory:
        """The folder of a mesh that was started before.

        Raises:
            RemitError: as `open`, and DEPENDENCY_UNAVAILABLE if none was ever started there.

        """
        state = cls(folder.expanduser().absolute())
        if not state.topology_file.exists():
            raise RemitError(
                error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                f"no mesh was started in {state.folder}; start one with `remit up`",
            )
        state._check_version()
        return state

    @property
    def version_file(self) -> Path:
        """Form of the folder."""
        return self.folder / "version"

    @property
    def lock_file(self) -> Path:
        """Held by the running `remit up`."""
        return self.folder / "lock"

    @property
    def mesh_file(self) -> Path:
        """What runs now."""
        return self.folder / "mesh.json"

    @property
    def topology_file(self) -> Path:
        """Addresses of the mesh."""
        return self.folder / "topology.yaml"

    @property
    def envoy_file(self) -> Path:
        """The configuration that Envoy reads."""
        return self.folder / "envoy.pb"

    @property
    def api_key_file(self) -> Path:
        """The first API key."""
        return self.folder / "api-key"

    @property
    def audit_key_file(self) -> Path:
        """Public key of the audit log."""
        return self.folder / "audit.pub"

    @property
    def tiles(self) -> Path:
        """Folder of the audit log's tiles."""
        return self.folder / "tiles"

    @property
    def archive(self) -> Path:
        """Folder of the payloads of archived months of the audit log."""
        return self.folder / "archive"

    @property
    def postgres(self) -> Path:
        """Folder of the database server."""
        return self.folder / "postgres"

    def secret_folder(self, name: str) -> Path:
        """A folder for keys of one service, readable by its owner alone."""
        return private_folder(self.folder / "secrets" / name)

    def tls_folder(self, party: str) -> Path:
        """Folder with ca.pem, cert.pem and key.pem of a party."""
        return self.folder / "tls" / party

    def log_file(self, part: str) -> Path:
        """What a process prints."""
        return private_folder(self.folder / "logs") / f"{part}.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Claims the folder for the body. Raises AlreadyRunningError."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyRunningError(self.folder, self.owner() or "unknown") from error
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(descriptor)  # which releases the lock

    def owner(self) -> str:
        """Process id in the lock file; empty if there is none."""
        try:
            return self.lock_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def is_locked(self) -> bool:
        """Whether a `remit up` owns the folder now."""
        try:
            with self.lock_file.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _create(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                return
            # As root the database server runs as another user and must pass through; what is
            # secret has a mode of its own.
            self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
            write_private(self.version_file, f"{VERSION}\n")
        except OSError as error:
            raise _invalid(
                f"the state directory {self.folder} cannot be used: {error.strerror};"
                " choose another with --state"
            ) from error

    def _check_version(self) -> None:
        if not self.version_file.exists():
            raise _invalid(
                f"{self.folder} holds files but is not a state directory of Remit (it has no file"
                " `version`); choose an empty or new folder with --state"
            )
        version = read_small(self.version_file).strip()
        if not version.isdigit():
            raise corrupt(self.version_file, f"write {VERSION} into it if the rest is intact")
        if version != VERSION:
            raise _invalid(
                f"{self.version_file} says {version}, but this Remit reads version {VERSION};"
                " use the Remit that made the folder, or another folder with --state"
            )


def private_folder(folder: Path) -> Path:
    """Makes a folder that only its owner may enter, and returns it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_private(file: Path, content: str | bytes) -> None:
    """Writes a 0600 file whole or not at all, whatever dies meanwhile."""
    data = content.encode() if isinstance(content, str) else content
    temporary = file.with_name(f".{file.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def read_small(file: Path) -> str:
    """The text of a file of ours. Raises DATA_CORRUPT or CONFIGURATION_INVALID naming it."""
    try:
        data = file.read_bytes()
        if not data or len(data) > _MAX_SMALL_FILE_BYTES:
            raise corrupt(file, "restore it from a backup")
        return data.decode()
    except UnicodeDecodeError as error:
        raise corrupt(file, "restore it from a backup") from error
    except OSError as error:
        raise _invalid(f"{file} cannot be read: {error.strerror}") from error


def corrupt(file: Path, remedy: str) -> RemitError:
    """DATA_CORRUPT about one file, with what the reader can do."""
    return RemitError(
        error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
        f"{file} is damaged; nothing was changed: {remedy}",
    )


def _invalid(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message)
