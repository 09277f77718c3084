"""How far a generation may go: output tokens held for it, and when more are asked for.

Pure. A lease is extended ahead of its end, so that a stream does not stand still while the ledger
is asked. What a model may have generated when it is stopped is more than what came: `unsent` tokens
may be under way. A generation goes on only while what came and what may be under way is held, or
all of `max_output_tokens` is, which the engine itself does not pass.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Lease:
    """The output tokens of one generation: held, and come."""

    most: int
    """All of `max_output_tokens`."""
    step: int
    """Tokens that are held beyond those that came and those under way, where there is money."""
    unsent: int
    """Tokens that may be generated and not come yet, at most."""
    ahead_s: float = 0.0
    """The lease lasts so many seconds at least, at the pace of the generation so far."""
    held: int = 0
    came: int = 0
    _began: float | None = None
    _ended: float = 0.0
    _asked: int = 0
    """The most that was ever asked for: a request without an answer may have been granted."""

    def first(self) -> int:
        """Tokens to hold before anything is generated."""
        return min(self.most, self.step + self.unsent)

    def grow(self, came: int, now: float) -> None:
        """So many tokens have come in all, or are about to."""
        if self._began is None:
            self._began = now
        self._ended = now
        self.came = max(self.came, came)

    def grant(self, held: int) -> None:
        """So many are held now."""
        self.held = max(self.held, held)

    @property
    def is_whole(self) -> bool:
        """Whether all is held that the generation can come to."""
        return self.held >= self.most

    @property
    def room(self) -> int:
        """Tokens that may still come; negative where more came than the lease allows."""
        return self.held - self.unsent - self.came

    @property
    def is_spent(self) -> bool:
        """Whether the generation must not go on with what is held."""
        return not self.is_whole and self.room < 0

    @property
    def wants_more(self) -> bool:
        """Whether it is time to ask: half of what a lease is to have is used."""
        return not self.is_whole and self.room <= self._length() // 2

    def next(self) -> int:
        """Tokens to ask for now, in all."""
        self._asked = min(self.most, max(self._asked, self.came + self.unsent + self._length()))
        return self._asked

    def settle_for(self, affordable: int) -> int | None:
        """Tokens to ask for after a refusal, where there is money for so many; None: no more."""
        self._asked = max(min(affordable, self.most), self.held)
        return self._asked if self._asked > self.held else None

    def _length(self) -> int:
        lasted_s = self._ended - self._began if self._began is not None else 0.0
        if lasted_s <= 0:
            return self.step
        return max(self.step, int(self.came / lasted_s * self.ahead_s))
