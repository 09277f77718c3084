"""The log is listed, exported across broken streams, and verified offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.key_files import LOG_PUBLIC_KEY, make_log_keys
from remit.audit.merkle import Frontier, leaf_hash
from remit.audit.note import Checkpoint, Signer
from remit.audit.tiles import bundle
from remit.cli.audit import MOST_RESUMES
from remit.cli.main import run
from remit.rpc.errors import RemitError
from tests.audit.tile_trees import write_tiles
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

LEAVES = [f"leaf {index}".encode() for index in range(7)]
SIGNER = Signer.generate("remit.internal/audit/test")
UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")


def checkpoint(size: int = len(LEAVES)) -> event_pb2.Checkpoint:
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        frontier.append(leaf_hash(leaf))
    note = SIGNER.sign(Checkpoint(SIGNER.name, size, frontier.root()).body())
    return event_pb2.Checkpoint(tree_size=size, root_hash=frontier.root(), signed_note=note)


def pieces(request: Any, size: int = 2) -> Any:
    """An export in messages of `size` leaves, from where it is asked for."""
    for start in range(request.start_index, len(LEAVES), size):
        message = audit_query_service_pb2.ExportLogResponse(
            sequence=start, leaves=LEAVES[start : start + size]
        )
        if start == request.start_index:
            message.checkpoint.CopyFrom(checkpoint(request.tree_size or len(LEAVES)))
        yield message


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "audit.pub"
    file.write_text(f"{SIGNER.verifier()}\n", encoding="ascii")
    return file


@pytest.fixture
def exported(remit: Remit, edge: EdgeServer, tmp_path: Path) -> Path:
    edge.answers["ExportLog"] = pieces
    file = tmp_path / "log.export"
    assert remit("audit", "export", str(file)).code == 0
    return file


def test_events_are_listed_with_their_place(remit: Remit, edge: EdgeServer) -> None:
    event = event_pb2.Event(
        kind=event_pb2.EVENT_KIND_OUTCOME,
        outcome=event_pb2.OUTCOME_REFUSED,
        action="tools.call",
        resource="tools/send_email",
        subject="orgs/local/users/bob",
    )
    logged = audit_query_service_pb2.LoggedEvent(leaf_index=7, event=event)
    edge.answers["ListEvents"] = lambda _: audit_query_service_pb2.ListEventsResponse(
        events=[logged]
    )
    sought = ["--subject", "bob", "--action", "tools.call", "--kind", "outcome"]
    out = remit("audit", "list", "--run", "r", "--claim", "c", *sought, "--outcome", "refused").out
    request = edge.requests("ListEvents")[0]
    assert (request.run, request.claim) == ("runs/r", "claims/c")
    assert (request.subject, request.action) == ("users/bob", "tools.call")
    assert request.kind == event_pb2.EVENT_KIND_OUTCOME
    assert request.outcome == event_pb2.OUTCOME_REFUSED
    row = out.splitlines()[1].split()
    assert row == [
        "7",
        "-",
        "outcome",
        "refused",
        "tools.call",
        "tools/send_email",
        "orgs/local/users/bob",
        "-",
    ]


def test_an_empty_page_is_not_the_end(remit: Remit, edge: EdgeServer) -> None:
    pages = iter(
        [
            audit_query_service_pb2.ListEventsResponse(next_page_token="2"),
            audit_query_service_pb2.ListEventsResponse(
                events=[audit_query_service_pb2.LoggedEvent(leaf_index=3)]
            ),
        ]
    )
    edge.answers["ListEvents"] = lambda _: next(pages)
    assert remit("audit", "list", "--json", "--kind", "admin").documents[0]["events"]


def test_a_kind_that_is_none(remit: Remit) -> None:
    done = remit("audit", "list", "--kind", "unspecified")
    assert done.code == 2
    assert "unspecified" in done.err


def test_an_export_verifies(exported: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "verify", str(exported), "--key", str(key)]) == 0
    root = checkpoint().root_hash.hex()
    line = f"audit: verified 7 entries, root {root}, signed by {SIGNER.name}\n"
    assert capsys.readouterr().out == line


def test_an_export_that_breaks_off_is_taken_up(
    remit: Remit, edge: EdgeServer, tmp_path: Path, key: Path
) -> None:
    def breaking(request: Any) -> Any:
        yield next(iter(pieces(request)))
        if request.start_index < 4:
            raise UNAVAILABLE
        yield from list(pieces(request))[1:]

    edge.answers["ExportLog"] = breaking
    file = tmp_path / "log.export"
    assert remit("audit", "export", str(file)).code == 0
    asked = [(r.start_index, r.tree_size) for r in edge.requests("ExportLog")]
    assert asked == [(0, 0), (2, 7), (4, 7)]
    assert run(["audit", "verify", str(file), "--key", str(key)]) == 0


def test_an_export_that_only_breaks_is_given_up_and_leaves_no_file(
    remit: Remit, edge: EdgeServer, tmp_path: Path
) -> None:
    def broken(request: Any) -> Any:
        if request.start_index == 0:
            yield next(iter(pieces(request)))
        raise UNAVAILABLE

    edge.answers["ExportLog"] = broken
    assert remit("audit", "export", str(tmp_path / "log.export")).code == 3
    assert len(edge.requests("ExportLog")) == 1 + MOST_RESUMES
    assert list(tmp_path.glob("log.export*")) == []


def test_a_short_export_is_refused(remit: Remit, edge: EdgeServer, tmp_path: Path) -> None:
    edge.answers["ExportLog"] = lambda request: list(pieces(request))[:2]
    outcome = remit("audit", "export", str(tmp_path / "log.export"))
    assert outcome.code == 7
    assert "broke off after 4 leaves" in outcome.err


def test_an_earlier_export_is_not_replaced_by_accident(remit: Remit, exported: Path) -> None:
    before = exported.read_bytes()
    outcome = remit("audit", "export", str(exported))
    assert outcome.code == 2
    assert "--force" in outcome.err
    assert exported.read_bytes() == before
    assert remit("audit", "export", "--force", str(exported)).code == 0


def test_a_folder_that_is_not_there_is_told(remit: Remit, edge: EdgeServer, tmp_path: Path) -> None:
    edge.answers["ExportLog"] = pieces
    outcome = remit("audit", "export", str(tmp_path / "none" / "log.export"))
    assert outcome.code == 7
    assert "cannot be written" in outcome.err


# A flipped bit of any byte: every byte of the file is under the signature, a hash or the spelling.
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=60,
)
def test_one_flipped_bit_is_found_and_placed(
    exported: Path, key: Path, capsys: pytest.CaptureFixture[str], place: int, bit: int
) -> None:
    data = bytearray(exported.read_bytes())
    data[place % len(data)] ^= 1 << bit
    flipped = exported.with_suffix(".flipped")
    flipped.write_bytes(data)
    assert run(["audit", "verify", str(flipped), "--key", str(key)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("audit: NOT verified: ")
    assert "line " in out or "leaves 0 to" in out


def test_the_checkpoint_kept_earlier_must_be_extended(
    exported: Path,
    key: Path,
    tmp_path: Path,
    remit: Remit,
    edge: EdgeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edge.answers["GetCheckpoint"] = lambda _: audit_query_service_pb2.GetCheckpointResponse(
        checkpoint=checkpoint(3)
    )
    earlier = tmp_path / "monday.checkpoint"
    earlier.write_text(remit("audit", "checkpoint").out, encoding="utf-8")
    arguments = ["audit", "verify", str(exported), "--key", str(key), "--checkpoint", str(earlier)]
    assert run(arguments) == 0
    assert "extends the checkpoint of 3" in capsys.readouterr().out
    forged = SIGNER.sign(Checkpoint(SIGNER.name, 3, b"\x00" * 32).body())
    earlier.write_text(forged, encoding="utf-8")
    assert run(arguments) == 1
    assert "the log was rewritten" in capsys.readouterr().out


def test_another_logs_key_does_not_verify(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    other.write_text(str(Signer.generate("other").verifier()), encoding="ascii")
    assert run(["audit", "verify", str(exported), "--key", str(other)]) == 1


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\xff", b"x" * 100_000])
def test_a_file_that_is_no_key_is_a_wrong_command_line(
    exported: Path, tmp_path: Path, content: bytes
) -> None:
    wrong = tmp_path / "wrong.pub"
    wrong.write_bytes(content)
    assert run(["audit", "verify", str(exported), "--key", str(wrong)]) == 2


def test_missing_files_and_options_are_a_wrong_command_line(exported: Path, key: Path) -> None:
    assert run(["audit", "verify", str(exported)]) == 2
    assert run(["audit", "verify", f"{exported}.none", "--key", str(key)]) == 2
    assert run(["audit", "verify", str(exported), "--key", f"{key}.none"]) == 2


def test_machines_are_told_what_was_proved_or_where_it_breaks(
    bare_remit: Remit, exported: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["audit", "verify", str(exported), "--key", str(key), "--json"]
    capsys.readouterr()
    assert run(arguments) == 0
    assert '"verified": true, "tree_size": 7' in capsys.readouterr().out
    exported.write_bytes(exported.read_bytes().replace(b'"leaf_index":4', b'"leaf_index":5'))
    assert run(arguments) == 1
    out = capsys.readouterr().out
    assert '"verified": false, "place": "line 7 (leaf 4)"' in out


def test_the_logs_key_is_rotated_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    make_log_keys(folder)
    old = (folder / LOG_PUBLIC_KEY).read_text(encoding="ascii").strip()
    assert run(["audit", "rotate-key", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["old_key"] == old
    assert told["new_key"] == (folder / LOG_PUBLIC_KEY).read_text(encoding="ascii").strip()
    assert run(["audit", "rotate-key", str(folder)]) == 0
    assert "restart the replicas" in capsys.readouterr().out
    (folder / "log.key").unlink()
    assert run(["audit", "rotate-key", str(folder)]) == 7
    assert "log.key is missing" in capsys.readouterr().err


def test_a_folder_of_tiles_and_several_checkpoints_are_verified(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = write_tiles(tmp_path / "tiles", LEAVES, checkpoint().signed_note)
    arguments = ["audit", "verify", str(tiles), "--key", str(key)]
    for size in (5, 2):
        file = tmp_path / f"{size}.checkpoint"
        file.write_text(checkpoint(size).signed_note, encoding="utf-8")
        arguments += ["--checkpoint", str(file)]
    assert run(arguments) == 0
    assert "extends the checkpoint of 2 and of 5" in capsys.readouterr().out
    (tiles / "tile/entries/000.p/7").write_bytes(bundle([*LEAVES[:6], b"forged"]))
    assert run([*arguments, "--json"]) == 1
    told = capsys.readouterr().out
    assert '"place": "tile/entries/000.p/7 (leaf 6)"' in told
    assert run(["audit", "verify", str(tmp_path), "--key", str(key)]) == 1
    assert "checkpoint: it is missing" in capsys.readouterr().out
