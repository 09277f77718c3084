"""Key files: made once, private, and never replaced silently."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit import key_files
from remit.audit.key_chain import KeyChain
from remit.audit.key_files import (
    FILES,
    LOG_KEY,
    LOG_PUBLIC_KEY,
    ROTATIONS,
    load_log_keys,
    make_log_keys,
    rotate_log_key,
)
from remit.audit.note import Verifier
from remit.rpc.errors import RemitError

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)


def test_keys_are_made_once(tmp_path: Path) -> None:
    made = make_log_keys(tmp_path / "deep" / "keys")
    again = make_log_keys(tmp_path / "deep" / "keys")
    assert made.signer.secret_text() == again.signer.secret_text()
    assert (made.master, made.pseudonym) == (again.master, again.pseudonym)
    assert made.master.key != made.pseudonym
    public = Verifier.parse((tmp_path / "deep" / "keys" / LOG_PUBLIC_KEY).read_text())
    assert public.open(made.signer.sign("x\n")) == "x\n"


def test_private_files_are_private(tmp_path: Path) -> None:
    make_log_keys(tmp_path / "keys")
    modes = {name: stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) for name in FILES}
    assert modes.pop(LOG_PUBLIC_KEY) & 0o077 == 0o044
    assert set(modes.values()) == {0o600}


def test_two_logs_never_share_a_name(tmp_path: Path) -> None:
    one, other = (make_log_keys(tmp_path / name).signer.name for name in ("one", "other"))
    assert one != other


def test_what_a_crash_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "keys.unfinished").mkdir()
    (tmp_path / "keys.unfinished" / "log.key").write_text("half")
    (tmp_path / "keys").mkdir()
    make_log_keys(tmp_path / "keys")
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == sorted(FILES)
    assert not (tmp_path / "keys.unfinished").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_not_made_again(tmp_path: Path, name: str) -> None:
    make_log_keys(tmp_path / "keys")
    (tmp_path / "keys" / name).unlink()
    for load in (load_log_keys, make_log_keys):
        with pytest.raises(RemitError, match=name) as raised:
            load(tmp_path / "keys")
        assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
        assert "is missing" in raised.value.message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"AAAA\n", b"\xff\xfe", b"PRIVATE+KEY+x"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    make_log_keys(tmp_path / "keys")
    (tmp_path / "keys" / name).write_bytes(content)
    with pytest.raises(RemitError, match=name) as raised:
        load_log_keys(tmp_path / "keys")
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


def test_a_public_key_of_another_log_is_named(tmp_path: Path) -> None:
    make_log_keys(tmp_path / "one")
    make_log_keys(tmp_path / "other")
    other = (tmp_path / "other" / LOG_PUBLIC_KEY).read_bytes()
    (tmp_path / "one" / LOG_PUBLIC_KEY).write_bytes(other)
    with pytest.raises(RemitError, match="does not belong"):
        load_log_keys(tmp_path / "one")


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match=r"log\.key is missing"):
        load_log_keys(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(RemitError, match="cannot"):
        make_log_keys(tmp_path / "file" / "keys")


# -------------------------------------------------------------------------- rotation


def public_key(directory: Path) -> Verifier:
    return Verifier.parse((directory / LOG_PUBLIC_KEY).read_text())


def test_a_rotation_leaves_one_private_key_and_leads_from_the_old_to_the_new(
    tmp_path: Path,
) -> None:
    old = make_log_keys(tmp_path / "keys")
    first = public_key(tmp_path / "keys")
    rotations = [rotate_log_key(tmp_path / "keys", NOW) for _ in range(3)]
    new = load_log_keys(tmp_path / "keys")
    assert rotations[-1].new == public_key(tmp_path / "keys")
    assert KeyChain.read(first, new.rotations).newest == new.signer.verifier() == rotations[-1].new
    assert new.signer.name == old.signer.name
    assert (new.master, new.pseudonym) == (old.master, old.pseudonym)
    names = {path.name for path in (tmp_path / "keys").iterdir()}
    assert names == {*FILES, ROTATIONS}
    secrets = [p for p in (tmp_path / "keys").iterdir() if "PRIVATE+KEY" in p.read_text("utf-8")]
    assert [path.name for path in secrets] == [LOG_KEY]
    assert stat.S_IMODE((tmp_path / "keys" / LOG_KEY).stat().st_mode) == 0o600


def test_two_who_rotate_at_once_do_it_one_after_the_other(tmp_path: Path) -> None:
    make_log_keys(tmp_path / "keys")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: rotate_log_key(tmp_path / "keys", NOW), range(8)))
    keys = load_log_keys(tmp_path / "keys")
    assert len(keys.rotations) == len({str(rotation.new) for rotation in done}) == 8


class Killed(BaseException):
    """As SIGKILL: nothing after it runs."""


def killed_at(step: int) -> Iterator[bool]:
    """For each step that touches the disk, whether it is the one that never happens."""
    return (number == step for number in itertools.count())


def cut_off(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ends the process before the step-th call that changes a folder."""
    steps = killed_at(step)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps):
                raise Killed
            return real(*args, **kwargs)

        return call

    for name in ("open", "fsync", "replace", "unlink"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))


