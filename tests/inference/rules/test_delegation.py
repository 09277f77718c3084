"""A part of a task is handed to an agent only where one is named outright."""

from __future__ import annotations

import pytest

from remit.api.inference.v1.message_pb2 import ToolDefinition
from remit.inference.rules.delegation import delegation
from remit.inference.rules.plan import next_turn
from tests.inference.offered import answered, asked, shipped

AGENT = ToolDefinition(
    name="agents/assistant",
    description="Hands a part of the task to the agent Assistant.",
    input_schema_json='{"type":"object","required":["task"],"properties":{"task":{"type":"string"}}}',
)


@pytest.mark.parametrize(
    ("clause", "agent", "task"),
    [
        ("Ask the researcher to search for tides", "researcher", "search for tides"),
        ("please tell agent clerk: write 'x' to a.txt", "clerk", "write 'x' to a.txt"),
        ("Ask agents/assistant what 17 * 23 is", "assistant", "what 17 * 23 is"),
        ("ask the assistant agent: What is 2 + 2?", "assistant", "What is 2 + 2"),
        ("Have the clerk to 'write it. Then read it.'", "clerk", "write it. Then read it."),
        ("Delegate the search for tides to the researcher", "researcher", "the search for tides"),
        ("Could you ask the Coordinator to begin", "coordinator", "begin"),
    ],
)
def test_a_named_agent_is_asked(clause: str, agent: str, task: str) -> None:
    found = delegation(clause)
    assert found is not None
    assert (found.agent, found.task) == (agent, task)


@pytest.mark.parametrize(
    "clause",
    [
        "What is 17 * 23?",
        "Ask me later",
        "tell me the time in Tokyo",
        "Do not ask the clerk to write 'x' to a.txt",
        "Show the file",
        "ask the researcher",
        "x" * 20_000,
    ],
)
def test_nothing_else_is_handed_on(clause: str) -> None:
    assert delegation(clause) is None


def test_two_agents_are_asked_at_once_and_the_answers_are_written() -> None:
    text = (
        "Ask the assistant what 17 * 23 is, ask the assistant to say what time it is in Paris"
        " and write the answers to out.txt."
    )
    tools = [*shipped(), AGENT]
    first = next_turn(asked(text), tools).calls
    assert [call.tool for call in first] == ["agents/assistant", "agents/assistant"]
    messages = answered(asked(text), first, {"answer": "391"}, {"answer": "noon"})
    (write,) = next_turn(messages, tools).calls
    assert dict(write.arguments) == {"path": "out.txt", "content": "391\nnoon"}
    done = answered(messages, (write,), {"path": "out.txt"})
    assert next_turn(done, tools).text.splitlines() == [
        "The assistant answers: 391",
        "The assistant answers: noon",
        "Wrote out.txt.",
    ]


def test_an_agent_that_is_not_offered_is_said() -> None:
    told = next_turn(asked("Ask the poet to write a poem."), shipped())
    assert not told.calls
    assert "For asking the poet I need a tool that is the agent poet" in told.text
