"""Files beneath a folder, opened so that no path leads out of it.

A path that came from a model is hostile. Checking its text and then opening it leaves a moment in
which a folder can be swapped for a symbolic link, so the kernel itself is told to stay beneath the
folder: openat2(2) with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS. Where the
kernel lacks it, or a sandbox forbids it, each component is opened in turn with O_NOFOLLOW, which
gives the same answer with more calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

MAX_PATH_CHARS: Final = 1_024
MAX_COMPONENT_BYTES: Final = 255
"""NAME_MAX of every Linux file system in use."""
MAX_DEPTH: Final = 32
"""Components of a path; walking a folder holds a descriptor for each level."""

Opener = Callable[[int, str, int, int], int]
"""Opens a path beneath a folder's descriptor: (folder, path, flags, mode) to a descriptor."""

_SYS_OPENAT2: Final = 437  # the same on every architecture that Python wheels exist for
_RESOLVE_STAY_BENEATH: Final = 0x08 | 0x04 | 0x02  # BENEATH, NO_SYMLINKS, NO_MAGICLINKS
_MAX_RACES: Final = 16  # openat2 answers EAGAIN when a rename races with it
_COMMON_FLAGS: Final = os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
_BIDI_CONTROLS: Final = frozenset(
    "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


class FolderError(Exception):
    """A path that cannot be used; the message names the path and never what is outside."""


def check_relative_path(path: str) -> str:
    """The path, if it is one that stays what it looks like.

    What policy decided on must be what is opened, so nothing is normalised: a path with an empty
    component, `.` or `..` is refused instead.

    Raises:
        ValueError: it is empty, absolute, too long, or has a component that is not a plain name.

    """
    if not 0 < len(path) <= MAX_PATH_CHARS:
        message = f"must have 1 to {MAX_PATH_CHARS} characters"
        raise ValueError(message)
    if path.startswith("/"):
        raise ValueError("must be relative: it may not begin with /")
    components = path.split("/")
    if len(components) > MAX_DEPTH:
        message = f"must have at most {MAX_DEPTH} components"
        raise ValueError(message)
    for component in components:
        _check_component(component)
    return path


def _check_component(component: str) -> None:
    if component in {"", ".", ".."}:
        raise ValueError("must not contain //, a trailing /, . or .. as a component")
    if any(char < " " or "\x7f" <= char <= "\x9f" or char in _BIDI_CONTROLS for char in component):
        raise ValueError("must not contain control characters")
    if len(component.encode("utf-8", "surrogatepass")) > MAX_COMPONENT_BYTES:
        message = f"must have at most {MAX_COMPONENT_BYTES} bytes between two /"
        raise ValueError(message)


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_by_kernel(folder: int, path: str, flags: int, mode: int) -> int:
    """Open beneath `folder` by openat2(2). Raises OSError, EXDEV or ELOOP for an escape."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:  # C would see the part before it alone
        raise ValueError("embedded null byte")
    how = _OpenHow(flags | _COMMON_FLAGS, mode if flags & os.O_CREAT else 0, _RESOLVE_STAY_BENEATH)
    code = errno.EAGAIN
    for _ in range(_MAX_RACES):
        descriptor = int(
            _libc().syscall(_SYS_OPENAT2, folder, encoded, ctypes.byref(how), ctypes.sizeof(how))
        )
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(code, os.strerror(code), path)


def open_by_walk(folder: int, path: str, flags: int, mode: int) -> int:
    """Open beneath `folder` component by component. Raises OSError, ELOOP or ENOTDIR for a link."""
    *parents, last = path.split("/")
    current = os.dup(folder)
    try:
        for component in parents:
            if component in {"", ".."}:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
            deeper = os.open(component, _DIRECTORY | _COMMON_FLAGS, dir_fd=current)
            os.close(current)
            current = deeper
        if last in {"", ".."}:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        return os.open(last, flags | _COMMON_FLAGS, mode, dir_fd=current)
    finally:
        os.close(current)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def beneath_opener() -> Opener:
    """The way of opening that this kernel allows; tried once, on a folder that always exists."""
    if sys.platform != "linux":
        return open_by_walk
    probe = os.open("/", _DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(open_by_kernel(probe, ".", _DIRECTORY, 0))
    except OSError:  # ENOSYS before Linux 5.6, EPERM under an old seccomp profile
        return open_by_walk
    finally:
        os.close(probe)
    return open_by_kernel


class Folder:
    """A folder that paths stay beneath. It holds a descriptor, so renaming it changes nothing."""

    def __init__(self, path: Path, opener: Opener | None = None) -> None:
        self.path = path
        self._open = opener or beneath_opener()
        self._descriptor = os.open(path, _DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: str, max_bytes: int) -> bytes:
        """The content of a regular file.

        Raises:
            FileNotFoundError: there is no such file here.
            FolderError: it is not a regular file, larger than `max_bytes`, or may not be read.

        """
        with _explained(path), self._opened_file(path) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes > max_bytes:
                message = f"{path} has {size_bytes} bytes; the limit is {max_bytes}"
                raise FolderError(message)
            content = _read_at_most(descriptor, max_bytes + 1)
            if len(content) > max_bytes:  # it grew, or its size is not told, as in /proc
                message = f"{path} has more than {max_bytes} bytes, the limit"
                raise FolderError(message)
            return content

    @contextlib.contextmanager
    def _opened_file(self, path: str) -> Iterator[int]:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever
        descriptor = self._open(self._descriptor, path, os.O_RDONLY | os.O_NONBLOCK, 0)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                message = f"{path} is not a regular file"
                raise FolderError(message)
            yield descriptor
        finally:
            os.close(descriptor)

    def write(self, path: str, content: bytes) -> bool:
        """Write a whole file or nothing, and return whether it is new.

        Missing folders are made. The file appears by a rename of a synced temporary file, so a
        reader or a crash never sees half of it.

        Raises:
            FolderError: the path cannot be written to.

        """
        *parents, name = path.split("/")
        with _explained(path), self._made_folder(parents) as folder:
            is_new = _check_replaceable(folder, name, path)
            temporary = f".{secrets.token_hex(8)}.remit-part"
            try:
                _write_synced(folder, temporary, content)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)
            return is_new

    @contextlib.contextmanager
    def _made_folder(self, components: list[str]) -> Iterator[int]:
        current = os.dup(self._descriptor)
        try:
            for component in components:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(component, 0o700, dir_fd=current)
                deeper = self._open(current, component, _DIRECTORY, 0)
                os.close(current)
                current = deeper
            yield current
        finally:
            os.close(current)

    def files(self, max_files: int, *, hidden: bool = False) -> Iterator[tuple[str, int]]:
        """Path and size in bytes of regular files, by path; with `hidden`, dot files too.

        Symbolic links are not followed, names that are not UTF-8 and levels below `MAX_DEPTH` left
        out. At most `max_files + 1` are yielded, so that a caller can tell that there are more.
        """
        for found, file in enumerate(self._walk(hidden=hidden)):
            yield file
            if found >= max_files:
                return

    def _walk(self, *, hidden: bool) -> Iterator[tuple[str, int]]:
        walk = os.fwalk(".", topdown=True, follow_symlinks=False, dir_fd=self._descriptor)
        for top, folders, names, descriptor in walk:
            too_deep = top.count("/") + 1 >= MAX_DEPTH
            folders[:] = [] if too_deep else _listed(folders, hidden=hidden)
            for name in _listed(names, hidden=hidden):
                size_bytes = _size_of_regular(descriptor, name)
                if size_bytes is not None:
                    yield os.path.normpath(f"{top}/{name}"), size_bytes


def _listed(names: list[str], *, hidden: bool) -> list[str]:
    return sorted(
        name for name in names if name.isprintable() and (hidden or not name.startswith("."))
    )


def _size_of_regular(folder: int, name: str) -> int | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:  # gone meanwhile: as if it had never been there
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _read_at_most(descriptor: int, max_bytes: int) -> bytes:
    parts = []
    left = max_bytes
    while left > 0:
        part = os.read(descriptor, left)
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _check_replaceable(folder: int, name: str, path: str) -> bool:
    """Whether there is nothing at `name` yet. Raises FolderError for what is no regular file."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(status.st_mode):
        message = f"{path} exists and is not a regular file"
        raise FolderError(message)
    return False


def _write_synced(folder: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _COMMON_FLAGS
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


_FAULTS: Final = {
    errno.ELOOP: "leads through a symbolic link, which is not followed",
    errno.EXDEV: "leads out of the folder",
    errno.ENOTDIR: "leads through something that is not a folder",
    errno.EISDIR: "is a folder",
    errno.EACCES: "may not be opened by this service",
    errno.EPERM: "may not be opened by this service",
    errno.ENAMETOOLONG: "is too long a name for the file system",
    errno.ENXIO: "is not a regular file",
    errno.ENODEV: "is not a regular file",
    errno.ENOSPC: "cannot be written: the disk is full",
    errno.EDQUOT: "cannot be written: the disk quota is used up",
    errno.EROFS: "cannot be written: the folder is read-only",
}


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns what the system says into what a model can act on."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        message = f"{path} {_FAULTS[error.errno]}"
        raise FolderError(message) from error
