"""The offline verifier: a true export passes, and whatever was done to it is named by its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.audit.evidence import VerificationError
from remit.audit.export import ExportError, write_export
from remit.audit.key_chain import rotation_note
from remit.audit.merkle import Frontier, leaf_hash
from remit.audit.note import Checkpoint, Signer
from remit.audit.verifier import (
    checkpoint_line,
    footer_line,
    header_line,
    leaf_line,
    rotation_line,
    verify_export,
)
from tests.audit.events import NOW, make_event, sealed

SIGNER = Signer.generate("remit.internal/audit/test")
PUBLIC_KEY = str(SIGNER.verifier())
LATER = [Signer.generate(SIGNER.name) for _ in range(2)]
NOTES = [rotation_note(old, new, NOW) for old, new in zip([SIGNER, LATER[0]], LATER, strict=True)]
LEAVES = [sealed(make_event(f"e-{n}")).leaf_bytes for n in range(12)]
Response = audit_query_service_pb2.ExportLogResponse


def signed(leaves: list[bytes], signer: Signer = SIGNER) -> str:
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf_hash(leaf))
    return signer.sign(Checkpoint(signer.name, len(leaves), frontier.root()).body())


def messages(
    leaves: list[bytes], note: str = "", step: int = 5, rotations: Sequence[str] = ()
) -> list[Response]:
    note = note or signed(leaves)
    checkpoint = event_pb2.Checkpoint(tree_size=len(leaves), signed_note=note)
    parts = [
        Response(sequence=start, leaves=leaves[start : start + step])
        for start in range(0, len(leaves), step)
    ]
    return [Response(checkpoint=checkpoint, key_rotations=rotations), *parts]


async def write(path: Path, parts: list[Response]) -> Path:
    async def stream() -> object:
        for part in parts:
            yield part

    await write_export(path, stream())  # type: ignore[arg-type]
    return path


@pytest.fixture
async def export(tmp_path: Path) -> Path:
    return await write(tmp_path / "log.export", messages(LEAVES))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import asyncio  # noqa: PLC0415 - a module-scoped fixture has no loop of its own

    path = tmp_path_factory.mktemp("export") / "log.export"
    return asyncio.run(write(path, messages(LEAVES))).read_bytes()


def test_a_true_export_is_verified(export: Path) -> None:
    report = verify_export(export, PUBLIC_KEY + "\n")
    assert (report.origin, report.tree_size) == (SIGNER.name, 12)
    assert report.earlier_tree_size is None


@pytest.mark.parametrize("size", range(13))
def test_it_extends_every_earlier_checkpoint(export: Path, size: int) -> None:
    report = verify_export(export, PUBLIC_KEY, signed(LEAVES[:size]))
    assert report.earlier_tree_size == size


async def test_an_empty_log_is_verified(tmp_path: Path) -> None:
    path = await write(tmp_path / "empty", messages([]))
    assert verify_export(path, PUBLIC_KEY, signed([])).tree_size == 0


def faulty(path: Path, content: bytes, earlier: str | None = None) -> VerificationError:
    path.write_bytes(content)
    with pytest.raises(VerificationError) as raised:
        verify_export(path, PUBLIC_KEY, *([] if earlier is None else [earlier]))
    return raised.value


def line_of(content: bytes, position: int) -> int:
    return content[:position].count(b"\n") + 1


def names_line(place: str, line: int) -> bool:
    return place.startswith((f"line {line} ", f"line {line}:"))


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_flipped_byte_is_found_and_named(
    tmp_path: Path, content: bytes, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[position] ^= data.draw(st.integers(1, 255))
    error = faulty(tmp_path / "flipped", bytes(changed))
    assert names_line(error.place, line_of(content, position)), str(error)


def test_a_flipped_bit_at_every_byte_is_found(tmp_path: Path) -> None:
    content = forged(LEAVES[:2], signed(LEAVES[:2]))
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        error = faulty(tmp_path / "flipped", bytes(changed))
        assert names_line(error.place, line_of(content, position)), str(error)


def test_a_truncated_export_is_found_at_every_length(tmp_path: Path, content: bytes) -> None:
    for length in range(0, len(content), 7):
        error = faulty(tmp_path / "cut", content[:length])
        assert names_line(error.place, line_of(content, length)), str(error)


def test_what_follows_the_end_is_found(tmp_path: Path, content: bytes) -> None:
    assert "goes on after its end" in str(faulty(tmp_path / "long", content + b"\n"))


def forged(leaves: list[bytes], note: str, rotations: Sequence[str] = ()) -> bytes:
    """An export by somebody who knows the format but not the key: every digest fits."""
    import hashlib  # noqa: PLC0415

    lines = [header_line(len(rotations)), *map(rotation_line, rotations), checkpoint_line(note)]
    lines += [leaf_line(index, leaf) for index, leaf in enumerate(leaves)]
    body = b"".join(lines)
    return body + footer_line(len(leaves), hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize(
    "forge",
    [
        lambda leaves: [*leaves[:4], b"changed", *leaves[5:]],
        lambda leaves: [leaves[1], leaves[0], *leaves[2:]],
        lambda leaves: [*leaves[:3], leaves[2], *leaves[4:]],
    ],
)
def test_forged_leaves_are_not_what_was_signed(
    tmp_path: Path, forge: Callable[[list[bytes]], list[bytes]]
) -> None:
    error = faulty(tmp_path / "forged", forged(forge(LEAVES), signed(LEAVES)))
    assert error.place == "leaves 0 to 11"


@pytest.mark.parametrize("leaves", [LEAVES[:-1], [*LEAVES, b"more"]])
def test_fewer_or_more_leaves_than_were_signed(tmp_path: Path, leaves: list[bytes]) -> None:
    error = faulty(tmp_path / "forged", forged(leaves, signed(LEAVES)))
    assert names_line(error.place, 14 if len(leaves) < 12 else 15), str(error)


def test_a_log_rewritten_by_its_own_signer_needs_the_earlier_checkpoint(tmp_path: Path) -> None:
    earlier = signed(LEAVES[:8])
    rewritten = [b"rewritten", *LEAVES[1:]]
    content = forged(rewritten, signed(rewritten))
    error = faulty(tmp_path / "rewritten", content, earlier)
    assert error.place == "the earlier checkpoint of 8 leaves"
    assert "rewritten" in error.fault
    assert verify_export(tmp_path / "rewritten", PUBLIC_KEY).tree_size == 12


def test_a_log_cut_back_by_its_own_signer(tmp_path: Path) -> None:
    content = forged(LEAVES[:6], signed(LEAVES[:6]))
    error = faulty(tmp_path / "cut", content, signed(LEAVES[:8]))
    assert "cut back" in error.fault


def test_the_checkpoint_of_another_log_or_key(tmp_path: Path) -> None:
    other = Signer.generate("remit.internal/audit/other")
    same_name = Signer.generate(SIGNER.name)
    for signer in (other, same_name):
        error = faulty(tmp_path / "other", forged(LEAVES, signed(LEAVES, signer)))
        assert error.place == "line 2 (checkpoint)"
        assert "no signature of the key" in error.fault
        earlier = signed(LEAVES[:3], signer)
        error = faulty(tmp_path / "mine", forged(LEAVES, signed(LEAVES)), earlier)
        assert error.place == "the earlier checkpoint"


def test_a_checkpoint_whose_size_was_changed(tmp_path: Path) -> None:
    note = signed(LEAVES).replace("\n12\n", "\n11\n")
    error = faulty(tmp_path / "resized", forged(LEAVES[:11], note))
    assert error.place == "line 2 (checkpoint)"
    assert "does not fit" in error.fault


@pytest.mark.parametrize(
    "key",
    ["", "nonsense", PUBLIC_KEY[:-2], SIGNER.secret_text()],
    # The keys are made anew in each process; every process must name the tests alike.
    ids=["nothing", "nonsense", "cut off", "a private key"],
)
def test_what_is_no_public_key(export: Path, key: str) -> None:
    with pytest.raises(VerificationError, match="the public key"):
        verify_export(export, key)


@pytest.mark.parametrize("earlier", ["", "nonsense", "a\n\n— b c\n"])
def test_what_is_no_earlier_checkpoint(export: Path, earlier: str) -> None:
    with pytest.raises(VerificationError, match="the earlier checkpoint"):
        verify_export(export, PUBLIC_KEY, earlier)


def test_a_line_without_end_is_not_read_whole(tmp_path: Path, content: bytes) -> None:
    endless = b"".join(content.splitlines(keepends=True)[:2]) + b"[" * 3_000_000
    assert names_line(faulty(tmp_path / "endless", endless).place, 3)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ([], "broke off after 0"),
        (messages(LEAVES)[1:], "does not begin with a checkpoint"),
        (messages(LEAVES)[:-1], "broke off after 10"),
        ([*messages(LEAVES)[:1], *messages(LEAVES)[2:]], "leaf 0 is missing"),
        ([*messages(LEAVES), *messages(LEAVES[:3])], "changed its checkpoint"),
    ],
)
async def test_a_broken_stream_leaves_no_file(
    tmp_path: Path, parts: list[Response], fault: str
) -> None:
    with pytest.raises(ExportError, match=fault):
        await write(tmp_path / "log.export", parts)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib's twin counts as blocking here


async def test_a_resumed_stream_may_repeat_the_checkpoint(tmp_path: Path, content: bytes) -> None:
    first, *rest = messages(LEAVES)
    path = await write(tmp_path / "log.export", [first, *rest[:1], first, *rest[1:]])
    assert path.read_bytes() == content


# ------------------------------------------------------------- a log with several keys


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import asyncio  # noqa: PLC0415 - as above

    path = tmp_path_factory.mktemp("rotated") / "log.export"
    parts = messages(LEAVES[:3], signed(LEAVES[:3], LATER[1]), rotations=NOTES)
    return asyncio.run(write(path, parts)).read_bytes()


def test_an_export_is_of_version_1_until_the_key_is_replaced(
    content: bytes, rotated: bytes
) -> None:
    first = b'{"format":"remit-audit-export","version":1}\n'
    assert content.startswith(first)
    assert rotated.startswith(first.replace(b"1}", b'2,"rotations":2}'))


@pytest.mark.parametrize("known", [SIGNER, *LATER], ids=["first", "second", "newest"])
@pytest.mark.parametrize("then", [SIGNER, *LATER], ids=["first", "second", "newest"])
def test_any_key_and_any_earlier_checkpoint_verify_it(
    tmp_path: Path, rotated: bytes, known: Signer, then: Signer
) -> None:
    (tmp_path / "log.export").write_bytes(rotated)
    earlier = signed(LEAVES[:2], then)
    report = verify_export(tmp_path / "log.export", str(known.verifier()), earlier)
    assert (report.tree_size, report.earlier_tree_size) == (3, 2)


def test_every_flipped_bit_of_the_chain_is_found_and_named(tmp_path: Path, rotated: bytes) -> None:
    end = len(b"".join(rotated.splitlines(keepends=True)[:4]))
    for position in range(end):
        changed = bytearray(rotated)
        changed[position] ^= 1 << position % 8
        error = faulty(tmp_path / "flipped", bytes(changed))
        assert names_line(error.place, line_of(rotated, position)), str(error)


@pytest.mark.parametrize(
    ("rotations", "signer", "place"),
    [
        ([], LATER[1], "line 2 (checkpoint)"),
        (NOTES[:1], LATER[1], "line 3 (checkpoint)"),
        (NOTES[1:], LATER[1], "the public key"),
        (NOTES[::-1], LATER[1], "line 3 (key rotation 2 of 2)"),
        ([*NOTES, NOTES[0]], LATER[1], "line 4 (key rotation 3 of 3)"),
        ([NOTES[0], NOTES[1].replace(":00Z", ":01Z")], LATER[1], "line 3 (key rotation 2 of 2)"),
        (NOTES, Signer.generate(SIGNER.name), "line 4 (checkpoint)"),
    ],
    ids=["none", "cut off", "not from mine", "reversed", "in a ring", "forged", "a stranger"],
)
def test_a_chain_that_does_not_lead_to_the_checkpoint(
    tmp_path: Path, rotations: list[str], signer: Signer, place: str
) -> None:
    content = forged(LEAVES, signed(LEAVES, signer), rotations)
    assert faulty(tmp_path / "forged", content).place == place


@pytest.mark.parametrize("count", [0, -1, 101, 10**9])
def test_a_header_with_an_impossible_count(tmp_path: Path, rotated: bytes, count: int) -> None:
    content = rotated.replace(b'"rotations":2', b'"rotations":%d' % count)
    assert faulty(tmp_path / "header", content).place == "line 1 (header)"


def test_the_verifier_stands_alone() -> None:
    """No gRPC, no protobuf, no database: what an auditor runs is what an auditor can read."""
    script = (
        "import sys; import remit.audit.verifier, remit.audit.tile_verifier;"
        "print([m for m in sys.modules if m.split('.')[0] in"
        " ('grpc', 'google', 'asyncpg', 'pydantic') or m.startswith('remit.rpc')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
