"""A loss that nothing mends is declared by the log, once, and to everybody who verifies it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remit.api.audit.v1 import event_pb2
from remit.audit import accepting_loss, operating
from remit.audit.anchor import ANCHOR_FILE, Anchor
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.cosignature import Cosigner
from remit.audit.declared_loss import DeclaredLoss, declared_loss, loss_id
from remit.audit.evidence import VerificationError
from remit.audit.key_files import LOG_PUBLIC_KEY, load_log_keys
from remit.audit.log import AuditLog
from remit.audit.lost_leaves import ExportFile, LeafSource
from remit.audit.note import Checkpoint, Signer, Verifier
from remit.audit.operating import LossPlan, loss_accepted
from remit.audit.settings import AuditSettings
from remit.audit.store import LogStore
from remit.audit.verifier import verify_export
from remit.audit.witness import WitnessRefusalError, first_sighting, next_sighting
from remit.cli import exit_codes
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.audit.events import make_event, sealed
from tests.audit.test_operator_commands import Operator, operator
from tests.audit.test_reconciliation import (
    database_size,
    exported,
    leaves_of,
    restored,
)
from tests.audit.test_service import Audit, admin, audit, intent, outcome, reasons, serving

assert audit  # the fixtures: a running service, and who runs commands beside it
assert operator


async def lose(audit: Audit, had: int, kept: int) -> str:
    """A log of so many leaves, of which a backup brings back some; its last checkpoint."""
    had_before = await database_size(audit.settings)
    for first in range(had_before, had, 200):
        names = [f"e-{n}" for n in range(first, min(first + 200, had))]
        await audit.append(*map(admin, names))
    note = (await audit.ask("GetCheckpoint", min_tree_size=had)).checkpoint.signed_note
    await restored(audit.settings, kept)
    return str(note)


async def accept(
    settings: AuditSettings, note: str | None = None, source: LeafSource | None = None
) -> Any:
    plan = LossPlan(note, source, "olga", "the disk died")
    return await loss_accepted(settings, plan, clock=SystemClock(), ids=SystemIds())


async def refused(
    settings: AuditSettings, reason: str, words: str, note: str | None = None
) -> None:
    before = anchor(settings)
    with pytest.raises(RemitError, match=words) as raised:
        await accept(settings, note)
    assert raised.value.reason_name == reason
    assert anchor(settings) == before
    async with Database.open(settings.dsn) as database:
        declared = "SELECT count(*) FROM events WHERE action = 'audit.accept_loss'"
        assert await database.fetchval(declared) == len(
            list(settings.keys_dir.glob(f"{ANCHOR_FILE}.lost-*"))
        )


def anchor(settings: AuditSettings) -> str:
    return (settings.keys_dir / ANCHOR_FILE).read_text()


def public_key(settings: AuditSettings) -> str:
    return (settings.keys_dir / LOG_PUBLIC_KEY).read_text()


async def test_the_log_goes_on_and_says_what_it_lost(audit: Audit, tmp_path: Path) -> None:
    earliest = await lose(audit, had=300, kept=300)
    note = await lose(audit, had=310, kept=280)
    async with serving(audit.settings) as closed:
        assert reasons(await closed.append(intent("e-new"))) == ["LOG_ROLLED_BACK"]
    loss, done, signed = await accept(audit.settings)
    assert (loss.kept_size, loss.lost.tree_size, loss.count, done) == (280, 310, 30, None)
    assert signed.tree_size == 281
    assert anchor(audit.settings) == signed.signed_note
    aside = audit.settings.keys_dir / f"{ANCHOR_FILE}.lost-310"
    assert (aside.read_text(), aside.stat().st_mode & 0o777) == (note, 0o600)
    async with serving(audit.settings) as after:
        assert await after.append(intent("e-new")) == [281]
        listed = (await after.list_events("orgs/operator/users/olga")).events
        [told] = [e.event for e in listed if e.event.action == "audit.accept_loss"]
        detail = json.loads(told.detail_json)
        assert (detail["accepted_by"], detail["reason"]) == ("olga", "the disk died")
        assert (detail["kept_size"], detail["lost_size"]) == (280, 310)
        await after.append(*(admin(f"f-{number}") for number in range(50)))
        # It looks each second, and when it is asked for a checkpoint that it does not have yet.
        with pytest.raises(RemitError, match="start it anew"):
            await audit.ask("GetCheckpoint", min_tree_size=1 << 40)
        stale = reasons(await audit.append(intent("e-stale")))
        assert stale == ["LOG_ROLLED_BACK"], "its tree is gone, however far the other one grows"
        path = await exported(after, tmp_path / "log.export")
    report = verify_export(path, public_key(audit.settings))
    declared = DeclaredLoss(280, 310, loss.lost.root_hash)
    assert report.losses == (declared,)
    for old, words in ((note, "leaves 280 to 309"), (earliest, "leaves 280 to 309")):
        with pytest.raises(VerificationError, match=f"the log does not extend it.*{words}") as no:
            verify_export(path, public_key(audit.settings), old)
        assert no.value.loss == declared
    [leaf] = [each for each in leaves_of(path) if b"audit.accept_loss" in each]
    assert (json.loads(leaf)["kind"], json.loads(leaf)["event_id"]) == (
        "ADMIN",
        loss_id(loss.lost),
    )


async def test_what_is_left_elsewhere_comes_back_first(audit: Audit, tmp_path: Path) -> None:
    entries = [admin(f"e-{number}") for number in range(5)]
    await audit.append(*entries)
    path = await exported(audit, tmp_path / "early.export")  # which leaves an entry of its own
    covered = len(leaves_of(path))
    note = await lose(audit, had=12, kept=2)
    loss, done, signed = await accept(audit.settings, source=ExportFile(path))
    assert done is not None
    assert (done.kept_size, done.tree_size, loss.kept_size) == (2, covered, covered)
    assert signed.tree_size == covered + 1
    async with serving(audit.settings) as after:
        assert await after.append(*entries) == list(range(5)), "each has its place again"
        assert reasons(await after.append(admin("e-4"))) == ["KEY_REUSED"], "it is another event"
        path = await exported(after, tmp_path / "log.export")
    with pytest.raises(VerificationError, match=f"leaves {covered} to"):
        verify_export(path, public_key(audit.settings), note)


async def test_a_log_that_is_whole_loses_nothing(audit: Audit) -> None:
    await audit.append(admin("e-1"), admin("e-2"))
    note = (await audit.ask("GetCheckpoint", min_tree_size=2)).checkpoint.signed_note
    await refused(audit.settings, "INVALID_STATE", "nothing is lost")
    await refused(audit.settings, "INVALID_STATE", "nothing is lost", note)


async def test_a_loss_is_accepted_once(audit: Audit) -> None:
    note = await lose(audit, had=5, kept=3)
    await accept(audit.settings)
    await refused(audit.settings, "INVALID_STATE", "nothing is lost")
    await refused(audit.settings, "INVALID_STATE", "already, at leaf 3", note)
    async with serving(audit.settings) as after:
        await after.append(*(admin(f"f-{number}") for number in range(9)))
        await after.ask("GetCheckpoint", min_tree_size=13)
    await refused(audit.settings, "CONFIGURATION_INVALID", "is not what was lost", note)


async def test_a_second_loss_is_another(audit: Audit, tmp_path: Path) -> None:
    first = await lose(audit, had=5, kept=3)
    await accept(audit.settings)
    async with serving(audit.settings) as again:
        second = await lose(again, had=9, kept=4)
    await accept(audit.settings)
    async with serving(audit.settings) as after:
        path = await exported(after, tmp_path / "log.export")
    report = verify_export(path, public_key(audit.settings))
    assert [loss.kept_size for loss in report.losses] == [3, 4]
    for note, kept in ((first, 3), (second, 4)):
        with pytest.raises(VerificationError, match="does not extend it") as raised:
            verify_export(path, public_key(audit.settings), note)
        assert raised.value.loss is not None
        assert raised.value.loss.kept_size == kept


async def test_a_wrong_checkpoint_is_refused(audit: Audit) -> None:
    early = await lose(audit, had=3, kept=3)
    await lose(audit, had=8, kept=4)
    await refused(audit.settings, "CONFIGURATION_INVALID", "one of 8 was signed", early)
    keys = load_log_keys(audit.settings.keys_dir)
    fork = keys.signer.sign(Checkpoint(keys.signer.name, 8, b"r" * 32).body())
    await refused(audit.settings, "CONFIGURATION_INVALID", "signed two trees of 8", fork)
    stranger = Signer.generate(keys.signer.name)
    forged = stranger.sign(Checkpoint(stranger.name, 9, b"r" * 32).body())
    await refused(audit.settings, "CONFIGURATION_INVALID", "did not sign", forged)
    await refused(audit.settings, "CONFIGURATION_INVALID", "did not sign", "nonsense")


async def test_a_later_checkpoint_of_elsewhere_names_the_whole_loss(
    audit: Audit, tmp_path: Path
) -> None:
    early = await lose(audit, had=6, kept=6)
    late = await lose(audit, had=9, kept=4)
    (audit.settings.keys_dir / ANCHOR_FILE).write_text(early)
    loss, _, signed = await accept(audit.settings, late)
    assert (loss.kept_size, loss.lost.tree_size, signed.tree_size) == (4, 9, 5)
    async with serving(audit.settings) as after:
        path = await exported(after, tmp_path / "log.export")
    for note in (early, late):
        with pytest.raises(VerificationError, match="leaves 4 to 8"):
            verify_export(path, public_key(audit.settings), note)


async def test_without_any_checkpoint_there_is_no_loss_to_name(audit: Audit) -> None:
    await lose(audit, had=6, kept=3)
    (audit.settings.keys_dir / ANCHOR_FILE).unlink()
    with pytest.raises(RemitError, match="no checkpoint of the log is kept outside"):
        await accept(audit.settings)
    assert await database_size(audit.settings) == 3


async def test_a_log_that_went_another_way_declares_nothing(audit: Audit, tmp_path: Path) -> None:
    await lose(audit, had=5, kept=3)
    kept = anchor(audit.settings)
    (audit.settings.keys_dir / ANCHOR_FILE).unlink()
    async with serving(audit.settings) as unguarded:
        await unguarded.append(*(admin(f"b-{number}") for number in range(4)))
    (audit.settings.keys_dir / ANCHOR_FILE).write_text(kept)
    await refused(audit.settings, "LOG_ROLLED_BACK", "not those that were signed")
    del tmp_path


async def test_only_audit_can_declare_a_loss(audit: Audit, tmp_path: Path) -> None:
    """Another service's entry of such a name excuses nothing, and hinders nobody."""
    lost = Checkpoint("x", 9, b"r" * 32)
    await audit.append(admin(loss_id(lost), action="audit.accept_loss"))
    path = await exported(audit, tmp_path / "log.export")
    assert verify_export(path, public_key(audit.settings)).losses == ()
    keys = load_log_keys(audit.settings.keys_dir)
    note = keys.signer.sign(Checkpoint(keys.signer.name, 9, b"r" * 32).body())
    with pytest.raises(VerificationError, match="was cut back") as raised:
        verify_export(path, public_key(audit.settings), note)
    assert raised.value.loss is None
    with pytest.raises(RemitError, match="declares none"):
        await accept(audit.settings, note)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": event_pb2.EVENT_KIND_READ},
        {"action": "budgets.set"},
        {"event_id": "loss-0-" + "0" * 64},
        {"event_id": "loss-5-" + "0" * 64},
        {"event_id": "loss-9-" + "0" * 63},
        {"event_id": "loss-9-" + "0" * 64 + "-x"},
    ],
)
def test_what_does_not_declare_a_loss(changes: dict[str, object]) -> None:
    fields: dict[str, object] = {
        "event_id": "loss-9-" + "0" * 64,
        "kind": event_pb2.EVENT_KIND_ADMIN,
        "action": "audit.accept_loss",
    }
    assert declared_loss(5, _by_audit(fields)) == DeclaredLoss(5, 9, bytes(32))
    assert declared_loss(5, _by_audit(fields | changes)) is None
    assert declared_loss(9, _by_audit(fields)) is None, "nothing was lost"
    assert declared_loss(5, _by_audit(fields)[:-1]) is None


