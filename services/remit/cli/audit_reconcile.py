"""`remit audit reconcile`: what an operator does after the log's database was restored."""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from remit.cli.audit_verify import small_text
from remit.cli.output import Output
from remit.cli.state_settings import audit_settings

if TYPE_CHECKING:
    from remit.audit.accepting_loss import Loss
    from remit.audit.operating import LossPlan
    from remit.audit.reconciliation import Reconciled
    from remit.audit.settings import AuditSettings

_MOST_CHARS: Final = 512
_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    epilog="\b\nExamples:\n  remit audit reconcile /backup/log.export\n"
    "  remit audit reconcile /mirror/tiles\n"
    "  remit audit reconcile /backup/log.export --state ~/.local/state/remit\n"
    "  remit audit reconcile --accept-loss --reason 'disk of db-2 died, ticket 4711'",
)
@click.argument(
    "file", metavar="[FILE|DIR]", type=click.Path(path_type=Path, exists=True), required=False
)
@click.option(
    "--accept-loss",
    is_flag=True,
    help="What is in neither exists nowhere: declare its loss in the log, and go on without it.",
)
@click.option("--reason", default="", help="Why the loss is accepted; it stands in the log.")
@click.option("--by", default="", help="Who accepts the loss; else who runs this command.")
@click.option(
    "--checkpoint",
    type=_FILE,
    help="A later checkpoint than the one beside the database, a witness's for example.",
)
@click.option("--yes", is_flag=True, help="Do not ask for the log's name.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a mesh that `remit up` runs now; else the settings of audit say where all is.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for machines.")
def reconcile(  # noqa: PLR0913 - its options
    *,
    file: Path | None,
    accept_loss: bool,
    reason: str,
    by: str,
    checkpoint: Path | None,
    yes: bool,
    state: Path | None,
    as_json: bool,
) -> None:
    """Put back from the export FILE, or the tiles in DIR, what a restored log lacks.

    It takes the environment of the audit service (REMIT_AUDIT_DSN, REMIT_AUDIT_KEYS_DSN,
    REMIT_AUDIT_KEYS_DIR, REMIT_AUDIT_ANCHOR_FILE). FILE or DIR must reach the largest checkpoint
    that was signed, and go on from the log as it is now. After that effects start again. Leaves
    come back, and with them every proof; the subjects and details of their events do not. Outcomes
    that are missing after that are appended by the services that owe them.

    With --accept-loss, what FILE or DIR has is put back, and the log declares that it lost the
    rest: for ever, and to everybody who verifies it with a checkpoint of before. Witnesses refuse
    it from then on; make new ones. It cannot be undone.
    """
    output = Output(as_json=as_json)
    if not accept_loss:
        if reason or by or checkpoint or yes:
            raise click.UsageError("--reason, --by, --checkpoint and --yes go with --accept-loss")
        if file is None:
            raise click.UsageError("Missing argument 'FILE|DIR'; or --accept-loss without one")
        _told(output, asyncio.run(_reconciled(audit_settings(state), file)))
        return
    by = by or getpass.getuser()
    for name, text in (("--reason", reason), ("--by", by)):
        if not 1 <= len(text.strip()) <= _MOST_CHARS or not text.isprintable():
            raise click.UsageError(f"{name} must say so in 1 to {_MOST_CHARS} characters")
    if as_json and not yes:
        raise click.UsageError("--json asks nothing: give --yes too")
    settings = audit_settings(state)
    plan = _plan(file, None if checkpoint is None else small_text(checkpoint), by, reason)
    if not yes:
        _confirm(asyncio.run(_lost(settings, plan)))
    _told_loss(output, *asyncio.run(_accepted(settings, plan)))


