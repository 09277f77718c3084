"""A place in the tokens of a sentence, and the steps that a parser takes from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from remit.inference.rules.arithmetic_tokens import Token
from remit.inference.rules.arithmetic_words import WEAK


class NoFormula(Exception):  # noqa: N818 - not an error: the text simply is something else
    """The tokens at this place are no formula."""


@functools.cache  # there are as many phrases as grammars name
def _parts(phrase: str) -> list[str]:
    return phrase.split(" ")


class Cursor:
    """Stands before `position`.

    `strong` tells whether words were read that mean arithmetic and nothing else.
    """

    def __init__(self, tokens: Sequence[Token], start: int) -> None:
        self.tokens = tokens
        self.words = [token.text if token.kind == "word" else "" for token in tokens]
        self.position = start
        self.strong = False

    def word(self) -> str:
        """The word that stands here; empty for a number, a sign or the end."""
        return self.words[self.position] if self.position < len(self.words) else ""

    def take_marked(self, phrase: str) -> bool:
        """The same as `take`, and notes if the phrase means arithmetic alone."""
        taken = self.take(phrase)
        self.strong = self.strong or (taken and phrase not in WEAK)
        return taken

    def take(self, phrase: str) -> bool:
        """Steps over the words or the symbol of `phrase` if they stand here."""
        parts = _parts(phrase)
        begin, end = self.position, self.position + len(parts)
        # Grammars ask for many phrases at each place, and nearly all differ in their first word.
        if begin >= len(self.tokens) or self.tokens[begin].text != parts[0]:
            return False
        if len(parts) > 1 and [token.text for token in self.tokens[begin:end]] != parts:
            return False
        self.position = end
        return True

    def need(self, phrase: str) -> None:
        """Steps over `phrase`. Raises NoFormula if it does not stand here."""
        if not self.take(phrase):
            raise NoFormula
