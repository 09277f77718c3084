"""The root of the `remit` command.

`remit --help` must be quick, so a command's module is imported only when that command runs; the
table below holds what the help needs. A command's module has a `command`: a click command or
group.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Final

import click

from remit.cli import exit_codes


@dataclass(frozen=True)
class Entry:
    """Where a command lives, and its line in the help."""

    module: str
    help: str


COMMANDS: Final = {
    "run": Entry("remit.cli.run", "Run an agent on a task and follow it to its end."),
    "runs": Entry("remit.cli.runs", "List, show, watch and cancel runs."),
    "explain": Entry(
        "remit.cli.explain", "Explain a run: what it did, why it might, what it cost."
    ),
    "conversations": Entry(
        "remit.cli.conversations", "Begin, list, read and delete conversations."
    ),
    "agents": Entry("remit.cli.agents", "List the agents."),
    "tools": Entry("remit.cli.tools", "List the tools and show their arguments."),
    "models": Entry("remit.cli.models", "List the models."),
    "spend": Entry("remit.cli.spend", "Show what was spent."),
    "budgets": Entry("remit.cli.budgets", "Set, list and delete budgets; list their alerts."),
    "prices": Entry("remit.cli.prices", "List and set what models and tools cost."),
    "audit": Entry("remit.cli.audit", "List, follow, export, verify and witness the audit log."),
    "policy": Entry("remit.cli.policy", "Show, test, compare, push and roll back the policies."),
    "grants": Entry("remit.cli.grants", "Grant tools, list and revoke grants."),
    "approvals": Entry(
        "remit.cli.approvals", "List and follow what waits for approval; approve or deny."
    ),
    "keys": Entry("remit.cli.keys", "Create, list, replace and revoke API keys."),
    "users": Entry("remit.cli.users", "List users, disable them and enable them again."),
    "service-accounts": Entry("remit.cli.service_accounts", "Create and list service accounts."),
    "teams": Entry("remit.cli.teams", "List the teams."),
    "orgs": Entry("remit.cli.orgs", "List orgs, disable them and enable them again."),
    "limits": Entry("remit.cli.limits", "Set, list and delete limits of starting runs."),
    "cost": Entry("remit.cli.cost", "Check the ledger against the claims."),
    "demo": Entry("remit.cli.demo", "Run an agent in a mesh of its own and verify the record."),
    "up": Entry("remit.cli.up", "Start the whole mesh on this machine and keep it running."),
    "status": Entry("remit.cli.status", "Show the health of each part of the local mesh."),
    "serve": Entry("remit.cli.serve", "Run one service, or all six in one process."),
    "migrate": Entry("remit.cli.migrate", "Apply database migrations."),
    "gateway": Entry("remit.cli.gateway", "Render the gateway's configuration, and drain it."),
    "certificates": Entry("remit.cli.certificates", "Make the certificates of an installation."),
    "secrets": Entry("remit.cli.secrets", "Make the keys and passwords of an installation."),
    "databases": Entry("remit.cli.databases", "Make roles and databases on a PostgreSQL server."),
    "probe": Entry("remit.cli.probe", "Ask whether this container's service is ready."),
}
"""Every command, in the order of the help."""
ALIASES: Final = {"budget": "budgets", "limit": "limits"}
"""Names that mean a command and are not in the help."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported; None for an unknown name."""
        del ctx
        entry = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        command = importlib.import_module(entry.module).command
        if not isinstance(command, click.Command):
            message = f"{entry.module} has no click command"
            raise TypeError(message)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table without importing anything."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  remit up\n  remit run 'What is 17 * 23?'\n  remit status\n\n"
    + exit_codes.help_text(),
)
@click.version_option(package_name="remit", prog_name="remit")
def root() -> None:
    """Run AI agents: no effect without permission, budget and a provable record."""


def main() -> None:
    """Runs the command and ends the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the command and returns its exit code; errors go to standard error."""
    try:
        result = root.main(args=arguments, prog_name="remit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return exit_codes.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - raised again unless it is ours
        return _reported(error, arguments)
    return result if isinstance(result, int) else exit_codes.OK


def _reported(error: Exception, arguments: list[str]) -> int:
    """Tells an error of ours and what to do; any other keeps its traceback."""
    from remit.cli.failures import report  # noqa: PLC0415 - slow, and only failures need it
    from remit.rpc.errors import RemitError  # noqa: PLC0415 - as above

    if not isinstance(error, RemitError):
        raise error
    return report(error, as_json="--json" in arguments)


if __name__ == "__main__":
    main()
