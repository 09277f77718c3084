"""`remit audit archive`: old months leave the database of the log, and nothing is lost."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remit.cli.output import Output
from remit.cli.state_settings import audit_settings

if TYPE_CHECKING:
    from remit.audit.archive_run import ArchivePlan, Done
    from remit.audit.settings import AuditSettings


class _MonthType(click.ParamType[date]):
    """A month, written `2026-08`."""

    name = "YYYY-MM"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click states it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> date:
        """Return its first day."""
        from remit.audit.archive_file import month_of  # noqa: PLC0415 - slow

        if isinstance(value, date):
            return value
        try:
            return month_of(str(value))
        except ValueError:
            self.fail(f"{value!r} is no month; write it like 2026-08", param, ctx)


@click.command(
    epilog="\b\nExamples:\n  remit audit archive --dry-run\n"
    "  remit audit archive --before 2026-08 --drop\n"
    "  remit audit archive --before 2026-08 --drop --state ~/.local/state/remit",
)
@click.option(
    "--before",
    type=_MonthType(),
    help="Only months before this one; else those older than REMIT_AUDIT_RETENTION_MONTHS.",
)
@click.option("--drop", "drops", is_flag=True, help="Drop them from the database afterwards.")
@click.option(
    "--dry-run", is_flag=True, help="Only look what would be done, and whether the tiles are whole."
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a mesh that `remit up` runs now; else the settings of audit say where all is.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for machines.")
def archive(
    *, before: date | None, drops: bool, dry_run: bool, state: Path | None, as_json: bool
) -> None:
    """Archive the events of old months, and with --drop take them out of the log's database.

    Each leaf of a month must be in the tiles (REMIT_AUDIT_TILES_DIR) as it was logged; they are
    read back. Payloads go to a file of REMIT_AUDIT_ARCHIVE_DIR, still encrypted. The log records
    it, and a checkpoint covers that entry before anything is dropped. This month and the last one
    stay.

    What is dropped is in no list any more, and lists say so. Proofs, exports and checks of
    completeness work as ever. Safe to repeat after a crash at any moment.
    """
    output = Output(as_json=as_json)
    settings = audit_settings(state)
    done = asyncio.run(_archived(settings, _plan(settings, before, drops=drops, looks=dry_run)))
    if output.as_json:
        output.document({"months": [_document(each) for each in done], "dry_run": dry_run})
        return
    for each in done:
        output.line(_line(each))
    if not done:
        output.line("audit: no month is due")


def _plan(settings: AuditSettings, before: date | None, *, drops: bool, looks: bool) -> ArchivePlan:
    from remit.audit.archive_run import ArchivePlan  # noqa: PLC0415 - slow
    from remit.audit.archiving import retained_from  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow

    if before is None and not settings.retention_months:
        message = "no retention is set, so nothing is due: say which months with --before"
        raise click.UsageError(message)
    first_kept = before or retained_from(SystemClock().now(), settings.retention_months)
    return ArchivePlan(first_kept, drops=drops, only_looks=looks)


def _line(done: Done) -> str:
    what = f"{done.month.month:%Y-%m}: {done.month.events:,} events"
    if done.archive is None:
        return f"audit: {what}, all in the tiles; it would be archived"
    size = done.archive.size_bytes
    per_event = size / done.month.events
    what = (
        f"{what} in {size:,} bytes ({per_event:.0f} an event), digest {done.archive.digest.hex()}"
    )
    return f"audit: {what}; {'dropped' if done.dropped else 'archived, still in the database'}"


def _document(done: Done) -> dict[str, Any]:
    return {
        "month": f"{done.month.month:%Y-%m}",
        "events": done.month.events,
        "first_index": done.month.first_index,
        "last_index": done.month.last_index,
        "digest": done.month.digest.hex(),
        "archived": done.archive is not None,
        "size_bytes": done.archive.size_bytes if done.archive else None,
        "dropped": done.dropped is not None,
    }


async def _archived(settings: AuditSettings, plan: ArchivePlan) -> list[Done]:
    from remit.audit.operating import archived  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow
    from remit.rpc.ids import SystemIds  # noqa: PLC0415 - slow

    return await archived(settings, plan, clock=SystemClock(), ids=SystemIds())
