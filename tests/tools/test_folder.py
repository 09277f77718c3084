"""Paths that a model made up must never lead out of the folder, whichever way it is opened."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.tools import folder as folder_module
from remit.tools.folder import (
    MAX_DEPTH,
    MAX_PATH_CHARS,
    Folder,
    FolderError,
    Opener,
    beneath_opener,
    check_relative_path,
    open_by_kernel,
    open_by_walk,
)

OPENERS = [open_by_kernel, open_by_walk]
SECRET = "the secret outside"


@pytest.fixture(params=OPENERS, ids=["openat2", "walk"])
def opener(request: pytest.FixtureRequest) -> Opener:
    if request.param is open_by_kernel and beneath_opener() is not open_by_kernel:
        pytest.skip("this kernel has no openat2, or forbids it")
    found: Opener = request.param
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file, a folder and ways out; the secret lies beside it."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "inner.txt").write_text(SECRET)
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "plain.txt").write_text("plain")
    (root / "sub" / "deep.txt").write_text("deep")
    (root / "caf\u00e9 \u65e5\u672c.txt").write_text("unicode")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "relative_link.txt").symlink_to("../secret.txt")
    (root / "inner_link.txt").symlink_to("plain.txt")
    (root / "dir_link").symlink_to(tmp_path / "outside")
    (root / "magic").symlink_to("/proc/self/root")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture
def folder(root: Path, opener: Opener) -> Iterator[Folder]:
    with Folder(root, opener) as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("plain.txt", b"plain"),
        ("sub/deep.txt", b"deep"),
        ("caf\u00e9 \u65e5\u672c.txt", b"unicode"),
    ],
)
def test_files_beneath_are_read(folder: Folder, path: str, content: bytes) -> None:
    assert folder.read(path, 100) == content


ESCAPES = [
    "../secret.txt",
    "sub/../../secret.txt",
    "sub/../plain.txt/../../secret.txt",
    "link.txt",
    "relative_link.txt",
    "inner_link.txt",
    "dir_link/inner.txt",
    "magic/etc/passwd",
    "loop",
    "sub",
    ".",
    "..",
    "fifo",
    "plain.txt/deeper",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out(folder: Folder, path: str) -> None:
    with pytest.raises(FolderError) as caught:
        folder.read(path, 1_000)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "//etc/passwd"])
def test_an_absolute_path_leads_nowhere(folder: Folder, path: str) -> None:
    with pytest.raises((FolderError, OSError)):
        folder.read(path, 1_000)


def test_a_null_byte_does_not_end_a_path(folder: Folder) -> None:
    with pytest.raises(ValueError, match="null byte"):
        folder.read("plain.txt\0.png", 100)


@pytest.mark.parametrize("path", [escape for escape in ESCAPES if escape not in {".", ".."}])
def test_no_write_leads_out(folder: Folder, root: Path, path: str) -> None:
    before = sorted(root.parent.rglob("*"))
    if path.endswith("link.txt") or path == "loop":
        with pytest.raises(FolderError, match="not a regular file"):
            folder.write(path, b"new")
    else:
        with pytest.raises((FolderError, OSError)):
            folder.write(path, b"new")
    assert (root.parent / "secret.txt").read_text() == SECRET
    assert sorted(root.parent.rglob("*")) == before


def test_a_missing_file_is_missing(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read("sub/none.txt", 100)


def test_a_file_at_its_bound_is_read_and_above_it_not(folder: Folder) -> None:
    assert folder.read("plain.txt", 5) == b"plain"
    with pytest.raises(FolderError, match=r"plain\.txt has 5 bytes; the limit is 4"):
        folder.read("plain.txt", 4)


def test_a_socket_is_no_file(folder: Folder, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # a socket's path has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(FolderError, match="not a regular file"):
            folder.read("socket", 100)


def test_writing_replaces_the_whole_file_or_nothing(folder: Folder, root: Path) -> None:
    assert folder.write("new/deeper/a.txt", b"one") is True
    assert folder.write("new/deeper/a.txt", b"two") is False
    assert (root / "new/deeper/a.txt").read_bytes() == b"two"
    assert [file.name for file in (root / "new/deeper").iterdir()] == ["a.txt"]
    assert (root / "new/deeper/a.txt").stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_no_part(
    folder: Folder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match="the disk is full"):
        folder.write("plain.txt", b"new")
    monkeypatch.undo()
    assert (root / "plain.txt").read_bytes() == b"plain"
    assert not list(root.glob(".*"))


def test_readers_see_the_old_file_or_the_new_one(folder: Folder) -> None:
    old, new = b"a" * 100_000, b"b" * 100_000
    folder.write("big.txt", old)
    seen = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(folder.read("big.txt", 100_000))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        folder.write("big.txt", new if turn % 2 == 0 else old)
    stop.set()
    reader.join()
    assert seen <= {old, new}


def test_a_folder_swapped_for_a_link_while_it_is_read_gives_nothing_away(
    folder: Folder, root: Path
) -> None:
    (root / "race").mkdir()
    (root / "race" / "inner.txt").write_text("inside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (root / "race").rename(root / "race_away")
            (root / "race").symlink_to(root.parent / "outside")
            (root / "race").unlink()
            (root / "race_away").rename(root / "race")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(3_000):
            try:
                assert folder.read("race/inner.txt", 100) == b"inside"
            except (FolderError, FileNotFoundError):
                continue
    finally:
        stop.set()
        swapper.join()


def test_files_are_listed_without_links_and_hidden_ones(folder: Folder, root: Path) -> None:
    (root / ".hidden").write_text("h")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("h")
    names = [name for name, _ in folder.files(100)]
    assert names == ["caf\u00e9 \u65e5\u672c.txt", "plain.txt", "sub/deep.txt"]
    everything = {name for name, _ in folder.files(100, hidden=True)}
    assert everything == {*names, ".hidden", ".git/config"}


def test_a_listing_shows_that_there_are_more(folder: Folder) -> None:
    assert len(list(folder.files(1))) == 2
    assert len(list(folder.files(3))) == 3


def test_a_listing_goes_only_so_deep(folder: Folder, root: Path) -> None:
    deep = root.joinpath(*["d"] * (MAX_DEPTH + 3))
    deep.mkdir(parents=True)
    (deep / "unseen.txt").write_text("x")
    assert not [name for name, _ in folder.files(100) if "unseen" in name]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        ".",
        "a/..",
        "../a",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\x85b",
        "a\u202eb",
        "a" * (MAX_PATH_CHARS + 1),
        "a" * 256,
        "\u65e5" * 86,
        "/".join("a" * (MAX_DEPTH + 1)),
    ],
)
def test_paths_that_are_not_what_they_look_like_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"must"):
        check_relative_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b.txt",
        "...",
        "..a",
        "a..",
        ".hidden",
        "\uff0e\uff0e/a",
        "a b",
        "\u65e5\u672c",
        "~",
        "a\\b",
    ],
)
def test_plain_names_are_paths(path: str) -> None:
    assert check_relative_path(path) == path


components = st.text(max_size=6) | st.sampled_from(["..", ".", "", "sub", "dir_link", "link.txt"])


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    base = tmp_path_factory.mktemp("fuzz")
    (base / "secret.txt").write_text(SECRET)
    root = base / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "secret.txt").write_text("inside")
    (root / "link.txt").symlink_to(base / "secret.txt")
    (root / "dir_link").symlink_to(base)
    return root


@pytest.mark.parametrize("way", OPENERS, ids=["openat2", "walk"])
@given(parts=st.lists(components | st.just("secret.txt"), min_size=1, max_size=6))
def test_whatever_the_path_the_secret_stays_outside(
    shared_root: Path, way: Opener, parts: list[str]
) -> None:
    if way is open_by_kernel and beneath_opener() is not open_by_kernel:
        pytest.skip("this kernel has no openat2, or forbids it")
    with Folder(shared_root, way) as folder:
        try:
            content = folder.read("/".join(parts), 100)
        except (FolderError, OSError, ValueError):
            return
    assert content == b"inside"


@given(st.text(max_size=40))
def test_a_checked_path_has_only_plain_components(path: str) -> None:
    try:
        checked = check_relative_path(path)
    except ValueError:
        return
    assert not Path(checked).is_absolute()
    assert os.path.normpath(checked) == checked
    assert ".." not in checked.split("/")


def test_a_kernel_that_forbids_openat2_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise OSError(errno.EPERM, "seccomp")

    beneath_opener.cache_clear()
    monkeypatch.setattr(folder_module, "open_by_kernel", forbidden)
    try:
        assert beneath_opener() is open_by_walk
    finally:
        beneath_opener.cache_clear()


def test_no_descriptor_is_left_open(root: Path, opener: Opener) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    actions: list[Callable[[Folder], object]] = [
        lambda folder: folder.read("plain.txt", 100),
        lambda folder: folder.write("x/y.txt", b"1"),
        lambda folder: list(folder.files(1)),
        *[lambda folder, path=path: folder.read(path, 1) for path in ESCAPES],
        *[lambda folder, path=path: folder.write(path, b"") for path in ESCAPES],
    ]
    before = count()
    for action in actions:
        with Folder(root, opener) as folder:
            try:
                action(folder)
            except (FolderError, OSError):
                continue
    assert count() == before
