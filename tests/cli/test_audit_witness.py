"""`remit audit witness` over an edge and from tiles: what it prints, keeps, and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.cosignature import WitnessKey
from remit.audit.merkle import consistency_ranges, needed_nodes, range_hash
from remit.audit.note import Signer, open_checkpoint
from remit.cli.main import run
from remit.rpc.errors import RemitError
from tests.audit.tile_trees import signed, tree, write_tiles
from tests.cli.conftest import API_KEY, Remit
from tests.cli.edge_server import EdgeServer
from tests.waiting import PATIENCE

LEAVES = [f"leaf {index}".encode() for index in range(300)]
SIGNER = Signer.generate("remit.internal/audit/test")
UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")
REFUSED = 10


def show(edge: EdgeServer, leaves: Sequence[bytes], signer: Signer = SIGNER) -> None:
    """Let the edge show a log of these leaves."""
    note, nodes = signed(leaves, signer), tree(leaves)[1]

    def prove(request: Any) -> Any:
        ranges = consistency_ranges(request.first_tree_size, request.second_tree_size)
        hashes = [
            range_hash(each, {node: nodes[node] for node in needed_nodes([each])})
            for each in ranges
        ]
        return audit_query_service_pb2.GetConsistencyProofResponse(hashes=hashes)

    checkpoint = event_pb2.Checkpoint(tree_size=len(leaves), signed_note=note)
    edge.answers["GetCheckpoint"] = lambda _: audit_query_service_pb2.GetCheckpointResponse(
        checkpoint=checkpoint
    )
    edge.answers["GetConsistencyProof"] = prove


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "audit.pub"
    file.write_text(f"{SIGNER.verifier()}\n", encoding="ascii")
    return file


@pytest.fixture
def folder(tmp_path: Path, remit: Remit, edge: EdgeServer, key: Path) -> Path:
    """A witness that saw five leaves."""
    show(edge, LEAVES[:5])
    made = tmp_path / "witness"
    outcome = remit(
        "audit", "witness", str(made), "--init", "witness.example/w1", "--key", str(key)
    )
    assert outcome.code == 0, outcome.err
    return made


def witness_key(folder: Path) -> WitnessKey:
    return WitnessKey.parse((folder / "witness.pub").read_text(encoding="ascii"))


def kept(folder: Path) -> int:
    note = (folder / "checkpoint").read_text(encoding="utf-8")
    witness_key(folder).open(note)
    return open_checkpoint(note, SIGNER.verifier()).tree_size


def test_a_new_witness_keeps_its_first_look(folder: Path) -> None:
    assert kept(folder) == 5


def test_a_checkpoint_that_extends_the_last_is_cosigned_and_kept(
    remit: Remit, edge: EdgeServer, folder: Path, key: Path
) -> None:
    show(edge, LEAVES)
    outcome = remit("audit", "witness", str(folder), "--key", str(key))
    assert outcome.code == 0
    witness_key(folder).open(outcome.out)
    assert open_checkpoint(outcome.out, SIGNER.verifier()).tree_size == 300
    assert kept(folder) == 300
    assert edge.requests("GetConsistencyProof")[0].first_tree_size == 5


def test_the_cosigned_checkpoint_is_demanded_offline(
    remit: Remit, edge: EdgeServer, folder: Path, key: Path, tmp_path: Path
) -> None:
    """What the witness gives away is what `remit audit verify --witness` asks for."""
    tiles = write_tiles(tmp_path / "tiles", LEAVES, signed(LEAVES, SIGNER))
    target = tmp_path / "cosigned"
    show(edge, LEAVES[:200])
    told = remit("audit", "witness", str(folder), "--key", str(key), "--output", str(target))
    assert "cosigned 200 entries" in told.out
    verify = ["audit", "verify", str(tiles), "--key", str(key)]
    with_witness = ["--witness", str(folder / "witness.pub")]
    assert run([*verify, "--checkpoint", str(target), *with_witness]) == 0
    assert run([*verify, *with_witness]) == 1, "nobody cosigned the folder's own checkpoint"
    assert run([*verify, "--checkpoint", str(target), "--witness", str(key)]) == 2


@pytest.mark.parametrize(
    ("leaves", "word"),
    [
        (LEAVES[:4], "rolled back"),
        ([b"forged", *LEAVES[1:5]], "forked"),
        ([b"forged", *LEAVES[1:9]], "forked"),
    ],
    ids=["rollback", "fork of the same size", "fork that grew"],
)
def test_what_contradicts_the_last_look_is_refused_and_kept_as_evidence(
    remit: Remit, edge: EdgeServer, folder: Path, key: Path, leaves: list[bytes], word: str
) -> None:
    show(edge, leaves)
    outcome = remit("audit", "witness", str(folder), "--key", str(key))
    assert outcome.code == REFUSED
    assert outcome.out.startswith(f"audit: NOT cosigned: {word}: this witness saw 5 leaves (root ")
    assert f"shows {len(leaves)} leaves (root {tree(leaves)[0].hex()})" in outcome.out
    assert kept(folder) == 5
    assert (folder / "refused").read_text(encoding="utf-8") == signed(leaves, SIGNER)


def test_another_log_and_another_key_are_refused(
    remit: Remit, edge: EdgeServer, folder: Path, key: Path
) -> None:
    for signer in (Signer.generate("another.example/log"), Signer.generate(SIGNER.name)):
        show(edge, LEAVES[:9], signer)
        outcome = remit("audit", "witness", str(folder), "--key", str(key), "--json")
        assert outcome.code == REFUSED
        (told,) = outcome.documents
        assert (told["cosigned"], told["evidence"]) == (False, "")
        assert "another log or key" in told["fault"]
    assert not (folder / "refused").exists()
    assert kept(folder) == 5


def test_tiles_are_witnessed_without_a_mesh(
    bare_remit: Remit, folder: Path, key: Path, tmp_path: Path
) -> None:
    tiles = write_tiles(tmp_path / "tiles", LEAVES, signed(LEAVES, SIGNER))
    arguments = ["audit", "witness", str(folder), "--key", str(key), "--tiles", str(tiles)]
    (told,) = bare_remit(*arguments, "--json").documents
    assert (told["tree_size"], told["last_tree_size"], kept(folder)) == (300, 5, 300)
    (tiles / "checkpoint").write_text(signed(LEAVES[:299], SIGNER))
    assert bare_remit(*arguments).code == REFUSED
    (tiles / "checkpoint").unlink()
    outcome = bare_remit(*arguments)
    assert outcome.code == 3
    assert "are not whole: checkpoint: it is missing" in outcome.err


def test_a_tile_of_another_tree_proves_nothing(
    bare_remit: Remit, folder: Path, key: Path, tmp_path: Path
) -> None:
    """The folder's checkpoint is the log's, and its tiles are not."""
    forged = [*LEAVES[:4], b"forged", *LEAVES[5:]]
    tiles = write_tiles(tmp_path / "tiles", forged, signed(LEAVES, SIGNER))
    outcome = bare_remit("audit", "witness", str(folder), "--key", str(key), "--tiles", str(tiles))
    assert outcome.code == REFUSED
    assert kept(folder) == 5


def test_a_witness_is_made_once(remit: Remit, folder: Path, key: Path) -> None:
    before = (folder / "witness.key").read_bytes()
    outcome = remit(
        "audit", "witness", str(folder), "--init", "witness.example/w2", "--key", str(key)
    )
    assert outcome.code == 7
    assert "never made anew" in outcome.err
    assert (folder / "witness.key").read_bytes() == before


def test_a_witness_without_its_memory_vouches_for_nothing(
    remit: Remit, folder: Path, key: Path
) -> None:
    (folder / "checkpoint").unlink()
    outcome = remit("audit", "witness", str(folder), "--key", str(key))
    assert outcome.code == 7
    assert "restore it from a backup" in outcome.err


def test_a_mesh_that_is_away_is_told_and_nothing_is_made(
    remit: Remit, edge: EdgeServer, key: Path, tmp_path: Path
) -> None:
    def away(_: Any) -> Any:
        raise UNAVAILABLE

    edge.answers["GetCheckpoint"] = away
    made = tmp_path / "witness"
    outcome = remit(
        "audit", "witness", str(made), "--init", "witness.example/w1", "--key", str(key)
    )
    assert outcome.code == 3
    assert not made.exists()


@pytest.mark.parametrize(
    "arguments",
    [["--init", "two words"], ["--follow", "10ms"], ["--init", "a", "--follow", "1s"]],
)
def test_a_wrong_command_line(
    remit: Remit, tmp_path: Path, key: Path, arguments: list[str]
) -> None:
    outcome = remit("audit", "witness", str(tmp_path / "new"), "--key", str(key), *arguments)
    assert outcome.code == 2
    assert not (tmp_path / "new").exists()


def test_it_follows_a_log_through_an_outage_until_it_forks(
    edge: EdgeServer, folder: Path, key: Path
) -> None:
    """Each look asks once; the script of the log is told by how often it was asked."""
    growing = iter([LEAVES[:9], None, LEAVES[:20], LEAVES[:20], [b"forged", *LEAVES[1:30]]])

    def script(request: Any) -> Any:
        leaves = next(growing)
        if leaves is None:
            raise UNAVAILABLE
        show(edge, leaves)
        answer = edge.answers["GetCheckpoint"](request)
        edge.answers["GetCheckpoint"] = script
        return answer

    edge.answers["GetCheckpoint"] = script
    command = [sys.executable, "-m", "remit.cli.main", "audit", "witness", str(folder)]
    command += ["--key", str(key), "--follow", "200ms", "--address", edge.address, "--json"]
    environment = os.environ | {"REMIT_API_KEY": API_KEY}
    watching = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180 * PATIENCE,
        check=False,
    )
    told = [json.loads(line) for line in watching.stdout.splitlines()]
    assert [each.get("tree_size") for each in told] == [9, 20, None]
    assert "forked" in told[-1]["fault"]
    assert "nothing was cosigned" in watching.stderr
    assert watching.returncode == REFUSED
    assert kept(folder) == 20
