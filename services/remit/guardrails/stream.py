"""Screens a text that comes in pieces: what is found is replaced, all else goes on soon.

What was read is let go once no pattern can begin in it any more, so at most a window is held back.
However a text is cut into pieces, what goes on is the same: whether a finding begins at a character
depends on that window alone, and nothing of it goes on before that is known. A finding that began
swallows what follows until it ends, and holds back nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from remit.guardrails.detector import Detector, Finding, Pattern
from remit.guardrails.reading import Reader, is_plain


@dataclass
class _Found:
    """A finding; its places are characters as they were read."""

    detector: str
    pattern: Pattern
    order: int
    """Of its pattern: of two that begin at once the first is told first, whenever it was found."""
    start: int
    end: int
    is_open: bool
    """Whether more may belong to it."""
    place: int = -1
    """Where it begins in the text; less than 0: not come to yet."""


@dataclass
class _Buffer:
    """What was read and is still needed, one character before that included."""

    view: str = ""
    base: int = 0
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.base + len(self.view)

    def start_of(self, index: int) -> int:
        return self.starts[index - self.base]

    def end_of(self, index: int) -> int:
        return self.ends[index - self.base]

    def drop(self, until: int) -> None:
        count = max(until - self.base, 0)
        self.view, self.base = self.view[count:], self.base + count
        del self.starts[:count], self.ends[:count]


@dataclass
class _Cursor:
    """How far one pattern was looked for: no finding of it begins before, but those it told."""

    detector: str
    pattern: Pattern
    order: int
    at: int = 0
    open: _Found | None = None

    def advance(self, buffer: _Buffer, found: list[_Found], *, final: bool) -> None:
        """Looks at all that is decided."""
        while self._follow(buffer, final=final) and self._seek(buffer, found, final=final):
            pass

    def _follow(self, buffer: _Buffer, *, final: bool) -> bool:
        """Goes on with the finding that is open; whether there is none any more."""
        tail = self.pattern.tail
        if self.open is None or tail is None:
            return True
        decided = buffer.end if final else buffer.end - tail.window
        stop = tail.stop.search(buffer.view, self.at - buffer.base)
        if stop is not None and buffer.base + stop.start() < decided:
            self.at = buffer.base + (stop.end() if tail.is_included else stop.start())
            self.open.end, self.open.is_open = self.at, False
            self.open = None
            return True
        self.at = self.open.end = max(self.at, decided)
        self.open.is_open = not final
        return False

    def _seek(self, buffer: _Buffer, found: list[_Found], *, final: bool) -> bool:
        """Looks for the next finding; whether there may be more."""
        decided = buffer.end if final else buffer.end - self.pattern.window
        match = self.pattern.head.search(buffer.view, self.at - buffer.base)
        if match is None or buffer.base + match.start() >= decided:
            self.at = max(self.at, decided)
            return False
        start = buffer.base + match.start()
        length = self.pattern.length(match[0])
        self.at = start + max(length, 1)
        if length:
            has_tail = self.pattern.tail is not None
            one = _Found(self.detector, self.pattern, self.order, start, self.at, has_tail)
            self.open = one if has_tail else None
            found.append(one)
        return True


Told = Callable[[str, Pattern], None]
"""Is told of each finding as it is come to: the detector and the pattern."""


class StreamFilter:
    """Replaces what detectors find in one text."""

    def __init__(self, detectors: Sequence[Detector], told: Told | None = None) -> None:
        patterns = [(each.name, pattern) for each in detectors for pattern in each.patterns]
        self._cursors = [_Cursor(*named, order) for order, named in enumerate(patterns)]
        self._told = told
        self._reader = Reader()
        self._buffer = _Buffer()
        self._found: list[_Found] = []
        self._text = ""
        """What has not gone on yet; it begins at `_out`."""
        self._out = 0
        self.findings: list[Finding] = []
        """Those that have ended."""

    def feed(self, piece: str) -> str:
        """What may go on now that this came."""
        return self._fed(piece, final=False)

    def finish(self) -> str:
        """What is left, now that nothing more comes."""
        return self._fed("", final=True)

    def _fed(self, piece: str, *, final: bool) -> str:
        self._text += piece
        read = self._reader.read(piece, final=final)
        buffer = self._buffer
        buffer.view += read.view
        buffer.starts += read.starts
        buffer.ends += read.ends
        for cursor in self._cursors:
            cursor.advance(buffer, self._found, final=final)
        decided = min((cursor.at for cursor in self._cursors), default=buffer.end)
        pieces = self._replaced(decided)
        until = self._out + len(self._text) if final else self._open_until(decided)
        pieces.append(self._take(until))
        buffer.drop(decided - 1)
        return "".join(pieces)

    def _replaced(self, decided: int) -> list[str]:
        """What goes on up to the last finding that begins before `decided`."""
        pieces = []
        waiting = []
        for one in sorted(self._found, key=lambda one: (one.start, one.order)):
            if one.start >= decided:
                waiting.append(one)
                continue
            if one.place < 0:
                pieces.append(self._come_to(one))
            end = self._buffer.end_of(one.end - 1)
            self._take(end)
            if one.is_open:
                waiting.append(one)
            else:
                self.findings.append(Finding(one.detector, one.pattern.kind, one.place, end))
        self._found = waiting
        return pieces

    def _come_to(self, one: _Found) -> str:
        """The text before a finding and what stands for it; nothing where it overlaps another."""
        one.place = self._buffer.start_of(one.start)
        if self._told is not None:
            self._told(one.detector, one.pattern)
        if one.place < self._out:
            return ""
        length = self._buffer.end_of(one.end - 1) - one.place
        return self._take(one.place) + _mask(one.pattern.kind, length)

    def _open_until(self, decided: int) -> int:
        """Where the text is open up to which nothing begins any more that is not known."""
        if decided <= self._buffer.base:
            return self._out
        until = self._buffer.end_of(decided - 1)
        if decided < self._buffer.end:
            # One character of the text may be read as several.
            until = min(until, self._buffer.start_of(decided))
        return until

    def _take(self, until: int) -> str:
        count = max(until - self._out, 0)
        taken, self._text = self._text[:count], self._text[count:]
        self._out += count
        return taken


def may_find(detectors: Sequence[Detector], text: str) -> bool:
    """Whether a filter might find anything in a whole text.

    It finds nothing in most, which this tells at a fraction of the cost: a finding begins with a
    head.
    """
    if not detectors:
        return False
    return not is_plain(text) or any(
        pattern.head.search(text) for detector in detectors for pattern in detector.patterns
    )


def _mask(kind: str, length: int) -> str:
    """What stands for a finding: never longer than it, so that no bound is passed by replacing."""
    mask = f"[{kind}]"
    return mask if len(mask) <= length else "*" * length
