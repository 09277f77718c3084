"""`remit audit rotate-key`: a new key for the log, offline, on the folder of its key files."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.output import Output


@click.command(
    "rotate-key",
    epilog="\b\nExamples:\n  remit audit rotate-key ./installation/audit/secrets\n"
    "  remit audit rotate-key ~/.local/state/remit/secrets/audit",
)
@click.argument(
    "folder", metavar="KEYS_DIR", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for machines.")
def rotate_key(*, folder: Path, as_json: bool) -> None:
    """Give the log a new signing key, in the folder KEYS_DIR of its key files.

    The old and the new key sign that one follows the other, which stays in log.rotations; the old
    private key is removed. Then hand the folder to every replica of audit and restart them, one by
    one if you like. Old checkpoints stay verifiable, and so does everything with a public key that
    was saved earlier: exports carry the statements that lead from any key to all.
    """
    from remit.audit.key_files import rotate_log_key  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow

    rotation = rotate_log_key(folder, SystemClock().now())
    output = Output(as_json=as_json)
    if output.as_json:
        stated = {"old_key": str(rotation.old), "new_key": str(rotation.new)}
        output.document({**stated, "time": rotation.time})
    else:
        output.line(f"audit: {rotation.new} signs from now on")
        output.line("restart the replicas of audit; until then they sign with the old key")
