"""From a conversation to the next turn: which tools to ask for, or what to answer.

The plan is made anew for every turn from the last user turn alone, and is always the same for the
same text; what was already called is recognised by the identifiers of the calls. So the engine
keeps no state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from remit.api.inference.v1.message_pb2 import (
    ROLE_TOOL,
    ROLE_USER,
    Message,
    ToolCall,
    ToolDefinition,
)
from remit.inference.rules.arithmetic import formulas_in
from remit.inference.rules.clauses import clauses_of
from remit.inference.rules.clock import time_questions
from remit.inference.rules.delegation import delegation
from remit.inference.rules.files import reading, writing, written_from
from remit.inference.rules.jobs import Calculation, Task, Writing
from remit.inference.rules.offers import Fit, best_fit
from remit.inference.rules.results import ToolResult
from remit.inference.rules.search import finding, searching

MAX_TASK_CHARS: Final = 10_000
MAX_TASKS: Final = 32
_MAX_QUOTED_CHARS: Final = 120
_CALL_ID: Final = re.compile(r"call_\d+_(\d+)")
CONNECT: Final = (
    "To connect a language model, declare it in the models file (REMIT_INFERENCE_MODELS_FILE); "
    "docs/MODELS.md shows how."
)
NO_RULE: Final = (
    "I have no rule for this. I am builtin-rules, a small rule engine and not a language model: "
    "with the tools that are offered I do arithmetic, tell the time, read and write files, "
    f"search, and hand tasks to other agents. {CONNECT}"
)


@dataclass(frozen=True)
class Remark:
    """Something to be said about a part of the text without asking a tool."""

    text: str


Step = Task | Remark


@dataclass(frozen=True)
class NextTurn:
    """What the assistant says next: tool calls, or the answer."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    confidence: float = 0.0
    """Of an answer: the share of the parts of the text that it answers."""


def next_turn(messages: Sequence[Message], tools: Sequence[ToolDefinition]) -> NextTurn:
    """The turn that follows `messages`, with calls to the offered `tools` alone."""
    asked = _last_user_turn(messages)
    text = messages[asked].text if asked is not None else ""
    if len(text) > MAX_TASK_CHARS:
        return NextTurn(f"The text has more than {MAX_TASK_CHARS} characters. {NO_RULE}")
    steps = understood(text)
    if not any(isinstance(step, Task) for step in steps):
        remarks = [step.text for step in steps if isinstance(step, Remark) and step.text]
        return NextTurn("\n".join(remarks) or NO_RULE)
    progress = _Progress(steps, tools, _answered(messages[(asked or 0) + 1 :]))
    calls = tuple(progress.calls(prefix=f"call_{len(messages)}"))
    if calls:
        return NextTurn("", calls)
    return NextTurn("\n".join(progress.sentences()), confidence=progress.answered_share())


def understood(text: str) -> list[Step]:
    """The steps that a text asks for, in order; a part without a rule becomes a remark.

    When no part has a rule, the list is empty.
    """
    steps: list[Step] = []
    known = False
    for clause in clauses_of(text):
        found = _steps(clause.text)
        known = known or bool(found)
        steps.extend(
            found or [Remark(f"I have no rule for “{_shortened(clause.text)}”. {CONNECT}")]
        )
        if len(steps) > MAX_TASKS:
            break
    return _bounded(_linked(steps)) if known else []


def _steps(clause: str) -> list[Step]:
    """The steps of one clause by the first rule that recognises it."""
    handed = delegation(clause)
    if handed is not None:
        return [handed]
    source = written_from(clause)
    if source is not None:
        before = _steps(f"what is {source[0]}")
        return [*before, Writing(source[1], None)] if before else []
    write = writing(clause)
    if write is not None:
        return [write]
    found: Sequence[Task] = reading(clause) or ([s] if (s := searching(clause)) else [])
    return list(found) or _questions(clause)


def _questions(clause: str) -> list[Step]:
    times = time_questions(clause)
    if isinstance(times, str):
        return [Remark(f"I know no time zone for “{_shortened(times)}”; name a city or a zone.")]
    if times:
        return list(times)
    sums = [Calculation(found.text) for found in formulas_in(clause)]
    if sums:
        return list(sums)
    search = finding(clause)
    return [search] if search is not None else []


