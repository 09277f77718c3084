"""What a run sees of the runs before it in its conversation: pure rules.

An exchange is what a person asked a run and what the run answered. Only runs that SUCCEEDED have
one. How many a run sees is settled when it is created, and they are read from the journals of the
earlier runs ever after, so that a step that is asked for again carries the same body.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError


@dataclass(frozen=True, slots=True)
class Exchange:
    """One run as later ones see it."""

    run: str
    task: str
    context: Mapping[str, str]
    answer: str
    previous_run: str = ""
    """The run that it follows on."""

    @classmethod
    def of(cls, run: run_pb2.Run) -> Exchange:
        """The exchange of a run that SUCCEEDED."""
        return cls(run.name, run.task, dict(run.context), run.result, run.previous_run)

    @property
    def size_bytes(self) -> int:
        """Bytes of its texts in UTF-8."""
        texts = [self.task, self.answer, *self.context.keys(), *self.context.values()]
        return sum(len(text.encode()) for text in texts)


def kept(
    newest_first: Iterable[Exchange], *, max_runs: int, max_bytes: int
) -> tuple[Exchange, ...]:
    """The exchanges that a new run sees, newest first: whole ones, and none after one left out."""
    found: list[Exchange] = []
    left_bytes = max_bytes
    for exchange in newest_first:
        left_bytes -= exchange.size_bytes
        if len(found) == max_runs or left_bytes < 0:
            break
        found.append(exchange)
    return tuple(found)


def exchanges_of(newest: str, ends: Sequence[run_pb2.RunEvent]) -> list[Exchange]:
    """The exchanges of runs that follow on one another, from the last events of their journals.

    Newest first. Raises DATA_CORRUPT for an event that does not end the run that must stand there,
    and if there is none.
    """
    if not ends:
        raise RemitError(reasons.ERROR_REASON_DATA_CORRUPT, f"{newest}: its last event is missing")
    found: list[Exchange] = []
    expected = newest
    for event in ends:
        run = event.ended.run
        if event.run != expected or run.name != expected:
            raise _corrupt(event, f"stands where {expected} must end")
        if run.state != run_pb2.RUN_STATE_SUCCEEDED:
            raise _corrupt(event, "is no answer that a later run can follow on")
        found.append(Exchange.of(run))
        expected = found[-1].previous_run
    return found


def _corrupt(event: run_pb2.RunEvent, fault: str) -> RemitError:
    return RemitError(
        reasons.ERROR_REASON_DATA_CORRUPT, f"{event.run}: event {event.sequence} {fault}"
    )
