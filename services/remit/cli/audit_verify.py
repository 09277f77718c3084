"""`remit audit verify`: prove offline that an export, or a folder of tiles, is what was signed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from remit.audit.cosignature import WitnessKey
from remit.audit.declared_loss import DeclaredLoss
from remit.audit.evidence import Auditor, Report, VerificationError
from remit.audit.note import NoteError, Verifier
from remit.audit.tile_verifier import verify_tiles
from remit.audit.verifier import verify_lines
from remit.cli import exit_codes
from remit.cli.audit_complete import check_completeness, complete_option
from remit.cli.client import Session, client_options
from remit.cli.output import Output

_MAX_SMALL_FILE_BYTES: Final = 1 << 16
_SMALL_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    "verify",
    epilog="\b\nExamples:\n  remit audit verify log.export --key audit.pub\n"
    "  remit audit verify /mirror/tiles --key audit.pub --checkpoint monday.checkpoint\n"
    "  remit audit verify log.export --key audit.pub --checkpoint seen --witness witness.pub\n"
    "  remit audit verify /mirror/tiles --key audit.pub --archive /mirror/archive\n"
    "  remit audit verify --complete\n\n"
    "\b\nExit codes:\n    0  every entry is what was signed; with --complete, nothing is missing\n"
    "    1  it is not; the first fault is named\n    2  the command line or a key file is wrong\n"
    "    9  with --complete: something is missing or differs; each is named and explained\n"
    "    any other, with --complete: it could not be checked, for the reason that the error names",
)
@click.argument(
    "log", metavar="[FILE|DIR]", type=click.Path(path_type=Path, exists=True), required=False
)
@click.option(
    "--key",
    type=_SMALL_FILE,
    help="A public key of the log, saved earlier: audit.pub of the state directory.",
)
@click.option(
    "--checkpoint",
    "earlier",
    type=_SMALL_FILE,
    multiple=True,
    help="A checkpoint kept earlier, which this log must extend. May be given more than once.",
)
@click.option(
    "--witness",
    "witnesses",
    type=_SMALL_FILE,
    multiple=True,
    help="Public key of a witness, which must have cosigned each --checkpoint, or else the log's.",
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of archived months, to be verified against the tiles in DIR.",
)
@complete_option
@client_options
def verify(  # noqa: PLR0913 - its options
    *,
    session: Session,
    log: Path | None,
    key: Path | None,
    earlier: tuple[Path, ...],
    witnesses: tuple[Path, ...],
    archive: Path | None,
    complete: bool,
) -> int:
    """Verify the export FILE, or the tiles in DIR, offline: no service, no database, no network.

    Every entry is hashed, the Merkle root (RFC 6962) computed and compared with the one that the
    log signed, and the tree at the size of each earlier checkpoint with what was signed then. Of
    tiles, each hash of each level is checked as well.

    That shows that nothing was changed. Whether nothing is missing, --complete asks of a running
    mesh; then alone are address, API key and state of use.
    """
    if complete:
        if log or key or earlier or witnesses or archive:
            raise click.UsageError("--complete asks a running mesh: it takes no file and no key")
        return check_completeness(session)
    if log is None:
        raise click.UsageError("Missing argument 'FILE|DIR'; or ask a running mesh with --complete")
    if key is None:
        raise click.UsageError("Missing option '--key'")
    output = session.output
    public_key = key_text(key, Verifier.parse, "a log")
    witness_keys = [key_text(file, WitnessKey.parse, "a witness") for file in witnesses]
    notes = [small_text(file) for file in earlier]
    try:
        auditor = Auditor.of(public_key, notes, witness_keys)
        report = _verified(log, auditor, archive)
    except VerificationError as error:
        return _refuted(output, error)
    except OSError as error:
        raise click.UsageError(f"{log} cannot be read: {error}") from error
    _proved(output, report)
    return exit_codes.OK


def _verified(log: Path, auditor: Auditor, archive: Path | None) -> Report:
    if log.is_dir():
        return verify_tiles(log, auditor, archive)
    if archive:
        raise click.UsageError("--archive goes with the tiles in DIR, not with an export")
    return verify_lines(log, auditor)


def verified_line(report: Report) -> str:
    """What a person is told of a log that verifies."""
    sizes = [f"{size:,}" for size in report.earlier_tree_sizes]
    extends = f", extends the checkpoint of {' and of '.join(sizes)}" if sizes else ""
    seen = [f", cosigned by {seen.witness} at {_time(seen.time_s)}" for seen in report.cosigned]
    kept = f", and the archives of {len(report.archives)} months" if report.archives else ""
    lost = "".join(f"; its {loss}" for loss in report.losses)
    return (
        f"audit: verified {report.tree_size:,} entries, root {report.root_hash.hex()},"
        f" signed by {report.origin}{extends}{''.join(seen)}{kept}{lost}"
    )


def key_text(file: Path, parse: Callable[[str], object], whose: str) -> str:
    """The public key in a file. Raises UsageError where it is none."""
    text = small_text(file)
    try:
        parse(text)
    except NoteError as error:
        raise click.UsageError(f"{file} is no public key of {whose}: {error}") from error
    return text


def small_text(file: Path) -> str:
    """A file that is a key or a checkpoint. Raises UsageError."""
    try:
        if file.stat().st_size > _MAX_SMALL_FILE_BYTES:
            raise click.UsageError(f"{file} is too large for a key or a checkpoint")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from error


def _time(unix_s: int) -> str:
    """RFC 3339 in UTC; the number itself where no calendar reaches."""
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{unix_s} s"


def _proved(output: Output, report: Report) -> None:
    if output.as_json:
        sizes = report.earlier_tree_sizes
        output.document(
            {
                "verified": True,
                "tree_size": report.tree_size,
                "root_hash": report.root_hash.hex(),
                "origin": report.origin,
                "earlier_tree_size": sizes[-1] if sizes else None,
                "earlier_tree_sizes": list(sizes),
                "cosigned": [
                    {
                        "witness": seen.witness,
                        "tree_size": seen.tree_size,
                        "time": _time(seen.time_s),
                    }
                    for seen in report.cosigned
                ],
                "archives": [
                    {
                        "month": f"{each.month:%Y-%m}",
                        "events": each.events,
                        "digest": each.digest.hex(),
                    }
                    for each in report.archives
                ],
                "declared_losses": [_loss_document(loss) for loss in report.losses],
            }
        )
    else:
        output.line(verified_line(report), "green")


def _loss_document(loss: DeclaredLoss) -> dict[str, Any]:
    return {
        "kept_size": loss.kept_size,
        "lost_size": loss.lost_size,
        "lost_root_hash": loss.lost_root.hex(),
    }


def _refuted(output: Output, error: VerificationError) -> int:
    if output.as_json:
        told = {"verified": False, "place": error.place, "fault": error.fault}
        loss = {"declared_loss": _loss_document(error.loss)} if error.loss else {}
        output.document(told | loss)
    else:
        output.line(f"audit: NOT verified: {error.place}: {error.fault}", "bold red")
    return exit_codes.FAILED
