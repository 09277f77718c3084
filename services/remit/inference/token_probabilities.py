"""How sure a language model was: from the probabilities of the tokens that it chose.

The geometric mean of the probabilities, which is the exponential of the mean of their logarithms: a
long answer is not less sure for being long. It says how sure the model was of its words; whether
they are true is another question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_PARTS: Final = ("content", "refusal")
_LEAST_LOGPROB: Final = -10_000.0
"""What providers write for a probability too small to be told; a sum of these stays finite."""


class TokenProbabilities:
    """Gathers the log-probabilities of a stream's chunks, in the form of chat completions.

    What is malformed counts for nothing, and a stream in which anything was malformed for unknown:
    a mean of what is left would be a guess.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0
        self._is_whole = True

    def add(self, choice: Mapping[str, Any]) -> None:
        """Takes the `logprobs` of a choice in, if it has any."""
        logprobs = choice.get("logprobs")
        if logprobs is None:
            return
        if not isinstance(logprobs, Mapping):
            self._is_whole = False
            return
        for part in _PARTS:
            tokens = logprobs.get(part)
            for token in tokens if isinstance(tokens, list) else ():
                self._token(token)

    def mean(self) -> float | None:
        """The geometric mean of the probabilities, from 0 to 1; None if it is not known."""
        if not (self._count and self._is_whole):
            return None
        return min(math.exp(self._sum / self._count), 1.0)

    def _token(self, token: object) -> None:
        logprob = token.get("logprob") if isinstance(token, Mapping) else None
        # NaN is at most nothing, so it is malformed too; a bool is no number here.
        if isinstance(logprob, int | float) and not isinstance(logprob, bool) and logprob <= 0:
            self._sum += max(logprob, _LEAST_LOGPROB)
            self._count += 1
        else:
            self._is_whole = False
