"""The chain of keys: from any key to all, and no forged or broken link is believed."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.audit.key_chain import MAX_ROTATIONS, ChainError, KeyChain, Rotation, rotation_note
from remit.audit.merkle import EMPTY_ROOT
from remit.audit.note import Checkpoint, NoteError, Signer, open_checkpoint

NAME = "remit.internal/audit/chain"
NOW = datetime(2026, 11, 23, 15, 0, 1, 999_999, tzinfo=UTC)
SIGNERS = [Signer.generate(NAME) for _ in range(5)]
NOTES = [rotation_note(old, new, NOW) for old, new in itertools.pairwise(SIGNERS)]
KEYS = [signer.verifier() for signer in SIGNERS]


def checkpoint(signer: Signer, origin: str = NAME) -> str:
    return signer.sign(Checkpoint(origin, 0, EMPTY_ROOT).body())


@pytest.mark.parametrize("known", range(5))
@pytest.mark.parametrize("signed", range(5))
def test_any_key_leads_to_the_checkpoints_of_all(known: int, signed: int) -> None:
    chain = KeyChain.read(KEYS[known], NOTES)
    assert chain.keys == tuple(KEYS)
    assert chain.newest == KEYS[-1]
    assert chain.open_checkpoint(checkpoint(SIGNERS[signed])).origin == NAME


def test_a_log_whose_key_was_never_replaced_has_one() -> None:
    chain = KeyChain.read(KEYS[0], [])
    assert (chain.keys, chain.newest) == ((KEYS[0],), KEYS[0])
    with pytest.raises(NoteError, match="no signature of the key"):
        chain.open_checkpoint(checkpoint(SIGNERS[1]))


def test_a_statement_says_what_happened() -> None:
    rotation = Rotation.open(NOTES[0])
    assert rotation == Rotation(KEYS[0], KEYS[1], "2026-11-23T15:00:01Z")


def test_a_statement_is_no_checkpoint_and_a_checkpoint_no_statement() -> None:
    with pytest.raises(NoteError):
        open_checkpoint(NOTES[0], KEYS[0])
    with pytest.raises(NoteError, match="not the statement"):
        Rotation.open(checkpoint(SIGNERS[0]))


def test_the_line_of_a_witness_changes_nothing() -> None:
    witness = Signer.generate("witness.example/w")
    line = witness.sign("x\n").splitlines()[-1]
    assert Rotation.open(f"{NOTES[0]}{line}\n") == Rotation.open(NOTES[0])
    signed = f"{checkpoint(SIGNERS[2])}{line}\n"
    assert KeyChain.read(KEYS[0], NOTES).open_checkpoint(signed).origin == NAME


@settings(max_examples=400)
@given(st.integers(0, 3), st.data())
def test_any_changed_character_breaks_its_own_link(link: int, data: st.DataObject) -> None:
    note = NOTES[link]
    position = data.draw(st.integers(0, len(note) - 1))
    letter = data.draw(st.sampled_from("aZ09+/=\n —"))
    changed = note[:position] + letter + note[position + 1 :]
    if changed == note:
        return
    with pytest.raises(ChainError) as raised:
        KeyChain.read(KEYS[0], [*NOTES[:link], changed, *NOTES[link + 1 :]])
    assert raised.value.link == link + 1


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 4))
def test_only_whole_stretches_of_the_chain_hold(order: list[int], known: int) -> None:
    """Left out, moved or repeated links break it."""
    stretch = order == list(range(order[0], order[0] + len(order))) if order else True
    reached = {*order, *(n + 1 for n in order)} or {known}
    if stretch and known in reached:
        chain = KeyChain.read(KEYS[known], [NOTES[n] for n in order])
        assert set(chain.keys) == {KEYS[n] for n in reached}
    else:
        with pytest.raises(ChainError):
            KeyChain.read(KEYS[known], [NOTES[n] for n in order])


def forged(old: Signer, new: Signer, signers: list[Signer]) -> str:
    text = Rotation(old.verifier(), new.verifier(), "2026-11-23T15:00:01Z").text()
    return f"{text}\n" + "".join(s.sign(text).removeprefix(f"{text}\n") for s in signers)


def test_a_link_that_one_of_its_keys_did_not_sign_is_forged() -> None:
    thief = Signer.generate(NAME)
    for signers in ([thief], [thief, thief], [SIGNERS[-1]]):
        note = forged(SIGNERS[-1], thief, signers)
        with pytest.raises(ChainError, match="key rotation 5 of 5: the note has"):
            KeyChain.read(KEYS[0], [*NOTES, note])


@pytest.mark.parametrize(
    ("note", "fault"),
    [
        (forged(SIGNERS[-1], SIGNERS[0], [SIGNERS[-1], SIGNERS[0]]), "goes back"),
        (forged(SIGNERS[-1], SIGNERS[-1], [SIGNERS[-1]]), "two keys of one log"),
        (NOTES[0].replace(":01Z", ":01+00:00"), "RFC 3339"),
        (NOTES[0].replace("v1", "v2"), "not the statement"),
        ("", "not the statement"),
    ],
    # The keys are made anew in each process; every process must name the tests alike.
    ids=["in a ring", "to itself", "another time", "another version", "nothing"],
)
def test_what_is_no_link(note: str, fault: str) -> None:
    with pytest.raises(ChainError, match=f"key rotation 5 of 5: .*{fault}"):
        KeyChain.read(KEYS[0], [*NOTES, note])


def test_a_key_of_another_log_takes_nobodys_place() -> None:
    other = Signer.generate("remit.internal/audit/other")
    note = forged(SIGNERS[-1], other, [SIGNERS[-1], other])
    with pytest.raises(ChainError, match="two keys of one log"):
        KeyChain.read(KEYS[0], [*NOTES, note])


def test_a_key_that_the_chain_lacks_and_a_chain_without_end() -> None:
    with pytest.raises(ChainError, match="not among the keys of the 4") as raised:
        KeyChain.read(Signer.generate(NAME).verifier(), NOTES)
    assert raised.value.link == 0
    with pytest.raises(ChainError, match="101 key rotations"):
        KeyChain.read(KEYS[0], NOTES[:1] * (MAX_ROTATIONS + 1))
