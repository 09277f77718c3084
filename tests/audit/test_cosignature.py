"""Cosignatures: a real one of a public witness, round trips, and all that must be refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit.cosignature import Cosigner, WitnessKey
from remit.audit.note import Checkpoint, NoteError, Signer, open_checkpoint

# A checkpoint of a public log, with the line of a public witness and that witness's published key.
PUBLIC_WITNESS = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
PUBLIC_NOTE = (
    "arche2025h1.staging.ct.transparency.dev\n"
    "1432088532\n"
    "U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=\n"
    "\n"
    "— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3N"
    "ygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=\n"
    "— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sX"
    "Tynk5XeU/zZ0WBxtqB0DrAWfBw==\n"
)
LOG = Signer.generate("remit.internal/audit/test")
WITNESS = Cosigner.generate("witness.example/w1")
NOTE = LOG.sign(Checkpoint(LOG.name, 42, bytes(range(32))).body())
COSIGNED = WITNESS.cosign(NOTE, 1_700_000_000)


def test_the_cosignature_of_a_public_witness_verifies() -> None:
    witness = WitnessKey.parse(PUBLIC_WITNESS)
    assert str(witness) == PUBLIC_WITNESS
    assert witness.open(PUBLIC_NOTE) == 1_779_573_024
    with pytest.raises(NoteError, match="does not fit the note"):
        witness.open(PUBLIC_NOTE.replace("1432088532", "1432088533"))


def test_keys_survive_their_text_form() -> None:
    again = Cosigner.parse(WITNESS.secret_text() + "\n")
    assert again.cosign(NOTE, 7) == WITNESS.cosign(NOTE, 7)
    assert WitnessKey.parse(f"{WITNESS.witness_key()}\n") == WITNESS.witness_key()


@given(st.integers(0, 2**63 - 1))
def test_the_time_is_under_the_signature(time_s: int) -> None:
    cosigned = WITNESS.cosign(NOTE, time_s)
    assert WITNESS.witness_key().open(cosigned) == time_s
    head, _, line = cosigned.rpartition("— ")
    name, encoded = line.split()
    data = bytearray(base64.b64decode(encoded))
    data[11] ^= 1
    forged = f"{head}— {name} {base64.b64encode(data).decode()}\n"
    with pytest.raises(NoteError, match="does not fit the note"):
        WITNESS.witness_key().open(forged)


def test_the_log_and_each_witness_stand_beside_each_other() -> None:
    second = Cosigner.generate("witness.example/w2")
    both = second.cosign(COSIGNED, 9)
    assert open_checkpoint(both, LOG.verifier()).tree_size == 42
    assert WITNESS.witness_key().open(both) == 1_700_000_000
    assert second.witness_key().open(both) == 9


def test_a_witness_replaces_its_own_line() -> None:
    again = WITNESS.cosign(COSIGNED, 1_700_000_060)
    assert WITNESS.witness_key().open(again) == 1_700_000_060
    assert len(again) == len(COSIGNED)


@given(st.integers(0, len(COSIGNED.encode()) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_refused_by_log_or_witness(position: int, bit: int) -> None:
    changed = bytearray(COSIGNED.encode())
    changed[position] ^= 1 << bit
    try:
        text = changed.decode()
    except UnicodeDecodeError:
        return  # no text at all: the reader of the file refuses it
    with pytest.raises(NoteError):
        opened_by_both(text)


def opened_by_both(note: str) -> None:
    open_checkpoint(note, LOG.verifier())
    WITNESS.witness_key().open(note)


def test_a_cosignature_is_no_signature_and_a_signature_no_cosignature() -> None:
    """The same key as a log's signs other bytes, under another id."""
    same = Signer(WITNESS.name, WITNESS.private_key)
    with pytest.raises(NoteError, match="no signature of the key"):
        same.verifier().open(COSIGNED)
    with pytest.raises(NoteError, match="no cosignature of the witness"):
        WITNESS.witness_key().open(same.sign("x\n"))
    with pytest.raises(NoteError, match="not an Ed25519 key of its kind"):
        WitnessKey.parse(str(same.verifier()))


def test_another_witness_of_the_same_name_is_refused() -> None:
    with pytest.raises(NoteError, match="no cosignature of the witness"):
        Cosigner.generate(WITNESS.name).witness_key().open(COSIGNED)


def test_a_repeated_or_short_cosignature_is_refused() -> None:
    line = COSIGNED.rpartition("— ")[2]
    with pytest.raises(NoteError, match="2 cosignatures"):
        WITNESS.witness_key().open(f"{COSIGNED}— {line}")
    data = base64.b64decode(line.split()[1])[:-1]
    short = f"{NOTE}— {WITNESS.name} {base64.b64encode(data).decode()}\n"
    with pytest.raises(NoteError, match="malformed"):
        WITNESS.witness_key().open(short)


@given(st.text(max_size=120))
def test_no_text_is_taken_for_a_key(text: str) -> None:
    for parse in (WitnessKey.parse, Cosigner.parse):
        with pytest.raises(NoteError):
            parse(text)


def test_keys_whose_id_does_not_fit_are_refused() -> None:
    identifier = WITNESS.witness_key().key_id.hex()
    for parse, text in (
        (WitnessKey.parse, str(WITNESS.witness_key())),
        (Cosigner.parse, WITNESS.secret_text()),
    ):
        with pytest.raises(NoteError, match="own key id"):
            parse(text.replace(identifier, "00000000"))


@pytest.mark.parametrize("name", ["", "two words", "a+b"])
def test_a_name_that_no_key_can_have_is_refused(name: str) -> None:
    with pytest.raises(NoteError, match="name of a key"):
        Cosigner.generate(name)
