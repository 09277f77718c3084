"""Cedar text taken apart into its policies, before Cedar itself sees it.

Two reasons. Cedar's errors name no line, so each policy is parsed on its own and its line is known
here. And Cedar's parser works by recursion without a bound: a few thousand brackets end the whole
process. So what nests too deep is refused by a scan that takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAX_DEPTH: Final = 32
"""Brackets inside brackets in one policy."""
MAX_OPERATORS: Final = 400
"""Brackets and operators in one policy: whatever is chained or nested is no deeper than this."""
MAX_POLICY_CHARS: Final = 32_768

_TOKEN: Final = re.compile(
    r"//[^\n]*"  # a comment
    r'|(?P<string>"(?:[^"\\]|\\.)*")'
    r'|(?P<open_string>")'
    r"|(?P<open>[(\[{])"
    r"|(?P<close>[)\]}])"
    r"|(?P<end>;)"
    r"|(?P<operator>&&|\|\||[.+\-*!<>]|==|\b(?:if|has|like|is|in)\b)"
    r"|(?P<line>\n)"
    r"|(?P<other>[^\s])",
    re.DOTALL,
)
_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Statement:
    """One policy as it is written, up to its semicolon; `line` is where it begins, from 1."""

    text: str
    line: int


class TextFaultError(ValueError):
    """What keeps a text from being taken apart, and where."""

    def __init__(self, line: int, fault: str) -> None:
        super().__init__(fault)
        self.line = line
        self.fault = fault


def statements(text: str) -> list[Statement]:
    """The policies of a text in their order. Comments before a policy belong to it.

    Raises:
        TextFaultError: the text ends within a policy, or a policy is too large or too deep.

    """
    scan = _Scan(text)
    found = list(scan.run())
    scan.check_end()
    return found


class _Scan:
    """One walk over the tokens."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._line = 1
        self._begin = 0
        self._first_line = 0
        self._open: list[str] = []
        self._operators = 0

    def run(self) -> Iterator[Statement]:
        """Yield each statement at its end."""
        for token in _TOKEN.finditer(self._text):
            kind = token.lastgroup
            if kind == "line":
                self._line += 1
            elif not token[0].startswith("//"):
                self._first_line = self._first_line or self._line
                self._take(kind, token[0])
                self._line += token[0].count("\n") if kind == "string" else 0
                if kind == "end":
                    yield self._statement(token.end())

    def check_end(self) -> None:
        """Refuse a text that ends within a policy."""
        if self._open:
            raise TextFaultError(self._first_line, f"`{self._open[-1]}` is not closed")
        if self._first_line:
            raise TextFaultError(self._first_line, "the policy does not end with `;`")

    def _take(self, kind: str | None, token: str) -> None:
        if kind == "open_string":
            raise TextFaultError(self._line, "the string that begins here does not end")
        if kind == "open":
            self._open.append(token)
        elif kind == "close" and (not self._open or _CLOSING[self._open.pop()] != token):
            raise TextFaultError(self._line, f"`{token}` closes nothing")
        elif kind == "end" and self._open:
            raise TextFaultError(self._line, f"`{self._open[-1]}` is not closed before `;`")
        self._operators += kind in {"open", "operator"}
        if len(self._open) > MAX_DEPTH:
            raise TextFaultError(self._line, f"brackets nest deeper than {MAX_DEPTH}")
        if self._operators > MAX_OPERATORS:
            fault = f"the policy has more than {MAX_OPERATORS} operators and brackets; split it"
            raise TextFaultError(self._first_line, fault)

    def _statement(self, end: int) -> Statement:
        made = Statement(self._text[self._begin : end].strip(), self._first_line)
        if len(made.text) > MAX_POLICY_CHARS:
            fault = f"the policy has more than {MAX_POLICY_CHARS} characters"
            raise TextFaultError(made.line, fault)
        self._begin, self._first_line, self._operators = end, 0, 0
        return made
