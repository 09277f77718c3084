"""Checks that a service makes and streams: followed across breaks, counted, and told.

`remit cost check` and `remit audit verify --complete` compare what several services hold. Each step
of such a stream says how far the check is, from where it can be taken up again, and what differs.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import click

from remit.api.errors.v1 import error_reason_pb2
from remit.cli import documents
from remit.cli.output import Column, Output
from remit.client import is_break
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

MOST_RESUMES: Final = 5
"""How often in a row a check that broke off without a step is taken up again."""
MOST_SHOWN: Final = 200
_WHOLE: Final = 100


class Step(Protocol):
    """A step of a check, as every contract of one states it."""

    percent: int
    resume_token: str
    differences_elsewhere: int

    @property
    def differences(self) -> Sequence[Any]:
        """What differs."""


class Request(Protocol):
    """What asks for a check."""

    resume_token: str


StepT = TypeVar("StepT", bound=Step)
RequestT = TypeVar("RequestT", bound=Request)


@dataclass
class Result(Generic[StepT]):
    """What a check compared and found."""

    counts: dict[str, int]
    """What a step counts, by the names of its fields."""
    percent: int = 0
    first: StepT | None = None
    elsewhere: int = 0
    count: int = 0
    shown: list[Any] = field(default_factory=list)
    """The first of the differences."""

    def add(self, step: StepT) -> None:
        """Counts a step."""
        self.first = self.first or step
        self.percent = step.percent
        for name in self.counts:
            self.counts[name] += getattr(step, name)
        self.elsewhere += step.differences_elsewhere
        self.count += len(step.differences)
        self.shown += step.differences[: MOST_SHOWN - len(self.shown)]

    @property
    def is_clean(self) -> bool:
        """Whether nothing differs, of whichever org."""
        return not (self.count or self.elsewhere)

    @property
    def places(self) -> str:
        """In how many places something differs."""
        return f"{self.count + self.elsewhere:,} places"

    def document(self) -> dict[str, object]:
        """The differences, for a machine."""
        return {
            "differences": [documents.of_message(found) for found in self.shown],
            "more": self.count > len(self.shown),
            "differences_elsewhere": self.elsewhere,
        }


async def followed(
    ask: Callable[[RequestT], AsyncIterable[StepT]],
    request: RequestT,
    counted: Sequence[str],
    tell: Callable[[int], None],
) -> Result[StepT]:
    """A whole check, across broken streams; `tell` hears how many percent are done.

    Raises:
        RemitError: it cannot be ended.

    """
    result = Result[StepT](dict.fromkeys(counted, 0))
    failures = 0
    pending: list[StepT] = []
    while True:
        try:
            stream = aiter(ask(request))
            async with reading(stream):
                async for step in stream:
                    pending.append(step)
                    if step.resume_token != request.resume_token or step.percent == _WHOLE:
                        _count(result, pending)
                        request.resume_token, failures = step.resume_token, 0
                    tell(step.percent)
            _check_ended(result)
        except RemitError as error:
            failures += 1
            pending.clear()  # these steps come again
            if failures > MOST_RESUMES or not is_break(error):
                raise
        else:
            return result


def progress(output: Output, what: str) -> Callable[[int], None]:
    """Tells a person who waits how far it is."""

    def tell(percent: int) -> None:
        if output.is_terminal and not output.as_json:
            click.echo(f"\rchecking {what}: {percent:3} %", nl=percent == _WHOLE, err=True)

    return tell


def kind_of(found: Any) -> str:  # noqa: ANN401 - a difference of any check
    """The kind of a difference in words; an older command may not know it."""
    known = type(found).Kind.DESCRIPTOR.values_by_number.get(found.kind)
    return (known.name if known else "KIND_UNKNOWN").removeprefix("KIND_").lower().replace("_", " ")


def show_differences(
    output: Output, result: Result[StepT], columns: Sequence[Column[Any]], service: str
) -> None:
    """Prints what differs, what to do about each kind, and what is not shown."""
    if result.shown:
        output.table(result.shown, columns)
        for kind, step in {kind_of(found): found.next_step for found in result.shown}.items():
            output.line(f"{kind}: {step}")
    if result.count > len(result.shown):
        output.line(f"… there are {result.count - len(result.shown):,} more", "yellow")
    if result.elsewhere:
        output.line(
            f"{result.elsewhere:,} differences of other orgs: see the log of {service}", "yellow"
        )


def _check_ended(result: Result[StepT]) -> None:
    """A stream that was cut may look like one that ended."""
    if result.percent < _WHOLE:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            f"the check broke off at {result.percent} %",
        )


def _count(result: Result[StepT], pending: list[StepT]) -> None:
    for step in pending:
        result.add(step)
    pending.clear()
