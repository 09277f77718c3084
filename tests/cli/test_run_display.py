"""The live display shows the run while it goes on and leaves the lines behind."""

from __future__ import annotations

import io
import json
import re

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.cli.output import Output
from remit.cli.run_display import JsonDisplay, LiveDisplay, PlainDisplay, display_for
from remit.cli.run_view import RunView
from remit.rpc.errors import RemitError
from tests.cli.journals import ended_run, journal

UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "reset")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def test_a_terminal_sees_stage_percent_and_text_as_it_comes(terminal: Terminal) -> None:
    with LiveDisplay(Output(as_json=False, stream=terminal)) as display:
        for event in journal()[:11]:
            display.event(event)
            display._live.refresh()
    shown = _ESCAPES.sub("", terminal.getvalue())
    assert "I shall calculate." in shown
    assert "12 % using tools" in shown
    assert "  17 * 23 = 391" in shown


def test_the_lines_of_a_terminal_are_those_of_a_pipe(terminal: Terminal) -> None:
    with LiveDisplay(Output(as_json=False, stream=terminal)) as display:
        for event in journal():
            display.event(event)
    shown = _ESCAPES.sub("", terminal.getvalue())
    view = RunView()
    for line in (line for event in journal() for line in view.apply(event)):
        assert line.text in shown
    assert shown.rstrip().endswith("0c1d2e3f4a5b")


def test_a_terminal_is_told_of_a_break(terminal: Terminal) -> None:
    with LiveDisplay(Output(as_json=False, stream=terminal)) as display:
        display.broken(5, UNAVAILABLE)
    assert "the connection broke after event 5: reset" in terminal.getvalue()


def test_the_display_suits_the_output(terminal: Terminal) -> None:
    with display_for(Output(as_json=False, stream=terminal)) as display:
        assert isinstance(display, LiveDisplay)
    with display_for(Output(as_json=True, stream=terminal)) as display:
        assert isinstance(display, JsonDisplay)
    with display_for(Output(as_json=False, stream=io.StringIO())) as display:
        assert isinstance(display, PlainDisplay)


def test_a_dumb_terminal_gets_plain_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with display_for(Output(as_json=False, stream=terminal)) as display:
        assert isinstance(display, PlainDisplay)


def test_machines_get_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    display = JsonDisplay(Output(as_json=True, stream=stream))
    display.event(journal()[0])
    display.broken(1, UNAVAILABLE)
    display.note("told to people")
    display.end(ended_run(), 0)
    types = [json.loads(line)["type"] for line in stream.getvalue().splitlines()]
    assert types == ["created", "resuming", "summary"]
    assert "told to people" in capsys.readouterr().err