def _linked(steps: Sequence[Step]) -> list[Step]:
    """The steps, with a remark where one follows nothing."""
    linked: list[Step] = []
    for step in steps:
        if isinstance(step, Writing) and step.follows and not _sources(linked):
            text = f"I do not know what to write to {step.path}: put the text in quotation marks."
            linked.append(Remark(text))
        else:
            linked.append(step)
    return linked


def _bounded(steps: list[Step]) -> list[Step]:
    if len(steps) <= MAX_TASKS:
        return steps
    return [*steps[:MAX_TASKS], Remark(f"I do {MAX_TASKS} things at a time; the rest is left out.")]


class _Progress:
    """Where a plan stands: which of its steps have answers, and what each one comes to."""

    def __init__(
        self,
        steps: Sequence[Step],
        tools: Sequence[ToolDefinition],
        answered: dict[int, ToolResult],
    ) -> None:
        self._steps = steps
        self._tools = tools
        self._answered = answered

    def calls(self, prefix: str) -> Iterator[ToolCall]:
        """Calls for the steps that can be done now and have no answer yet.

        Calls of one turn may run at once, so a step that writes has a turn of its own: after what
        comes before it and before what comes after it.
        """
        asked = False
        for index, step in enumerate(self._steps):
            if not isinstance(step, Task) or index in self._answered:
                continue
            if isinstance(step, Writing) and asked:
                return
            fit = self._fit(index, step)
            if fit is None:
                continue
            yield _call(f"{prefix}_{index}", fit)
            asked = True
            if isinstance(step, Writing):
                return

    def sentences(self) -> Iterator[str]:
        """What came of each step, in order."""
        for index, step in enumerate(self._steps):
            yield self._told(index, step)

    def answered_share(self) -> float:
        """The share of the steps that have an answer."""
        results = [self._answered.get(index) for index in range(len(self._steps))]
        return sum(r is not None and not r.failed for r in results) / len(self._steps)

    def _fit(self, index: int, task: Task) -> Fit | None:
        previous = self._previous(index, task)
        return None if previous is None else best_fit(self._tools, task.job(previous))

    def _previous(self, index: int, task: Task) -> str | None:
        """What the task builds on; None as long as that is not there."""
        if not task.follows:
            return ""
        sources = _sources(self._steps[:index])
        chosen = sources if isinstance(task, Writing) and task.gathers else sources[-1:]
        brought = []
        for at, source in chosen:
            result = self._answered.get(at)
            if result is None or result.failed:
                return None
            brought.append(source.brought(result))
        return "\n".join(brought)

    def _told(self, index: int, step: Step) -> str:
        if isinstance(step, Remark):
            return step.text
        result = self._answered.get(index)
        if result is None:
            return self._undone(index, step)
        if result.failed:
            return f"The tool for {step.subject} failed: {result.text}"
        return step.told(result)

    def _undone(self, index: int, task: Task) -> str:
        if self._previous(index, task) is None:
            return f"I left out {task.subject}, because what it builds on is missing."
        return (
            f"For {task.subject} I need a tool that {task.ability}, and none that fits is offered. "
            "Offer one to the agent, or connect a language model: docs/MODELS.md shows how."
        )


def _call(call_id: str, fit: Fit) -> ToolCall:
    call = ToolCall(id=call_id, tool=fit.tool)
    call.arguments.update(dict(fit.arguments))
    return call


def _sources(steps: Sequence[Step]) -> list[tuple[int, Task]]:
    """The steps whose result another one can build on."""
    return [
        (index, step)
        for index, step in enumerate(steps)
        if isinstance(step, Task) and not isinstance(step, Writing)
    ]


def _last_user_turn(messages: Sequence[Message]) -> int | None:
    indices = (i for i in reversed(range(len(messages))) if messages[i].role == ROLE_USER)
    return next(indices, None)


def _answered(messages: Sequence[Message]) -> dict[int, ToolResult]:
    """Results by the step that asked for them, from the turns after the user's."""
    found: dict[int, ToolResult] = {}
    for message in messages:
        match = _CALL_ID.fullmatch(message.tool_call_id)
        if message.role == ROLE_TOOL and match is not None:
            found[int(match[1])] = ToolResult(message.text, failed=message.tool_error)
    return found


def _shortened(text: str) -> str:
    if len(text) <= _MAX_QUOTED_CHARS:
        return text
    return f"{text[:_MAX_QUOTED_CHARS]}…"
