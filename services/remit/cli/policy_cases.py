"""`remit policy test`: a file of cases against a folder of policies, without a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli import exit_codes
from remit.cli.output import Output

if TYPE_CHECKING:
    from remit.policy.cases import Outcome


@click.command(
    "test",
    epilog="\b\nExamples:\n  remit policy test policies cases.yaml\n"
    "  remit policy test policies cases.yaml --json | jq '.failed[].name'",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument(
    "file", metavar="CASES", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for machines.")
def test_cases(*, folder: Path, file: Path, as_json: bool) -> int:
    """Check the *.cedar files in FOLDER and decide the cases of the file CASES by them.

    Needs no mesh. Ends with 1 if a case gets another answer than it expects, with 7 if the policies
    or the cases are wrong. docs/POLICIES.md shows how cases are written.
    """
    # Cedar, and what reads YAML, are slow to load.
    from remit.policy.cases import decide_cases, read_cases, unreached  # noqa: PLC0415
    from remit.policy.epochs import read_policies  # noqa: PLC0415
    from remit.policy.rules import rule_book  # noqa: PLC0415

    book = rule_book(read_policies(folder), 0)
    outcomes = decide_cases(book, read_cases(file.read_bytes(), str(file)))
    failed = [outcome for outcome in outcomes if outcome.fault]
    _tell(Output(as_json=as_json), outcomes, failed, unreached(book, outcomes))
    return exit_codes.FAILED if failed else exit_codes.OK


def _tell(
    output: Output,
    outcomes: Sequence[Outcome],
    failed: Sequence[Outcome],
    unreached: Sequence[str],
) -> None:
    if output.as_json:
        output.document(
            {
                "cases": len(outcomes),
                "failed": [{"name": each.case.name, "fault": each.fault} for each in failed],
                "policies_without_a_case": list(unreached),
            }
        )
        return
    for outcome in failed:
        output.line(f"{outcome.case.name}: {outcome.fault}", "red")
    if unreached:
        output.line(f"no case is decided by {', '.join(unreached)}", "yellow")
    passed = len(outcomes) - len(failed)
    output.line(f"{passed} of {len(outcomes)} cases as expected", "red" if failed else "green")
