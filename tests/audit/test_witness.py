"""The witness: it cosigns what extends what it saw, and refuses the rest with sizes and roots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit.cosignature import Cosigner
from remit.audit.key_chain import rotation_note
from remit.audit.merkle import LeafRange, Node, consistency_ranges, needed_nodes, range_hash
from remit.audit.note import Checkpoint, Signer, open_checkpoint
from remit.audit.witness import Sighting, WitnessRefusalError, first_sighting, next_sighting
from tests.audit.events import NOW
from tests.audit.tile_trees import signed, tree

LOG = Signer.generate("remit.internal/audit/test")
WITNESS = Cosigner.generate("witness.example/w1")
LEAVES = [f"leaf {index}".encode() for index in range(300)]
TIME_S = 1_700_000_000


@dataclass
class Shown:
    """A log that shows these leaves, signed so, with proofs from whatever leaves it likes."""

    leaves: Sequence[bytes]
    signer: Signer = LOG
    rotations: Sequence[str] = ()
    proves: Sequence[bytes] = field(default_factory=list)

    async def checkpoint(self) -> tuple[str, Sequence[str]]:
        return signed(self.leaves, self.signer), self.rotations

    async def consistency_proof(self, first_size: int, second_size: int) -> Sequence[bytes]:
        nodes = tree(self.proves or self.leaves)[1]
        return [_hash(leaves, nodes) for leaves in consistency_ranges(first_size, second_size)]


def _hash(leaves: LeafRange, nodes: dict[Node, bytes]) -> bytes:
    return range_hash(leaves, {node: nodes[node] for node in needed_nodes([leaves])})


async def saw(leaves: Sequence[bytes], signer: Signer = LOG) -> str:
    """What a witness keeps that saw these leaves."""
    return WITNESS.cosign(signed(leaves, signer), TIME_S)


async def look(last: str, log: Shown, known: Signer = LOG) -> Sighting:
    return await next_sighting(WITNESS, known.verifier(), last, log, TIME_S + 60)


async def refused(last: str, log: Shown, known: Signer = LOG) -> WitnessRefusalError:
    with pytest.raises(WitnessRefusalError) as raised:
        await look(last, log, known)
    return raised.value


async def test_the_first_look_is_cosigned() -> None:
    seen = await first_sighting(WITNESS, LOG.verifier(), Shown(LEAVES[:5]), TIME_S)
    assert seen.last_size is None
    assert open_checkpoint(seen.note, LOG.verifier()) == seen.checkpoint
    assert WITNESS.witness_key().open(seen.note) == TIME_S


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 7), (1, 2), (255, 256), (256, 257), (100, 300), (300, 300)]
)
async def test_what_extends_the_last_is_cosigned(first: int, second: int) -> None:
    seen = await look(await saw(LEAVES[:first]), Shown(LEAVES[:second]))
    assert (seen.last_size, seen.checkpoint.tree_size) == (first, second)
    assert WITNESS.witness_key().open(seen.note) == TIME_S + 60


@given(data=st.data())
async def test_no_other_tree_is_ever_cosigned(data: st.DataObject) -> None:
    """Whatever was changed below the last size, and whichever leaves the proof is made of."""
    last = data.draw(st.integers(1, 60))
    now = data.draw(st.integers(last, 60))
    changed = data.draw(st.integers(0, last - 1))
    forged = [*LEAVES[:changed], b"forged", *LEAVES[changed + 1 : now]]
    proves = data.draw(st.sampled_from([forged, LEAVES[:now]]))
    error = await refused(await saw(LEAVES[:last]), Shown(forged, proves=proves))
    assert str(error).startswith("forked: ")
    assert f"saw {last} leaves (root {tree(LEAVES[:last])[0].hex()})" in str(error)
    assert f"shows {now} leaves (root {tree(forged)[0].hex()})" in str(error)
    assert error.note == signed(forged, LOG)


async def test_a_rollback_is_refused_with_sizes_and_roots() -> None:
    error = await refused(await saw(LEAVES[:200]), Shown(LEAVES[:150]))
    assert str(error) == (
        f"rolled back: this witness saw 200 leaves (root {tree(LEAVES[:200])[0].hex()}), and the"
        f" log shows 150 leaves (root {tree(LEAVES[:150])[0].hex()})"
    )
    assert error.note == signed(LEAVES[:150], LOG)


@pytest.mark.parametrize("proof", [[], [b"short"], [b"x" * 32] * 70])
async def test_a_proof_that_is_none_is_refused(
    proof: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(*_: object) -> list[bytes]:
        return proof

    log = Shown(LEAVES[:9])
    monkeypatch.setattr(log, "consistency_proof", answer)
    assert "without a proof" in str(await refused(await saw(LEAVES[:5]), log))


async def test_another_log_or_key_is_refused() -> None:
    other = Signer.generate("another.example/log")
    same_name = Signer.generate(LOG.name)
    for signer in (other, same_name):
        error = await refused(await saw(LEAVES[:5]), Shown(LEAVES[:6], signer))
        assert f"another log or key: the log shows a checkpoint of '{signer.name}'" in str(error)
        assert not error.note, "the log did not sign it, so it says nothing about the log"
        with pytest.raises(WitnessRefusalError, match="another log or key"):
            await first_sighting(WITNESS, LOG.verifier(), Shown(LEAVES, signer), TIME_S)


async def test_a_witness_of_another_log_is_not_used() -> None:
    other = Signer.generate("another.example/log")
    error = await refused(await saw(LEAVES[:5], other), Shown(LEAVES[:6]))
    assert "this witness keeps a checkpoint of 'another.example/log'" in str(error)


async def test_a_key_that_was_replaced_by_rule_is_followed() -> None:
    new = Signer.generate(LOG.name)
    rotations = [rotation_note(LOG, new, NOW)]
    last = await saw(LEAVES[:5])
    for known in (LOG, new):
        seen = await look(last, Shown(LEAVES[:9], new, rotations), known)
        assert open_checkpoint(seen.note, new.verifier()).tree_size == 9
    error = await refused(last, Shown(LEAVES[:9], new, rotations), Signer.generate(LOG.name))
    assert str(error).startswith("another key: ")


async def test_a_checkpoint_that_is_signed_and_none_is_refused() -> None:
    @dataclass
    class Odd(Shown):
        async def checkpoint(self) -> tuple[str, Sequence[str]]:
            return LOG.sign(Checkpoint("another.example/log", 9, b"r" * 32).body()), ()

    assert "of 'another.example/log'" in str(await refused(await saw(LEAVES[:5]), Odd(LEAVES)))
