"""Tools are found by what they say of themselves, never by a name that somebody knew."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.inference.rules.jobs import (
    Calculation,
    Delegation,
    Reading,
    Searching,
    Task,
    TimeQuestion,
    Writing,
)
from remit.inference.rules.offers import best_fit
from tests.inference.offered import a_tool, renamed, shipped

TASKS: list[tuple[Task, str, dict[str, str]]] = [
    (Calculation("17 * 23"), "calculator", {"expression": "17 * 23"}),
    (TimeQuestion("Tokyo", "Asia/Tokyo", wants_date=False), "clock", {"timezone": "Asia/Tokyo"}),
    (Reading("a.txt"), "read_file", {"path": "a.txt"}),
    (Writing("a.txt", "hello"), "write_file", {"path": "a.txt", "content": "hello"}),
    (Searching("mesh"), "search", {"query": "mesh"}),
]


@given(
    st.sampled_from(TASKS),
    st.permutations(range(len(shipped()))),
    st.lists(st.from_regex(r"[a-z]{1,4}[0-9]{1,4}", fullmatch=True), unique=True, min_size=9),
)
def test_order_and_names_of_the_offer_do_not_matter(
    wanted: tuple[Task, str, dict[str, str]], order: list[int], labels: list[str]
) -> None:
    task, name, arguments = wanted
    names = dict(zip((tool.name for tool in shipped()), labels, strict=False))
    offer = renamed(shipped(), list(names.values()))
    fit = best_fit([offer[index] for index in order], task.job(""))
    assert fit is not None
    assert (fit.tool, fit.arguments) == (f"tools/{names[f'tools/{name}']}", arguments)


AN_AGENT = a_tool(
    "researcher", "Hands a part of the task to the agent Researcher.", ["task"], task="What to do."
)
AN_AGENT.name = "agents/researcher"


def test_an_agent_is_taken_where_it_is_named_and_nowhere_else() -> None:
    offer = [*shipped(), AN_AGENT]
    fit = best_fit(offer, Delegation("researcher", "Find it.").job(""))
    assert fit is not None
    assert (fit.tool, fit.arguments) == ("agents/researcher", {"task": "Find it."})
    assert best_fit(offer, Delegation("clerk", "Find it.").job("")) is None
    for task, _, _ in TASKS:
        assert best_fit([AN_AGENT], task.job("")) is None


@pytest.mark.parametrize(("task", "name", "_"), TASKS)
def test_without_the_tool_no_other_one_is_taken_for_it(task: Task, name: str, _: object) -> None:
    others = [tool for tool in shipped() if tool.name != f"tools/{name}"]
    assert best_fit(others, task.job("")) is None


@pytest.mark.parametrize(
    ("task", "tool"),
    [
        (Reading("a.txt"), a_tool("x", "Deletes a file for good.", ["path"], path="The path.")),
        (Reading("a.txt"), a_tool("x", "Lists files of a folder.", ["path"], path="The folder.")),
        (Reading("a.txt"), a_tool("x", "Returns the size of a file.", ["path"], path="The path.")),
        (
            Calculation("1 + 2"),
            a_tool("grep", "Finds lines.", ["expression"], expression="A regular expression."),
        ),
        (
            Calculation("1 + 2"),
            a_tool("run", "Evaluates Python.", ["code"], code="A Python expression to evaluate."),
        ),
        (
            Writing("a.txt", "b"),
            a_tool("x", "Appends to a file.", ["path", "content"], path="", content=""),
        ),
        (
            TimeQuestion("Rome", "Europe/Rome", wants_date=False),
            a_tool("timer", "Sets a timer.", ["timezone"], timezone=""),
        ),
        (
            Calculation("1 + 2"),
            a_tool(
                "calc",
                "Evaluates expressions.",
                ["expression", "licence"],
                expression="The expression.",
                licence="Your licence key.",
            ),
        ),
    ],
)
def test_a_tool_for_something_else_is_not_taken(task: Task, tool: object) -> None:
    assert best_fit([tool], task.job("")) is None  # type: ignore[list-item]


def test_a_foreign_schema_is_filled_in_by_the_words_of_its_properties() -> None:
    tool = a_tool(
        "maths",
        "Works out a formula for you.",
        ["input", "mode"],
        input={"anyOf": [{"type": "string"}, {"type": "null"}], "description": "Math formula"},
        mode={"type": "string", "const": "exact"},
    )
    fit = best_fit([tool], Calculation("1 + 2").job(""))
    assert fit is not None
    assert fit.arguments == {"input": "1 + 2", "mode": "exact"}


def test_a_value_that_the_schema_forbids_is_not_given() -> None:
    tool = a_tool(
        "calc",
        "Evaluates an arithmetic expression.",
        ["expression"],
        expression={"type": "string", "maxLength": 5, "description": "The expression."},
    )
    assert best_fit([tool], Calculation("1 + 2").job("")) is not None
    assert best_fit([tool], Calculation("10 + 20").job("")) is None


schemas = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "required", "path", "expression", "$ref", "anyOf", "enum"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(schemas, st.text(max_size=50), st.sampled_from(TASKS))
def test_no_schema_breaks_it(
    schema: object, description: str, wanted: tuple[Task, str, dict[str, str]]
) -> None:
    tool = a_tool("x", description, [])
    tool.input_schema_json = json.dumps(schema)
    best_fit([tool], wanted[0].job(""))


def test_equal_tools_are_chosen_by_name_whatever_their_order() -> None:
    twins = renamed([shipped()[0]] * 5, ["e", "b", "d", "a", "c"])
    task = next(task for task, name, _ in TASKS if shipped()[0].name == f"tools/{name}")
    for seed in range(10):
        random.Random(seed).shuffle(twins)  # noqa: S311 - repeats, hides nothing
        fit = best_fit(twins, task.job(""))
        assert fit is not None
        assert fit.tool == "tools/a"
