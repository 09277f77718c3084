"""What the rules can ask of tools: each kind of job with its values, its words and its answer.

Each is one tool call. Its `subject` is what it is about as a noun phrase ("17 * 23"), its `ability`
what a tool must be able to do, `follows` whether it builds on what came before. `job` describes it
for `offers`, `told` says the result in words, and `brought` is the bare result for what follows.
"""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from remit import names
from remit.inference.rules.offers import Job, Need
from remit.inference.rules.results import ToolResult
from remit.inference.rules.vocabulary import vocabulary

_ENDS_OF_LINES: Final = "\r\n"


_NOT_FORMULAS: Final = vocabulary(
    "regular regex regexp cron sql xpath jsonpath python code shell command glob pattern search"
)
_EXPRESSION: Final = vocabulary(
    "expression expr formula calculation equation arithmetic math mathematical calculate"
)
_PATH: Final = vocabulary("path file filename filepath document")
_CONTENT: Final = vocabulary("content text body data contents")
_CHANGES: Final = vocabulary(
    "write save store create delete remove append move rename edit replace update send upload copy"
)


@dataclass(frozen=True)
class Calculation:
    """A formula to be worked out."""

    formula: str
    follows: ClassVar = False
    ability: ClassVar = "evaluates arithmetic expressions"

    @property
    def subject(self) -> str:
        """The formula."""
        return self.formula

    def job(self, previous: str) -> Job:  # noqa: ARG002 - a formula depends on nothing
        """A string property for the expression."""
        return Job(
            words=_EXPRESSION | vocabulary("evaluate compute calculator sum number numeric"),
            avoided=vocabulary("regular regex cron sql python shell command search grep"),
            needs=(Need(self.formula, _EXPRESSION, _NOT_FORMULAS),),
        )

    def told(self, result: ToolResult) -> str:
        """The formula and its value, rounded or not as the tool says."""
        sign = "≈" if result.states("exact", value=False) else "="
        return f"{self.formula} {sign} {result.value()}"

    def brought(self, result: ToolResult) -> str:
        """The value."""
        return result.value()


@dataclass(frozen=True)
class TimeQuestion:
    """What time or date it is in an IANA zone; `place` as the user said it, empty for none."""

    place: str
    zone: str
    wants_date: bool
    follows: ClassVar = False
    ability: ClassVar = "tells the current time"

    @property
    def subject(self) -> str:
        """The time, and where."""
        return f"the time in {self.place}" if self.place else "the time"

    def job(self, previous: str) -> Job:  # noqa: ARG002 - the time depends on nothing
        """A zone or a place if the tool takes one; without them the result is converted."""
        zone = Need(self.zone, vocabulary("timezone zone tz iana"), optional=True)
        place = Need(self.place, vocabulary("city place location town"), optional=True)
        return Job(
            words=vocabulary("time clock now date current today hour"),
            avoided=vocabulary("timer sleep wait alarm schedule timeout remind convert weather"),
            needs=(zone, place) if self.place else (zone,),
        )

    def told(self, result: ToolResult) -> str:
        """The moment in words, in the zone that was asked for."""
        moment = result.moment()
        if moment is None:
            return f"For {self.subject} the tool answered: {result.value()}"
        local = self._local(moment)
        where = f" in {self.place}" if self.place else f" ({self.zone})"
        date = f"{local:%A}, {local.day} {local:%B %Y}"
        if self.wants_date:
            return f"It is {date}{where}."
        return f"It is {local:%H:%M} on {date}{where}."

    def brought(self, result: ToolResult) -> str:
        """The moment, ISO 8601."""
        moment = result.moment()
        return result.value() if moment is None else self._local(moment).isoformat()

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(zoneinfo.ZoneInfo(self.zone))


