"""`remit conversations`: threads of runs begun, listed, read and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from remit.api.agent.v1 import conversation_pb2, run_pb2
from remit.cli import documents, exit_codes
from remit.cli.client import Edge, Session, client_options
from remit.cli.output import Column, Line, Output
from remit.cli.parameters import limit_option
from remit.cli.run_view import ERASED, STATE_STYLES, state_name
from remit.cli.wording import last_part, local_time
from remit.client import ListedRuns, RunList
from remit.rpc.errors import RemitError

Conversation = conversation_pb2.Conversation


def _about(conversation: Conversation) -> str:
    return ERASED if conversation.erased else conversation.display_name


_COLUMNS: Final = (
    Column[Conversation]("conversation", lambda c: last_part(c.name), keep=True),
    Column[Conversation]("runs", lambda c: str(c.runs), "right", keep=True),
    Column[Conversation]("created", lambda c: local_time(c.create_time), keep=True),
    Column[Conversation]("used", lambda c: local_time(c.update_time), keep=True),
    Column[Conversation]("by", lambda c: last_part(c.subject)),
    Column[Conversation]("about", _about),
)


@click.group(
    epilog="\b\nExamples:\n  remit conversations create 'Tides of the North Sea'\n"
    "  remit run --continue 'And in winter?'\n  remit conversations list"
)
def command() -> None:
    """Begin, list, read and delete conversations.

    A conversation is a thread of runs, each of which sees what was asked and answered before it:
    `remit run --conversation NAME` and `remit run --continue` add to it.
    """


@command.command(
    "create",
    epilog="\b\nExamples:\n  remit conversations create\n"
    "  remit conversations create 'Tides of the North Sea'\n"
    "  remit run --conversation \"$(remit conversations create)\" 'What is 17 * 23?'",
)
@click.argument("about", default="")
@click.option(
    "--request-id", default="", help="Names this request: given again, it is the same one."
)
@client_options
def create(*, session: Session, about: str, request_id: str) -> None:
    """Begin a conversation ABOUT something, and print its name."""
    begun = session.run(lambda edge: edge.conversations.create(about, request_id=request_id))
    if session.output.as_json:
        session.output.document({"conversation": documents.of_message(begun)})
        return
    session.output.line(begun.name)
    if session.output.is_terminal:  # a script wants the name alone
        session.output.line(f"  remit run --conversation {last_part(begun.name)} TASK", "dim")


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit conversations list\n  remit conversations list --own --limit 5\n"
    "  remit conversations list --json | jq -r '.conversations[].name'",
)
@click.option("--own", is_flag=True, help="Only your own; an admin sees those of the whole org.")
@limit_option
@client_options
def list_conversations(*, session: Session, own: bool, limit: int) -> None:
    """List the conversations that you may read, the one used last first."""
    found = session.run(lambda edge: edge.conversations.list(own=own, limit=limit))
    session.output.listing("conversations", found.conversations, _COLUMNS, more=found.more)


@command.command(
    "show",
    epilog="\b\nExamples:\n  remit conversations show 01981a2b-...\n"
    "  remit conversations show --json 01981a2b-... | jq -r '.runs[].result'\n\n"
    + exit_codes.help_text(),
)
@click.argument("name")
@limit_option
@client_options
def show(*, session: Session, name: str, limit: int) -> None:
    """Show the conversation NAME with its newest runs, the oldest of these first."""
    conversation, found = session.run(lambda edge: _read(edge, name, limit))
    output = session.output
    if output.as_json:
        output.document(
            {
                "conversation": documents.of_message(conversation),
                "runs": [documents.of_message(run) for run in reversed(found.runs)],
                "more": found.more,
            }
        )
        return
    _print(output, conversation, found)


@command.command(
    "delete",
    epilog="\b\nExamples:\n  remit conversations delete 01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
)
@click.argument("name")
@client_options
def delete(*, session: Session, name: str) -> None:
    """Delete the conversation NAME; it is refused while a run of it goes on.

    Neither it nor its runs are shown or used any more, by anybody. The journals of the runs and the
    audit log stay: they are the record of what was done and paid.
    """
    gone = session.run(lambda edge: edge.conversations.delete(name))
    if session.output.as_json:
        session.output.document({"conversation": documents.of_message(gone)})
    else:
        session.output.line(f"{gone.name} is deleted; it had {gone.runs} runs")


async def newest(edge: Edge) -> str:
    """The caller's conversation that was used last. Raises UsageError if there is none."""
    found = await edge.conversations.list(own=True, limit=1)
    if not found.conversations:
        message = "you have no conversation to continue; `remit conversations create` begins one"
        raise click.UsageError(message)
    return found.conversations[0].name


async def _read(edge: Edge, name: str, limit: int) -> tuple[Conversation, RunList]:
    conversation = await edge.conversations.get(name)
    only = ListedRuns(conversation=conversation.name)
    return conversation, await edge.runs.list(only, limit=limit)


def _print(output: Output, conversation: Conversation, found: RunList) -> None:
    output.facts(
        (
            ("conversation", conversation.name),
            ("about", _about(conversation)),
            ("by", conversation.subject),
            ("created", local_time(conversation.create_time)),
            ("used", local_time(conversation.update_time)),
            ("runs", str(conversation.runs)),
        )
    )
    if found.more:
        output.line("… there are earlier ones; raise --limit", "yellow")
    for run in reversed(found.runs):
        output.lines(_exchange(run))


def _exchange(run: run_pb2.Run) -> Iterator[Line]:
    yield Line("")
    yield Line(f"{last_part(run.name)}  {last_part(run.agent)}", "dim")
    yield Line(f"> {ERASED if run.erased else run.task}", "bold")
    if run.state == run_pb2.RUN_STATE_SUCCEEDED:
        yield Line(run.result)
        return
    why = f": {RemitError.from_status(run.error).message}" if run.HasField("error") else ""
    yield Line(f"{state_name(run.state)}{why}", STATE_STYLES.get(run.state, ""))
