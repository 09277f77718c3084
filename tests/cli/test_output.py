"""Tables fit a terminal, lose nothing in a pipe, and command neither."""

from __future__ import annotations

import io
import json

import pytest

from remit.api.agent.v1 import agent_pb2
from remit.cli.output import Column, Output

LONG = "word " * 60
COLUMNS = (
    Column[agent_pb2.Agent]("name", lambda a: a.name, keep=True),
    Column[agent_pb2.Agent]("description", lambda a: a.description),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def agent(description: str) -> agent_pb2.Agent:
    return agent_pb2.Agent(name="agents/assistant", description=description)


def test_a_pipe_gets_one_line_a_row_with_nothing_cut() -> None:
    stream = io.StringIO()
    Output(as_json=False, stream=stream).listing("agents", [agent(LONG)], COLUMNS)
    head, row = stream.getvalue().splitlines()
    assert head == "NAME              DESCRIPTION"
    assert row == f"agents/assistant  {LONG.rstrip()}"


def test_a_terminal_gets_rows_that_fit_its_width(terminal: Terminal) -> None:
    Output(as_json=False, stream=terminal).listing("agents", [agent("word " * 60)], COLUMNS)
    shown = terminal.getvalue()
    assert shown.count("word") == 60
    assert all(len(line) <= 60 + len("\x1b[1m\x1b[0m") * 4 for line in shown.splitlines())


def test_no_color_takes_the_colours_away(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    Output(as_json=False, stream=terminal).line("hello", "red")
    assert "\x1b[31m" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Output(as_json=False, stream=plain).line("hello", "red")
    assert "\x1b[31m" not in plain.getvalue()


def test_markup_and_escapes_of_strangers_are_text() -> None:
    stream = io.StringIO()
    output = Output(as_json=False, stream=stream)
    output.listing("agents", [agent("[bold]\x1b[2J :smile: [/]")], COLUMNS)
    output.line("[red]\x1b[2J")
    assert "[bold]\N{REPLACEMENT CHARACTER}[2J :smile: [/]" in stream.getvalue()
    assert stream.getvalue().endswith("[red]\N{REPLACEMENT CHARACTER}[2J\n")


def test_a_long_line_is_not_wrapped_in_a_pipe() -> None:
    stream = io.StringIO()
    Output(as_json=False, stream=stream).line("x" * 10_000)
    assert stream.getvalue() == "x" * 10_000 + "\n"


def test_facts_leave_out_what_is_empty() -> None:
    stream = io.StringIO()
    Output(as_json=False, stream=stream).facts([("run", "runs/1"), ("by", ""), ("task", "t")])
    assert stream.getvalue() == "run   runs/1\ntask  t\n"


def test_machines_get_one_object() -> None:
    stream = io.StringIO()
    Output(as_json=True, stream=stream).listing("agents", [agent("d")], COLUMNS, more=True)
    document = json.loads(stream.getvalue())
    assert document["agents"][0]["name"] == "agents/assistant"
    assert document["more"] is True