def _told(output: Output, done: Reconciled | None) -> None:
    if output.as_json:
        output.document(_document(done))
        return
    if done is None:
        output.line("audit: the log extends every checkpoint that is known; nothing is missing")
        return
    output.line(
        f"audit: put back {done.count:,} leaves, {done.kept_size:,} to {done.tree_size - 1:,};"
        " their subjects and details are lost"
    )
    output.line(
        f"{done.lost_intents:,} of the effects that began among them have no outcome there; the"
        " services that own their claims append it"
    )
    output.line(
        "entries younger than the last checkpoint cannot be known: `remit cost check` names"
    )
    output.line("what was paid for without them. Restart the replicas of audit now.")


def _document(done: Reconciled | None) -> dict[str, Any]:
    if done is None:
        return {"put_back": 0}
    return {
        "put_back": done.count,
        "kept_size": done.kept_size,
        "tree_size": done.tree_size,
        "root_hash": done.root_hash.hex(),
        "intents_without_outcome": done.lost_intents,
    }


def _confirm(loss: Loss) -> None:
    """Ask for the log's name. Raises Abort where another is typed, or nobody can type."""
    click.echo(
        f"The log {loss.log_name} has {loss.kept_size:,} leaves, and signed a checkpoint of"
        f" {loss.lost.tree_size:,}\n(root {loss.lost.root_hash.hex()}).\n"
        f"It will declare for ever that it lost the leaves {loss.kept_size:,} to"
        f" {loss.lost.tree_size - 1:,}, as far as no file gives them back.",
        err=True,
    )
    typed = click.prompt("Type the name of the log to accept that", err=True, default="")
    if typed != loss.log_name:
        click.echo("That is not its name; nothing was done.", err=True)
        raise click.Abort


def _told_loss(output: Output, loss: Loss, done: Reconciled | None, tree_size: int) -> None:
    if output.as_json:
        output.document(
            {
                "put_back": done.count if done else 0,
                "kept_size": loss.kept_size,
                "lost_size": loss.lost.tree_size,
                "lost_root_hash": loss.lost.root_hash.hex(),
                "lost": loss.count,
                "leaf_index": loss.kept_size,
                "tree_size": tree_size,
            }
        )
        return
    if done is not None:
        output.line(f"audit: put back {done.count:,} leaves, {done.kept_size:,} and after")
    output.line(
        f"audit: leaf {loss.kept_size:,} declares the loss of the leaves {loss.kept_size:,} to"
        f" {loss.lost.tree_size - 1:,}; the log goes on, and is signed at {tree_size:,} leaves"
    )
    output.line("`remit audit verify --complete` and `remit cost check` name the effects that have")
    output.line("no entry now. Restart the replicas of audit now, and make new witnesses.")


def _plan(file: Path | None, note: str | None, by: str, reason: str) -> LossPlan:
    from remit.audit.lost_leaves import source_of  # noqa: PLC0415 - slow
    from remit.audit.operating import LossPlan  # noqa: PLC0415 - slow

    return LossPlan(note, None if file is None else source_of(file), by, reason)


async def _reconciled(settings: AuditSettings, file: Path) -> Reconciled | None:
    from remit.audit.lost_leaves import source_of  # noqa: PLC0415 - slow
    from remit.audit.operating import reconciled  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow
    from remit.rpc.ids import SystemIds  # noqa: PLC0415 - slow

    return await reconciled(settings, source_of(file), clock=SystemClock(), ids=SystemIds())


async def _lost(settings: AuditSettings, plan: LossPlan) -> Loss:
    from remit.audit.operating import lost  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow
    from remit.rpc.ids import SystemIds  # noqa: PLC0415 - slow

    return await lost(settings, plan.note, clock=SystemClock(), ids=SystemIds())


async def _accepted(settings: AuditSettings, plan: LossPlan) -> tuple[Loss, Reconciled | None, int]:
    from remit.audit.operating import loss_accepted  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow
    from remit.rpc.ids import SystemIds  # noqa: PLC0415 - slow

    loss, done, signed = await loss_accepted(settings, plan, clock=SystemClock(), ids=SystemIds())
    return loss, done, signed.tree_size
