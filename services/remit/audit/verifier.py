"""The offline verifier: an export and a public key, no service, no database, no network.

An export is a text file, one JSON object a line, each in the one spelling that this module writes:

1. ``{"format":"remit-audit-export","version":1}``
2. ``{"checkpoint":"<the signed note>"}``
3. for every leaf, in order:
   ``{"leaf_index":0,"leaf_hash":"<base64>","leaf":"<base64 of the leaf's bytes>"}``
4. ``{"leaf_count":1,"sha256":"<hex of every byte of the file before this line>"}``

Once the log's key was replaced, exports are of version 2: the first line counts the replacements,
``{"format":"remit-audit-export","version":2,"rotations":1}``, and before the checkpoint stands a
line for each, ``{"rotation":"<the signed note>"}``, by which one key of the log leads to all
(`key_chain`).

What makes it a proof is the checkpoint: the root that the log signed must be the root of these
leaves, and the tree at the size of an earlier checkpoint must have had the root that was signed
then. The leaf hashes and the last line prove nothing to an adversary; they let an accident be named
by its place. This module is small and uses only `merkle`, `evidence` and what signs (`note`,
`key_chain`, `cosignature`), so that whoever doubts Remit can read all of it. `tile_verifier` does
the same for a folder of tiles.

    report = verify_export(Path("log.export"), Path("log.pub").read_text())
    print(report.tree_size, report.root_hash.hex())
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from remit.audit.evidence import Auditor, Report, Tree, VerificationError
from remit.audit.key_chain import MAX_ROTATIONS, ChainError, KeyChain
from remit.audit.merkle import HASH_BYTES, leaf_hash
from remit.audit.note import NoteError, Verifier, decode_base64

FORMAT = "remit-audit-export"
MAX_LINE_BYTES = 1024 * 1024


def verify_export(path: Path, public_key: str, *earlier_checkpoints: str) -> Report:
    """Verify an export with a public key, and perhaps checkpoints, that were saved earlier.

    Raises:
        VerificationError: something does not fit; it names the place.
        OSError: the file cannot be read.

    """
    return verify_lines(path, Auditor.of(public_key, earlier_checkpoints))


def verify_lines(path: Path, auditor: Auditor) -> Report:
    """Verify an export with all that an auditor brings along; raises as `verify_export` does."""
    with path.open("rb") as file:
        lines = _Lines(file)
        keys = _read_keys(lines, auditor.known)
        tree = auditor.tree(*_read_checkpoint(lines), keys)
        _check_leaves(lines, tree)
        _check_footer(lines, tree.checkpoint.tree_size)
    tree.check_earlier()
    return tree.report()


# ------------------------------------------------------------------------- the lines


def header_line(rotations: int) -> bytes:
    """Return the first line of an export of a log whose key was replaced so many times."""
    if not rotations:
        return _line({"format": FORMAT, "version": 1})
    return _line({"format": FORMAT, "version": 2, "rotations": rotations})


def rotation_line(signed_note: str) -> bytes:
    """Return the line of an export that holds the statement of a rotation."""
    return _line({"rotation": signed_note})


def checkpoint_line(signed_note: str) -> bytes:
    """Return the line of an export that holds its checkpoint."""
    return _line({"checkpoint": signed_note})


def leaf_line(leaf_index: int, leaf: bytes) -> bytes:
    """Return the line of an export that holds a leaf."""
    hashed, encoded = base64.b64encode(leaf_hash(leaf)), base64.b64encode(leaf)
    return b'{"leaf_index":%d,"leaf_hash":"%b","leaf":"%b"}\n' % (leaf_index, hashed, encoded)


def footer_line(leaf_count: int, sha256_hex: str) -> bytes:
    """Return the last line of an export."""
    return _line({"leaf_count": leaf_count, "sha256": sha256_hex})


def _line(members: dict[str, str | int]) -> bytes:
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class _Lines:
    """The lines of a file, one at a time, with the digest of all that was read before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._pending = b""
        self.number = 0

    def next(self) -> bytes:
        """Return the next line, empty at the end of the file."""
        self._digest.update(self._pending)
        self._pending = self._file.readline(MAX_LINE_BYTES)
        self.number += 1
        return self._pending

    def digest_before(self) -> str:
        """Return the SHA-256 in hex of everything before the line that was read last."""
        return self._digest.hexdigest()


