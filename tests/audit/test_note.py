"""Signed notes: the published example, round trips, and everything that must be refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit.note import (
    Checkpoint,
    NoteError,
    Signer,
    Verifier,
    open_checkpoint,
)

ORIGIN = "remit.dev/audit/test"
SIGNER = Signer.generate(ORIGIN)
ROOT = bytes(range(32))
NOTE = SIGNER.sign(Checkpoint(ORIGIN, 42, ROOT).body())

# The example of golang.org/x/mod/sumdb/note, which C2SP signed-note took over.
GO_VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngo"
    "tpRZb6KE6RyyBwJnAM=\n"
)


def test_the_published_example_verifies() -> None:
    verifier = Verifier.parse(GO_VERIFIER)
    assert str(verifier) == GO_VERIFIER
    assert verifier.open(GO_NOTE).startswith("If you think cryptography")


def test_keys_survive_their_text_form() -> None:
    again = Signer.parse(SIGNER.secret_text() + "\n")
    assert again.sign("x\n") == SIGNER.sign("x\n")
    assert Verifier.parse(f"{SIGNER.verifier()}\n") == SIGNER.verifier()


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_survives_its_note(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(ORIGIN, size, root)
    assert open_checkpoint(SIGNER.sign(checkpoint.body()), SIGNER.verifier()) == checkpoint


def test_signatures_of_strangers_are_left_alone() -> None:
    witness = Signer.generate("witness.example/w1")
    cosigned = NOTE + witness.sign(Checkpoint(ORIGIN, 42, ROOT).body()).rpartition("\n\n")[2]
    assert open_checkpoint(cosigned, SIGNER.verifier()).tree_size == 42
    assert witness.verifier().open(cosigned) == Checkpoint(ORIGIN, 42, ROOT).body()


def test_extension_lines_are_allowed() -> None:
    body = Checkpoint(ORIGIN, 42, ROOT).body() + "an extension\n"
    assert open_checkpoint(SIGNER.sign(body), SIGNER.verifier()).tree_size == 42


@given(st.integers(0, len(NOTE.encode()) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_refused(position: int, bit: int) -> None:
    changed = bytearray(NOTE.encode())
    changed[position] ^= 1 << bit
    try:
        text = changed.decode()
    except UnicodeDecodeError:
        return  # no text at all: the reader of the file refuses it
    with pytest.raises(NoteError):
        open_checkpoint(text, SIGNER.verifier())


@given(st.text(max_size=300))
def test_no_text_is_taken_for_a_note(text: str) -> None:
    with pytest.raises(NoteError):
        open_checkpoint(text, SIGNER.verifier())


@given(st.text(max_size=120))
def test_no_text_is_taken_for_a_key(text: str) -> None:
    for parse in (Verifier.parse, Signer.parse):
        with pytest.raises(NoteError):
            parse(text)


def test_another_key_of_the_same_name_is_refused() -> None:
    with pytest.raises(NoteError, match="no signature of the key"):
        open_checkpoint(NOTE, Signer.generate(ORIGIN).verifier())


def test_the_checkpoint_of_another_log_is_refused() -> None:
    note = SIGNER.sign(Checkpoint("another.example/log", 42, ROOT).body())
    with pytest.raises(NoteError, match=r"of the log another\.example/log"):
        open_checkpoint(note, SIGNER.verifier())


def test_a_repeated_signature_is_refused() -> None:
    twice = NOTE + NOTE.rpartition("\n\n")[2]
    with pytest.raises(NoteError, match="2 signatures"):
        open_checkpoint(twice, SIGNER.verifier())


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("only\ntwo\n", "three lines"),
        (f"{ORIGIN}\n042\n{base64.b64encode(ROOT).decode()}\n", "decimal"),
        (f"{ORIGIN}\n-1\n{base64.b64encode(ROOT).decode()}\n", "decimal"),
        (f"{ORIGIN}\n42\nAAAA\n", "32 bytes"),
        (f"{ORIGIN}\n42\n***\n", "base64"),
        (f"{ORIGIN}\n42\n{base64.b64encode(ROOT).decode()[:-2]}B=\n", "canonical"),
    ],
)
def test_a_signed_text_that_is_no_checkpoint(body: str, fault: str) -> None:
    with pytest.raises(NoteError, match=fault):
        open_checkpoint(SIGNER.sign(body), SIGNER.verifier())


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("", "form"),
        ("name+00000000", "form"),
        (GO_VERIFIER.replace("c74f20a3", "c74f20a4"), "own key id"),
        (GO_VERIFIER.replace("c74f20a3", "C74F20A3"), "hex"),
        (GO_VERIFIER.replace("Peter", "Peter "), "white space"),
        (GO_VERIFIER[:-4], "Ed25519"),
    ],
)
def test_malformed_keys(key: str, fault: str) -> None:
    with pytest.raises(NoteError, match=fault):
        Verifier.parse(key)


def test_a_note_beyond_its_bounds_is_refused() -> None:
    with pytest.raises(NoteError, match="bytes"):
        SIGNER.verifier().open("x" * 70_000)
    with pytest.raises(NoteError, match="signatures"):
        SIGNER.verifier().open(NOTE + NOTE.rpartition("\n\n")[2] * 20)
    with pytest.raises(NoteError, match="control"):
        SIGNER.verifier().open(NOTE.replace("42", "4\t2"))
    with pytest.raises(NoteError, match="newline"):
        SIGNER.sign("no newline")