@dataclass(frozen=True)
class Reading:
    """A file to be shown."""

    path: str
    follows: ClassVar = False
    ability: ClassVar = "reads files"

    @property
    def subject(self) -> str:
        """The file."""
        return self.path

    def job(self, previous: str) -> Job:  # noqa: ARG002 - the path is known
        """A string property for the path."""
        return Job(
            words=vocabulary("read load open fetch view show cat content text"),
            avoided=_CHANGES | vocabulary("search list execute run"),
            needs=(Need(self.path, _PATH, others=_CONTENT),),
        )

    def told(self, result: ToolResult) -> str:
        """The file's text under its name."""
        text = result.value().rstrip(_ENDS_OF_LINES)
        return f"{self.path}:\n{text}" if text else f"{self.path} is empty."

    def brought(self, result: ToolResult) -> str:
        """The file's text."""
        return result.value()


@dataclass(frozen=True)
class Writing:
    """A text to be put into a file.

    Without `content` it is what the task before brought, with `gathers` what all tasks before did.
    """

    path: str
    content: str | None
    gathers: bool = False

    ability: ClassVar = "writes files"

    @property
    def follows(self) -> bool:
        """Whether the content comes from the task before."""
        return self.content is None

    @property
    def subject(self) -> str:
        """The writing of the file."""
        return f"writing {self.path}"

    def job(self, previous: str) -> Job:
        """String properties for the path and the content."""
        content = previous if self.content is None else self.content
        return Job(
            words=vocabulary("write save store create put"),
            avoided=vocabulary("append delete remove rename move search list send execute run"),
            needs=(
                Need(content, _CONTENT, others=_PATH),
                Need(self.path, _PATH, others=_CONTENT),
            ),
        )

    def told(self, result: ToolResult) -> str:  # noqa: ARG002 - that it worked is the news
        """That it was written."""
        return f"Wrote {self.path}."

    def brought(self, result: ToolResult) -> str:
        """What the tool answered."""
        return result.value()


@dataclass(frozen=True)
class Searching:
    """A search for a text."""

    query: str
    follows: ClassVar = False
    ability: ClassVar = "searches"

    @property
    def subject(self) -> str:
        """The search."""
        return f"the search for “{self.query}”"

    def job(self, previous: str) -> Job:  # noqa: ARG002 - the query is known
        """A string property for the query."""
        return Job(
            words=vocabulary("search find lookup look query retrieve rank"),
            avoided=_CHANGES | vocabulary("replace execute run"),
            needs=(
                Need(
                    self.query,
                    vocabulary("query search term terms question keyword phrase q text"),
                    vocabulary("path folder directory regex regexp sql language"),
                ),
            ),
        )

    def told(self, result: ToolResult) -> str:
        """The findings, a line each."""
        hits = result.hits()
        if hits is None:
            return f"Found for “{self.query}”: {result.value()}"
        limit = " (not everything was searched)" if result.states("complete", value=False) else ""
        if not hits:
            return f"Found nothing for “{self.query}”{limit}."
        lines = "\n".join(f"- {hit}" for hit in hits)
        return f"Found {len(hits)} for “{self.query}”{limit}:\n{lines}"

    def brought(self, result: ToolResult) -> str:
        """The findings, a line each."""
        hits = result.hits()
        return result.value() if hits is None else "\n".join(hits)


@dataclass(frozen=True)
class Delegation:
    """A task for another agent, named by its identifier."""

    agent: str
    task: str
    follows: ClassVar = False

    @property
    def subject(self) -> str:
        """The request to the agent."""
        return f"asking the {self.agent}"

    @property
    def ability(self) -> str:
        """That it is this agent."""
        return f"is the agent {self.agent}"

    def job(self, previous: str) -> Job:  # noqa: ARG002 - the task is said
        """The agent itself, and a string property for its task."""
        return Job(
            words=vocabulary("agent"),
            avoided=frozenset(),
            needs=(Need(self.task, vocabulary("task")),),
            agent=names.agent_name(self.agent),
        )

    def told(self, result: ToolResult) -> str:
        """The agent's answer, under its name."""
        return f"The {self.agent} answers: {result.value()}"

    def brought(self, result: ToolResult) -> str:
        """The answer."""
        return result.value()


Task = Calculation | TimeQuestion | Reading | Writing | Searching | Delegation