# ------------------------------------------------------------------------ the checks


def _read_keys(lines: _Lines, known: Verifier) -> KeyChain:
    """Read header and rotations; return the keys of the log that the known one leads to."""
    count = _read_header(lines)
    notes = []
    for number in range(1, count + 1):
        line, place = lines.next(), f"line {lines.number} (key rotation {number} of {count})"
        notes.append(_members(line, place, rotation=str)["rotation"])
        _check_spelling(line, rotation_line(notes[-1]), place)
    try:
        return KeyChain.read(known, notes)
    except ChainError as error:
        place = f"line {1 + error.link} ({error.place})" if error.link else "the public key"
        raise VerificationError(place, error.fault) from error


def _read_header(lines: _Lines) -> int:
    """Return the number of rotations that follow."""
    line, place = lines.next(), "line 1 (header)"
    if line == header_line(0):
        return 0
    fault = "this is not an export of version 1 or 2"
    try:
        members = _members(line, place, format=str, version=int, rotations=int)
    except VerificationError as error:
        raise VerificationError(place, fault) from error
    count: int = members["rotations"]
    if not 1 <= count <= MAX_ROTATIONS or line != header_line(count):
        raise VerificationError(place, fault)
    return count


def _read_checkpoint(lines: _Lines) -> tuple[str, str]:
    """Return where the checkpoint stands, and its note."""
    line, place = lines.next(), f"line {lines.number} (checkpoint)"
    note = _members(line, place, checkpoint=str)["checkpoint"]
    _check_spelling(line, checkpoint_line(note), place)
    return place, note


def _check_leaves(lines: _Lines, tree: Tree) -> None:
    """Check every leaf and the root."""
    for index in range(tree.checkpoint.tree_size):
        tree.append(*_read_leaf(lines, index, tree.checkpoint.tree_size))
    tree.check_root()


def _read_leaf(lines: _Lines, index: int, tree_size: int) -> tuple[bytes, bytes]:
    """Return hash and bytes of the leaf on the next line."""
    line = lines.next()
    place = f"line {lines.number} (leaf {index})"
    if not line:
        raise VerificationError(place, f"the export is cut off: {tree_size} leaves were signed")
    members = _members(line, place, leaf_index=int, leaf_hash=str, leaf=str)
    if members["leaf_index"] != index:
        raise VerificationError(place, f"it says that it is leaf {members['leaf_index']}")
    leaf, hashed = (_decoded(members[name], name, place) for name in ("leaf", "leaf_hash"))
    if len(hashed) != HASH_BYTES or leaf_hash(leaf) != hashed:
        raise VerificationError(place, "the leaf does not have its hash: one of them was changed")
    _check_spelling(line, leaf_line(index, leaf), place)
    return hashed, leaf


def _check_footer(lines: _Lines, tree_size: int) -> None:
    line = lines.next()
    place = f"line {lines.number} (end)"
    if not line:
        raise VerificationError(place, "the export is cut off: its last line is missing")
    members = _members(line, place, leaf_count=int, sha256=str)
    if members["leaf_count"] != tree_size:
        raise VerificationError(place, f"it counts {members['leaf_count']} leaves, not {tree_size}")
    if members["sha256"] != lines.digest_before():
        raise VerificationError(place, "its digest does not fit the file")
    _check_spelling(line, footer_line(tree_size, members["sha256"]), place)
    if lines.next():
        raise VerificationError(f"line {lines.number}", "the export goes on after its end")


def _members(line: bytes, place: str, **kinds: type[str | int]) -> dict[str, Any]:
    """Return the members of the object on a line, which must be exactly those of `kinds`."""
    if not line.endswith(b"\n"):
        raise VerificationError(place, "the line is cut off or too long")
    try:
        members = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VerificationError(place, "the line is not JSON") from error
    if not isinstance(members, dict) or members.keys() != kinds.keys():
        raise VerificationError(place, f"the line does not hold {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(members[name]) is not kind:
            raise VerificationError(place, f"{name} is not of its kind")
    return members


def _decoded(text: str, name: str, place: str) -> bytes:
    try:
        return decode_base64(text, name)
    except NoteError as error:
        raise VerificationError(place, str(error)) from error


def _check_spelling(line: bytes, expected: bytes, place: str) -> None:
    if line != expected:
        raise VerificationError(place, "the line is not spelt as exports are")
