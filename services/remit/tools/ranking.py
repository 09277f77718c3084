"""Ranked full-text search over a handful of documents: Okapi BM25.

S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), with
k1 = 1.2 and b = 0.75 as there, and the idf that is never negative, ln(1 + (N - n + 0.5)/(n + 0.5)).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

K1: Final = 1.2
B: Final = 0.75
SNIPPET_CHARS: Final = 240
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True)
class Document:
    """What ranking needs of a document: its length and how often each asked term occurs in it."""

    name: str
    length: int
    frequencies: Mapping[str, int]


@dataclass(frozen=True)
class Hit:
    """A document and its score, more than 0."""

    name: str
    score: float


@dataclass(frozen=True)
class Snippet:
    """The part of a text that answers best; lines count from 1."""

    line: int
    text: str


def terms_of(text: str) -> list[str]:
    """The words of a text, case-folded, in order."""
    return _WORD.findall(text.casefold())


def document(name: str, text: str, terms: Sequence[str]) -> Document:
    """What ranking needs of a text. The words of its name count too: people search by title."""
    words = terms_of(text) + terms_of(name.replace("_", " "))
    asked = frozenset(terms)
    return Document(name, len(words), Counter(word for word in words if word in asked))


def rank(documents: Sequence[Document], terms: Sequence[str]) -> list[Hit]:
    """Documents that hold any of the terms, the best first; equal scores by name."""
    if not documents:
        return []
    mean_length = sum(document.length for document in documents) / len(documents)
    weights = {term: _idf(documents, term) for term in set(terms)}
    hits = [Hit(each.name, _score(each, weights, mean_length)) for each in documents]
    found = [hit for hit in hits if hit.score > 0]
    return sorted(found, key=lambda hit: (-hit.score, hit.name))


def _idf(documents: Sequence[Document], term: str) -> float:
    holding = sum(1 for document in documents if document.frequencies.get(term))
    return math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))


def _score(document: Document, weights: Mapping[str, float], mean_length: float) -> float:
    # max: a corpus of empty documents has the mean 0 and nothing to divide
    norm = K1 * (1 - B + B * document.length / max(mean_length, 1.0))
    return math.fsum(
        weight * frequency * (K1 + 1) / (frequency + norm)
        for term, weight in weights.items()
        if (frequency := document.frequencies.get(term, 0))
    )


def snippet(text: str, terms: Sequence[str]) -> Snippet:
    """The first line with the most different terms, cut to `SNIPPET_CHARS` around the first.

    A document found by its name alone gives its first line that is not blank.
    """
    asked = frozenset(terms)
    best_line, best_count, best_text = 1, -1, ""
    for number, line in enumerate(text.splitlines(), start=1):
        count = len(asked.intersection(terms_of(line))) if line.strip() else -1
        if count > best_count:
            best_line, best_count, best_text = number, count, line
    return Snippet(best_line, _excerpt(best_text.strip(), asked))


def _excerpt(line: str, asked: frozenset[str]) -> str:
    if len(line) <= SNIPPET_CHARS:
        return line
    first = next((m.start() for m in _WORD.finditer(line) if m.group().casefold() in asked), 0)
    start = max(0, min(first - SNIPPET_CHARS // 4, len(line) - SNIPPET_CHARS))
    end = start + SNIPPET_CHARS
    return ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")
