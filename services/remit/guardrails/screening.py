"""Screens the texts of one request or answer by the rules, and says what came of it.

Every text is looked at before anything is refused, so that all that is wrong is told at once. What
was found is nowhere repeated: an error, a log line and a note name detector, kind and number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from typing import Final

from google.protobuf import struct_pb2

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.guardrails import metrics
from remit.guardrails.builtin import BUILT_IN
from remit.guardrails.detector import Detector, Finding, Pattern
from remit.guardrails.rules import Direction, Mode, Rules
from remit.guardrails.stream import StreamFilter, may_find
from remit.rpc.errors import RemitError, Violation

MAX_VIOLATIONS: Final = 64
"""More would not fit into the metadata that carries an error."""
_PIECE_CHARS: Final = 16_384
"""A long text is screened in pieces, so that what is held of it stays small."""

log = telemetry.logger(__name__)


def find(text: str, *names: str) -> list[Finding]:
    """What these detectors find in a text, all of them without names, by where it begins."""
    stream = StreamFilter([BUILT_IN[name] for name in names or BUILT_IN])
    _screened(stream, text)
    return sorted(stream.findings, key=lambda finding: (finding.start, finding.end))


class Names:
    """Names of one object, which stay apart when what is found in them is replaced.

    In time that grows with their number alone, and none is longer than it was.
    """

    def __init__(self, keys: Container[str]) -> None:
        self._keys = keys
        self._given: set[str] = set()
        self._number = 0

    def name(self, key: str, screened: str) -> str:
        """The name of a key: as it is screened, with a number where another has that name."""
        name = screened
        while screened != key and (name in self._keys or name in self._given):
            self._number += 1
            number = f"*{self._number:x}"
            name = screened[: max(len(key) - len(number), 0)] + number
        self._given.add(name)
        return name


class Screening:
    """Of one request, or of one answer."""

    def __init__(self, rules: Rules, direction: Direction) -> None:
        self._direction = direction
        self._modes = {name: rules.mode(name, direction) for name in BUILT_IN}
        self._flagging = self._detectors(Mode.FLAG)
        self._acting = self._detectors(Mode.REDACT, Mode.REFUSE)
        self._found: Counter[tuple[str, str, Mode]] = Counter()
        self._violations: dict[Violation, tuple[str, str]] = {}

    @property
    def acts(self) -> bool:
        """Whether anything is replaced or refused: a stream is held back for nothing else."""
        return bool(self._acting)

    @property
    def is_off(self) -> bool:
        """Whether nothing is looked for."""
        return set(self._modes.values()) <= {Mode.OFF}

    # ---------------------------------------------------------------------------------- looking

    def text(self, field: str, text: str) -> str:
        """The text with what is to be replaced; what is refused is told by `refusal`."""
        self.look(field, text)
        if not may_find(self._acting, text):
            return text
        return _screened(self.stream(field), text)

    def look(self, field: str, text: str) -> None:
        """Looks for what is only counted."""
        if may_find(self._flagging, text):
            _screened(self._filter(field, self._flagging), text)

    def stream(self, field: str) -> StreamFilter:
        """A filter of a text that comes in pieces, by what is replaced or refused."""
        return self._filter(field, self._acting)

    def struct(self, field: str, struct: struct_pb2.Struct) -> struct_pb2.Struct:
        """A copy in which every text and every name is screened."""
        screened = struct_pb2.Struct()
        names = Names(struct.fields)
        # In an order of its own: a repetition gets the same names, and so the same digest.
        for key, value in sorted(struct.fields.items()):
            name = names.name(key, self.text(field, key))
            screened.fields[name].CopyFrom(self._value(f"{field}.{name[:40]}", value))
        return screened

    def error(self, error: RemitError) -> RemitError:
        """The error; what it quotes is replaced, where it is refused too: it stays that error."""
        if error.quotes and self.acts:
            error.message = _screened(StreamFilter(self._acting), error.message)
        return error

    def _value(self, field: str, value: struct_pb2.Value) -> struct_pb2.Value:
        match value.WhichOneof("kind"):
            case "string_value":
                return struct_pb2.Value(string_value=self.text(field, value.string_value))
            case "struct_value":
                return struct_pb2.Value(struct_value=self.struct(field, value.struct_value))
            case "list_value":
                items = (
                    self._value(f"{field}[{index}]", item)
                    for index, item in enumerate(value.list_value.values)
                )
                return struct_pb2.Value(list_value=struct_pb2.ListValue(values=items))
            case _:
                return value

    # -------------------------------------------------------------------------------- telling

    @property
    def violations(self) -> list[Violation]:
        """What is refused, by field: each kind once."""
        return list(self._violations)[:MAX_VIOLATIONS]

    @property
    def notes(self) -> Mapping[str, int]:
        """How often what was found, such as `redact secrets.jwt`: for a record."""
        return {
            f"{mode} {detector}.{kind}": count
            for (detector, kind, mode), count in sorted(self._found.items())
        }

    def refusal(self) -> RemitError | None:
        """Why it is refused, with every violation; None if it is not."""
        if not self._violations:
            return None
        violations = self.violations
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        is_input = self._direction is Direction.INPUT
        detectors, kinds = zip(*self._violations.values(), strict=True)
        return RemitError(
            error_reason_pb2.ERROR_REASON_SUSPICIOUS_INPUT
            if is_input
            else error_reason_pb2.ERROR_REASON_OUTPUT_REFUSED,
            f"{first.field}: {first.description}{more}",
            violations=violations,
            metadata={
                "direction": self._direction,
                "detectors": ",".join(sorted(set(detectors))),
                "kinds": ",".join(sorted(set(kinds))),
            },
        )

    def count(self, what: str) -> None:
        """Counts and logs what was found in `what`, at the end."""
        for (detector, _, mode), count in self._found.items():
            metrics.findings(detector, self._direction, mode).inc(count)
        if self._found:
            log.warning(
                "guardrail_found", what=what, direction=self._direction, findings=dict(self.notes)
            )

    # -------------------------------------------------------------------------------- inside

    def _detectors(self, *modes: Mode) -> list[Detector]:
        return [BUILT_IN[name] for name, mode in self._modes.items() if mode in modes]

    def _filter(self, field: str, detectors: list[Detector]) -> StreamFilter:
        return StreamFilter(detectors, self._teller(field))

    def _teller(self, field: str) -> Callable[[str, Pattern], None]:
        def tell(detector: str, pattern: Pattern) -> None:
            mode = self._modes[detector]
            self._found[detector, pattern.kind, mode] += 1
            if mode is Mode.REFUSE:
                self._violations[Violation(field, pattern.what)] = (detector, pattern.kind)

        return tell


def _screened(stream: StreamFilter, text: str) -> str:
    pieces = [stream.feed(text[at : at + _PIECE_CHARS]) for at in range(0, len(text), _PIECE_CHARS)]
    return "".join([*pieces, stream.finish()])