def _by_audit(fields: dict[str, object]) -> bytes:
    event = sealed(make_event(**fields))  # type: ignore[arg-type]
    return event.leaf_bytes.replace(b'"reporter":"tools"', b'"reporter":"audit"')


async def test_the_witness_refuses_and_a_new_one_begins(audit: Audit) -> None:
    note = await lose(audit, had=5, kept=3)
    known = Verifier.parse(public_key(audit.settings))
    cosigner = Cosigner.generate("witness.example/w1")
    seen = (await first_sighting(cosigner, known, _Shown(note), 1)).note
    _, _, signed = await accept(audit.settings)
    with pytest.raises(WitnessRefusalError, match="rolled back"):
        await next_sighting(cosigner, known, seen, _Shown(signed.signed_note), 2)
    async with serving(audit.settings) as after:
        await after.append(*(admin(f"f-{number}") for number in range(9)))
        grown = (await after.ask("GetCheckpoint", min_tree_size=13)).checkpoint.signed_note
        with pytest.raises(WitnessRefusalError, match="forked"):
            await next_sighting(cosigner, known, seen, _Shown(grown, after), 3)
        assert await first_sighting(cosigner, known, _Shown(grown), 4)


class _Shown:
    """A log as it shows itself."""

    def __init__(self, note: str, audit: Audit | None = None) -> None:
        self._note = note
        self._audit = audit

    async def checkpoint(self) -> tuple[str, list[str]]:
        return self._note, []

    async def consistency_proof(self, first_size: int, second_size: int) -> list[bytes]:
        assert self._audit is not None
        sizes = {"first_tree_size": first_size, "second_tree_size": second_size}
        return list((await self._audit.ask("GetConsistencyProof", **sizes)).hashes)


