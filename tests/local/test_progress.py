"""What the user sees: plain lines for a pipe, a live table for a terminal."""

from __future__ import annotations

import io

from remit.local.progress import PlainReporter, TerminalReporter, reporter_for


def test_a_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()
    reporter = reporter_for(stream)
    assert isinstance(reporter, PlainReporter)
    reporter.part("cost-0", "starting", "on 127.0.0.1:7430")
    reporter.part("cost-0", "ready")
    reporter.note("done")
    assert stream.getvalue() == (
        "cost-0         starting  on 127.0.0.1:7430\ncost-0         ready\ndone\n"
    )


def test_a_terminal_gets_a_table_that_keeps_deaths() -> None:
    stream = io.StringIO()
    reporter = TerminalReporter(stream)
    reporter.part("cost-0", "ready", "[/not markup]")
    reporter.part("cost-0", "died", "died of SIGKILL [now]")
    reporter.note("[done]")
    text = stream.getvalue()
    assert "died of SIGKILL [now]" in text
    assert "[done]" in text