def rotated_until_killed(directory: Path, step: int) -> bool:
    """Whether the rotation came to its end."""
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, step)
        try:
            rotate_log_key(directory, NOW)
        except Killed:
            return False
    return True


def test_a_crash_at_any_step_leaves_one_key_or_the_other_whole(tmp_path: Path) -> None:
    counts = []
    for step in itertools.count():
        directory = tmp_path / str(step)
        make_log_keys(directory)
        first = public_key(directory)
        rotate_log_key(directory, NOW)
        before = load_log_keys(directory)
        done = rotated_until_killed(directory, step)
        after = load_log_keys(directory)
        counts.append(len(after.rotations))
        assert after.rotations[: len(before.rotations)] == before.rotations
        assert (after.signer.secret_text() == before.signer.secret_text()) == (counts[-1] == 1)
        assert KeyChain.read(first, after.rotations).newest == after.signer.verifier()
        rotate_log_key(directory, NOW)  # clears up
        assert {path.name for path in directory.iterdir()} == {*FILES, ROTATIONS}
        assert len(load_log_keys(directory).rotations) == counts[-1] + 1
        if done:
            break
    assert counts == sorted(counts)
    assert set(counts) == {1, 2}
    assert len(counts) > 12, "the steps are those of the rotation"


def test_who_reads_while_the_key_is_moved_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_log_keys(tmp_path / "keys").signer
    rotate_log_key(tmp_path / "keys", NOW)
    real, early = key_files._parsed, [old]

    def parsed(path: Path, parse: Callable[[str], Any]) -> Any:
        """The first look at the private key comes before it is moved, all others after that."""
        return early.pop() if path.name == LOG_KEY and early else real(path, parse)

    monkeypatch.setattr(key_files, "_parsed", parsed)
    assert load_log_keys(tmp_path / "keys").signer.verifier() == public_key(tmp_path / "keys")
    assert not early


@pytest.mark.parametrize(
    "content", [b"", b"[]\n", b"nonsense\n", b'"x"\n', b"\xff", b"[" * 100_000]
)
def test_damaged_rotations_are_named(tmp_path: Path, content: bytes) -> None:
    make_log_keys(tmp_path / "keys")
    rotate_log_key(tmp_path / "keys", NOW)
    (tmp_path / "keys" / ROTATIONS).write_bytes(content)
    with pytest.raises(RemitError, match=ROTATIONS) as raised:
        load_log_keys(tmp_path / "keys")
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


def test_a_key_that_is_not_the_last_of_its_rotations_is_named(tmp_path: Path) -> None:
    made = make_log_keys(tmp_path / "keys")
    rotate_log_key(tmp_path / "keys", NOW)
    (tmp_path / "keys" / LOG_KEY).write_text(made.signer.secret_text())
    with pytest.raises(RemitError, match=r"log\.key is not the last key of log\.rotations"):
        load_log_keys(tmp_path / "keys")


def test_rotations_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_log_keys(tmp_path / "keys")
    monkeypatch.setattr(key_files, "MAX_ROTATIONS", 1)
    rotate_log_key(tmp_path / "keys", NOW)
    with pytest.raises(RemitError, match="the most that a log can have"):
        rotate_log_key(tmp_path / "keys", NOW)


def test_nothing_is_rotated_where_keys_are_missing(tmp_path: Path) -> None:
    make_log_keys(tmp_path / "keys")
    (tmp_path / "keys" / LOG_KEY).unlink()
    with pytest.raises(RemitError, match=r"log\.key is missing"):
        rotate_log_key(tmp_path / "keys", NOW)
    with pytest.raises(RemitError, match="cannot be rotated"):
        rotate_log_key(tmp_path / "nothing", NOW)