# ------------------------------------------------------------------------- crashes


class Killed(BaseException):
    """As if the process had died here."""


_STEPS = [
    (AuditLog, "append_at"),
    (CheckpointSigner, "covering_all"),
    (Anchor, "give_up"),
]


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize(("owner", "name"), _STEPS, ids=[name for _, name in _STEPS])
async def test_whatever_dies_the_log_stays_closed_or_is_done(
    audit: Audit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    side: str,
) -> None:
    """Dies before or after each step; the log takes nothing until the command was run again."""
    note = await lose(audit, had=5, kept=4)  # so that the leaf has the size of what was lost
    real = getattr(owner, name)

    async def dies(*arguments: Any, **options: Any) -> None:
        if side == "after":
            await real(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            await accept(audit.settings)
    done = (name, side) == ("give_up", "after")
    async with serving(audit.settings) as between:
        found = reasons(await between.append(admin("e-new")))
        assert found == ([5] if done else ["LOG_ROLLED_BACK"])
    if done:
        await refused(audit.settings, "INVALID_STATE", "nothing is lost")
    else:
        loss, _, signed = await accept(audit.settings)
        assert (loss.kept_size, signed.tree_size) == (4, 5)
    async with serving(audit.settings) as after:
        await after.append(admin("e-new"))
        path = await exported(after, tmp_path / "log.export")
    assert len([each for each in leaves_of(path) if b"audit.accept_loss" in each]) == 1
    with pytest.raises(VerificationError, match="leaves 4 to 4"):
        verify_export(path, public_key(audit.settings), note)


async def test_a_log_that_moved_since_the_look_declares_nothing(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose(audit, had=5, kept=3)
    look = accepting_loss.look

    async def meanwhile(*arguments: Any) -> Any:
        found = await look(*arguments)
        async with Database.open(audit.settings.dsn) as database:
            another = LogStore(database, max_batch=4, max_queue=8)
            await another.append(sealed(make_event("another")))
        return found

    monkeypatch.setattr(operating, "look", meanwhile)
    await refused(audit.settings, "INVALID_STATE", "has 4 leaves, and had 3")


# ------------------------------------------------------------------------- the command


async def test_the_operator_types_the_logs_name(
    audit: Audit, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.uses(audit.settings)
    await audit.append_outcomes(outcome("e-outcome"))
    note = await lose(audit, had=5, kept=3)
    name = load_log_keys(audit.settings.keys_dir).signer.name
    command = ("reconcile", "--accept-loss", "--reason", "the disk died")
    typed = ["another log"]
    monkeypatch.setattr("click.prompt", lambda *_, **__: typed[0])
    code, _, err = await operator(*command)
    assert (code, "nothing was done" in err) == (exit_codes.INTERRUPTED, True), err
    assert await database_size(audit.settings) == 3
    typed[0] = name
    code, out, err = await operator(*command)
    assert code == exit_codes.OK, err
    assert f"The log {name} has 3 leaves" in err
    assert "leaf 3 declares the loss of the leaves 3 to" in out
    async with serving(audit.settings) as after:
        path = await exported(after, tmp_path / "log.export")
    (tmp_path / "old").write_text(note)
    verify = ["verify", str(path), "--key", str(audit.settings.keys_dir / LOG_PUBLIC_KEY)]
    code, out, _ = await operator(*verify)
    assert (code, "declares that leaves 3 to" in out) == (exit_codes.OK, True), out
    code, out, _ = await operator(*verify, "--checkpoint", str(tmp_path / "old"))
    assert (code, "leaf 3 declares that leaves 3 to" in out) == (exit_codes.FAILED, True), out
    code, out, _ = await operator(*verify, "--checkpoint", str(tmp_path / "old"), "--json")
    [document] = [line for line in out.splitlines() if line.startswith("{")]
    assert json.loads(document)["declared_loss"]["kept_size"] == 3


async def test_a_machine_says_yes(audit: Audit, operator: Operator) -> None:
    operator.uses(audit.settings)
    await lose(audit, had=5, kept=3)
    given = ("reconcile", "--accept-loss", "--reason", "the disk died", "--by", "olga", "--yes")
    told = await operator.json(*given)
    assert (told["kept_size"], told["lost_size"], told["lost"]) == (3, 5, 2)
    code, _, err = await operator(*given)
    assert (code, "nothing is lost" in err) == (exit_codes.FAILED, True), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing argument"),
        (("--yes",), "go with --accept-loss"),
        (("--reason", "x"), "go with --accept-loss"),
        (("--accept-loss",), "--reason must say so"),
        (("--accept-loss", "--reason", "  "), "--reason must say so"),
        (("--accept-loss", "--reason", "a\nb"), "--reason must say so"),
        (("--accept-loss", "--reason", "x" * 513), "--reason must say so"),
        (("--accept-loss", "--reason", "x", "--json"), "give --yes too"),
    ],
)
async def test_a_wrong_command_line_accepts_nothing(
    audit: Audit, operator: Operator, arguments: tuple[str, ...], words: str
) -> None:
    operator.uses(audit.settings)
    await lose(audit, had=5, kept=3)
    code, _, err = await operator("reconcile", *arguments)
    assert (code, words in err) == (exit_codes.USAGE, True), err
    assert await database_size(audit.settings) == 3
