"""`remit audit reconcile`: what an operator does after the log's database was restored."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remit.cli.output import Output
from remit.cli.state_settings import audit_settings

if TYPE_CHECKING:
    from remit.audit.reconciliation import Reconciled
    from remit.audit.settings import AuditSettings


@click.command(
    epilog="\b\nExamples:\n  remit audit reconcile /backup/log.export\n"
    "  remit audit reconcile /mirror/tiles\n"
    "  remit audit reconcile /backup/log.export --state ~/.local/state/remit",
)
@click.argument("file", metavar="FILE|DIR", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--state",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a mesh that `remit up` runs now; else the settings of audit say where all is.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for machines.")
def reconcile(*, file: Path, state: Path | None, as_json: bool) -> None:
    """Put back from the export FILE, or the tiles in DIR, what a restored log lacks.

    It takes the environment of the audit service (REMIT_AUDIT_DSN, REMIT_AUDIT_KEYS_DSN,
    REMIT_AUDIT_KEYS_DIR, REMIT_AUDIT_ANCHOR_FILE). FILE or DIR must reach the largest checkpoint
    that was signed, and go on from the log as it is now. After that effects start again. Leaves
    come back, and with them every proof; the subjects and details of their events do not. Outcomes
    that are missing after that are appended by the services that owe them.
    """
    output = Output(as_json=as_json)
    settings = audit_settings(state)
    done = asyncio.run(_reconciled(settings, file))
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


async def _reconciled(settings: AuditSettings, file: Path) -> Reconciled | None:
    from remit.audit.lost_leaves import source_of  # noqa: PLC0415 - slow
    from remit.audit.operating import reconciled  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow
    from remit.rpc.ids import SystemIds  # noqa: PLC0415 - slow

    return await reconciled(settings, source_of(file), clock=SystemClock(), ids=SystemIds())
