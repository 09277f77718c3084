"""The verifier of tiles: a true folder passes, and whatever was done to it is named by place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.audit.cosignature import Cosigner
from remit.audit.evidence import Auditor, Report, VerificationError
from remit.audit.key_chain import rotation_note
from remit.audit.merkle import leaf_hash
from remit.audit.note import Signer
from remit.audit.tile_verifier import verify_tiles
from remit.audit.tiles import bundle
from tests.audit.events import NOW
from tests.audit.tile_trees import files_in, signed, tile_files, tree, write_tiles

SIGNER = Signer.generate("remit.internal/audit/test")
LATER = Signer.generate(SIGNER.name)
WITNESS = Cosigner.generate("witness.example/w1")
LEAVES = [f"leaf {index}".encode() for index in range(600)]
NOTE = signed(LEAVES, SIGNER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiles(tmp_path / "tiles", LEAVES, NOTE)


def verified(folder: Path, *earlier: str, witnesses: tuple[str, ...] = ()) -> Report:
    return verify_tiles(folder, Auditor.of(str(SIGNER.verifier()), earlier, witnesses))


def faulty(folder: Path, *earlier: str, witnesses: tuple[str, ...] = ()) -> VerificationError:
    with pytest.raises(VerificationError) as raised:
        verified(folder, *earlier, witnesses=witnesses)
    return raised.value


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 512, 600])
def test_a_true_folder_of_any_size_is_verified(tmp_path: Path, size: int) -> None:
    folder = write_tiles(tmp_path, LEAVES[:size], signed(LEAVES[:size], SIGNER))
    report = verified(folder)
    assert (report.origin, report.tree_size) == (SIGNER.name, size)
    assert report.root_hash == tree(LEAVES[:size])[0]


def test_a_log_of_three_levels_is_verified_and_its_upper_tiles_too(tmp_path: Path) -> None:
    leaves = [b"%d" % index for index in range(256 * 256 + 300)]
    folder = write_tiles(tmp_path, leaves, signed(leaves, SIGNER))
    assert verified(folder).tree_size == len(leaves)
    tile = folder / "tile/2/000.p/1"
    tile.write_bytes(b"x" * 32)
    error = faulty(folder)
    assert error.place == "tile/1/000 (leaves 0 to 65535)"
    assert "its hash in tile/2/000.p/1" in error.fault


def test_it_extends_every_earlier_checkpoint_of_any_order(folder: Path) -> None:
    earlier = [signed(LEAVES[:size], SIGNER) for size in (300, 0, 600, 256, 1)]
    assert verified(folder, *earlier).earlier_tree_sizes == (0, 1, 256, 300, 600)


def test_tiles_of_a_later_checkpoint_are_left_alone(folder: Path) -> None:
    """A folder is read while it grows: what the checkpoint does not need says nothing."""
    more = [*LEAVES, *(b"more" for _ in range(300))]
    write_tiles(folder, more, signed(more, SIGNER))
    for partials in ("tile/0/002.p", "tile/entries/002.p"):
        shutil.rmtree(folder / partials)
    (folder / "checkpoint").write_text(NOTE)
    assert verified(folder).tree_size == 600


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_bit_of_any_file_is_found_and_named(folder: Path, data: st.DataObject) -> None:
    files = files_in(folder)
    path = data.draw(st.sampled_from(sorted(files)))
    changed = bytearray(files[path])
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    (folder / path).write_bytes(changed)
    try:
        error = faulty(folder)
    finally:
        (folder / path).write_bytes(files[path])
    name = path.partition(".p/")[0].rpartition("/")[2]
    assert name in f"{error.place} {error.fault}"
    if path.startswith("tile/0/") or "entries" in path:
        assert "leaf" in error.place or "entries" in error.place


@pytest.mark.parametrize("path", sorted(tile_files(LEAVES, NOTE)))
def test_a_file_that_is_missing_is_named(folder: Path, path: str) -> None:
    (folder / path).unlink()
    error = faulty(folder)
    assert (error.place, error.fault) == (path, "it is missing")


def test_an_entry_that_was_changed_with_every_hash_above_it(folder: Path) -> None:
    """Whoever recomputes all tiles cannot sign: the root tells, and earlier checkpoints where."""
    forged = [*LEAVES[:400], b"forged", *LEAVES[401:]]
    write_tiles(folder, forged, NOTE)
    assert faulty(folder).place == "leaves 0 to 599"
    earlier = [signed(LEAVES[:size], SIGNER) for size in (256, 390, 450)]
    assert faulty(folder, *earlier).place == "leaves 390 to 449"


def test_an_entry_that_was_changed_with_its_hash_alone(folder: Path) -> None:
    entries = [*LEAVES[:5], b"forged", *LEAVES[6:256]]
    (folder / "tile/entries/000").write_bytes(bundle(entries))
    (folder / "tile/0/000").write_bytes(b"".join(map(leaf_hash, entries)))
    error = faulty(folder)
    assert error.place == "tile/0/000 (leaves 0 to 255)"
    assert "its hash in tile/1/000.p/2" in error.fault


def test_a_log_rewritten_by_its_own_signer_needs_an_earlier_checkpoint(folder: Path) -> None:
    forged = [*LEAVES[:400], b"forged", *LEAVES[401:]]
    write_tiles(folder, forged, signed(forged, SIGNER))
    assert verified(folder, signed(LEAVES[:300], SIGNER)).tree_size == 600
    error = faulty(folder, *(signed(LEAVES[:size], SIGNER) for size in (300, 500)))
    assert error.place == "the earlier checkpoint of 500 leaves"
    assert "rewritten: leaves 300 to 499" in error.fault


def test_a_log_cut_back_by_its_own_signer(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path, LEAVES[:300], signed(LEAVES[:300], SIGNER))
    error = faulty(folder, NOTE)
    assert error.place == "the earlier checkpoint of 600 leaves"
    assert "cut back: it has 300 leaves now" in error.fault


def test_the_checkpoint_of_another_log_or_key(folder: Path) -> None:
    for signer in (Signer.generate("another.example/log"), LATER):
        (folder / "checkpoint").write_text(signed(LEAVES, signer))
        error = faulty(folder)
        assert error.place == "checkpoint"
        assert "no signature of the key" in error.fault


def test_a_checkpoint_of_several_that_is_none_is_counted(folder: Path) -> None:
    error = faulty(folder, NOTE, "nonsense")
    assert error.place == "earlier checkpoint 2 of 2"


def test_a_replaced_key_is_reached_from_the_first(folder: Path) -> None:
    note = rotation_note(SIGNER, LATER, NOW)
    (folder / "checkpoint").write_text(signed(LEAVES, LATER))
    assert faulty(folder).place == "checkpoint"
    (folder / "rotations").write_text(json.dumps(note) + "\n")
    assert verified(folder, signed(LEAVES[:9], SIGNER)).earlier_tree_size == 9


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"nonsense\n", "rotations"),
        (b"\xff\xff\n", "rotations"),
        (b'"cut off', "rotations"),
        (b'"no statement"\n', "rotations (key rotation 1 of 1)"),
        (b"7\n", "rotations"),
        (b'"x"\n' * 400_000, "rotations"),
    ],
    ids=["nonsense", "no text", "cut off", "no statement", "no string", "endless"],
)
def test_rotations_that_are_none_are_named(folder: Path, content: bytes, place: str) -> None:
    (folder / "rotations").write_bytes(content)
    assert faulty(folder).place == place


# ------------------------------------------------------------------------- witnesses


def test_a_witness_must_have_cosigned_the_logs_checkpoint(folder: Path) -> None:
    key = str(WITNESS.witness_key())
    assert "no cosignature of the witness" in faulty(folder, witnesses=(key,)).fault
    (folder / "checkpoint").write_text(WITNESS.cosign(NOTE, 1_700_000_000))
    (seen,) = verified(folder, witnesses=(key,)).cosigned
    assert (seen.witness, seen.tree_size, seen.time_s) == (WITNESS.name, 600, 1_700_000_000)


def test_a_witness_must_have_cosigned_each_earlier_checkpoint_that_is_given(folder: Path) -> None:
    key = str(WITNESS.witness_key())
    bare, cosigned = signed(LEAVES[:9], SIGNER), WITNESS.cosign(signed(LEAVES[:20], SIGNER), 7)
    assert verified(folder, cosigned, witnesses=(key,)).earlier_tree_size == 20
    error = faulty(folder, cosigned, bare, witnesses=(key,))
    assert error.place == "earlier checkpoint 2 of 2"
    second = str(Cosigner.generate("witness.example/w2").witness_key())
    error = faulty(folder, cosigned, witnesses=(key, second))
    assert "of the witness witness.example/w2" in error.fault


def test_what_is_no_witness_key(folder: Path) -> None:
    error = faulty(folder, witnesses=(str(SIGNER.verifier()),))
    assert error.place == "the witness's public key"
