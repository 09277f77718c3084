"""Guardrails of model calls: the prompt before anything is asked for, the answer while it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import Message
from remit.guardrails import Direction, Rules, Screening
from remit.inference.engine import Turn
from remit.rpc.errors import RemitError

SHIPPED_GUARDRAILS: Final = "secrets.output=flag"
"""A prompt repeats what came in before: by default it is not looked at each time again."""
_TEXT: Final = "message.text"


def screened_prompt(
    request: GenerateTextRequest, screening: Screening, *, prefix: str = ""
) -> GenerateTextRequest:
    """The request as the model may see it: texts of all turns, and arguments of calls in them."""
    if screening.is_off:
        return request
    screened = GenerateTextRequest()
    screened.CopyFrom(request)
    for index, message in enumerate(screened.messages):
        field = f"{prefix}messages[{index}]"
        message.text = screening.text(f"{field}.text", message.text)
        _screen_calls(message, screening, field)
    return screened


def _screen_calls(message: Message, screening: Screening, field: str) -> None:
    for index, call in enumerate(message.tool_calls):
        at = f"{field}.tool_calls[{index}].arguments"
        call.arguments.CopyFrom(screening.struct(at, call.arguments))


class Answer:
    """The text of a turn on its way to the reader, who sees only what was screened."""

    def __init__(self, rules: Rules, on_text: Callable[[str], None]) -> None:
        self._screening = Screening(rules, Direction.OUTPUT)
        self._on_text = on_text
        # Nothing is held back where nothing would be done about it.
        self._stream = self._screening.stream(_TEXT) if self._screening.acts else None
        self._texts: list[str] = []
        self._came_chars = 0

    def add(self, text: str) -> None:
        """More text came. Raises OUTPUT_REFUSED before anything of what is refused goes on."""
        self._came_chars += len(text)
        self._go_on(self._stream.feed(text) if self._stream is not None else text)

    def rest(self) -> str:
        """All of the text, now that no more comes. Raises as `add` does."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self._go_on(stream.finish())
        return "".join(self._texts)

    def turn(self, turn: Turn) -> Turn:
        """The whole turn as it may be recorded. Raises as `add` does."""
        if self._screening.is_off:
            return turn
        text = self.rest()
        if self._came_chars != len(turn.message.text):
            # An engine that did not send its text piece by piece.
            text = self._screening.text(_TEXT, turn.message.text)
        else:
            self._screening.look(_TEXT, text)
        message = Message()
        message.CopyFrom(turn.message)
        message.text = text
        _screen_calls(message, self._screening, "message")
        self._check()
        return replace(turn, message=message)

    def error(self, error: RemitError) -> RemitError:
        """An error as it may be told: it may quote what the provider said."""
        return self._screening.error(error)

    def ended(self, model: str) -> None:
        """Counts what was found."""
        self._screening.count(model)

    def _go_on(self, text: str) -> None:
        self._check()
        if text:
            self._texts.append(text)
            self._on_text(text)

    def _check(self) -> None:
        refusal = self._screening.refusal()
        if refusal is not None:
            raise refusal
