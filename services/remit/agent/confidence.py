"""How sure an answer is, who says so, and when an agent rather says nothing. Pure.

An engine measures confidence where it can. A model's own word for it is worth less, so it is asked
for only where an agent's definition wants it, and then it is the only one that counts: values of
different sources do not compare.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from remit.api.agent.v1 import confidence_pb2

Confidence = confidence_pb2.Confidence

_SELF_REPORT: Final = re.compile(
    r"\W*confidence\W{0,4}\s*(?P<number>\d{1,3}(?:\.\d{1,6})?)\s*(?P<percent>%?)\W*", re.IGNORECASE
)
INSTRUCTION: Final = (
    "End every answer with a line of its own that says how sure you are that the answer is right,"
    " from 0 (a guess) to 1 (certain), such as `Confidence: 0.8`."
)


class ConfidenceSource(StrEnum):
    """Whose word on an answer counts."""

    MEASURED = "measured"
    SELF_REPORTED = "self_reported"


class WhenUnknown(StrEnum):
    """What an agent does with an answer of which nobody says how sure it is."""

    ABSTAIN = "abstain"
    ANSWER = "answer"


class ConfidenceRule(BaseModel):
    """When an agent abstains, as its definition says it under `confidence`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float = Field(default=0.8, ge=0, le=1)
    source: ConfidenceSource = ConfidenceSource.MEASURED
    abstention: str = Field(default="", max_length=10_000)
    when_unknown: WhenUnknown = WhenUnknown.ABSTAIN

    @property
    def is_self_reported(self) -> bool:
        """Whether the model's own word counts."""
        return self.source is ConfidenceSource.SELF_REPORTED


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run ends with."""

    text: str
    confidence: Confidence


def of_answer(rule: ConfidenceRule | None, text: str, measured: float | None) -> Confidence:
    """How sure an answer is by the source that counts; `measured` is what its engine said."""
    if rule is not None and rule.is_self_reported:
        reported = _reported(text)
        return _of(reported, confidence_pb2.CONFIDENCE_SOURCE_SELF_REPORTED)
    return _of(measured, confidence_pb2.CONFIDENCE_SOURCE_MEASURED)


def said(rule: ConfidenceRule | None, text: str) -> str:
    """An answer without the line that says how sure it is, where one was asked for."""
    if rule is None or not rule.is_self_reported:
        return text
    body, line = _last_line(text)
    return body.rstrip() if _SELF_REPORT.fullmatch(line) else text


def given(rule: ConfidenceRule | None, text: str, confidence: Confidence) -> Answer:
    """What a run ends with: the answer, or the words that say that there is none."""
    known = Confidence(source=confidence_pb2.CONFIDENCE_SOURCE_NONE)
    if confidence.source:
        known.CopyFrom(confidence)
    if rule is not None and abstains(rule, known):
        known.kind = confidence_pb2.ANSWER_KIND_ABSTENTION
        return Answer(rule.abstention or _abstention(rule, known), known)
    known.kind = confidence_pb2.ANSWER_KIND_ANSWER
    return Answer(said(rule, text), known)


def canned(text: str) -> Answer:
    """What a run ends with when every model failed: nobody is sure of it at all."""
    return Answer(
        text,
        Confidence(
            value=0.0,
            source=confidence_pb2.CONFIDENCE_SOURCE_NONE,
            kind=confidence_pb2.ANSWER_KIND_CANNED,
        ),
    )


def abstains(rule: ConfidenceRule, confidence: Confidence) -> bool:
    """Whether an agent keeps an answer of this confidence to itself."""
    if confidence.HasField("value"):
        return confidence.value < rule.min
    return rule.min > 0 and rule.when_unknown is WhenUnknown.ABSTAIN


def _abstention(rule: ConfidenceRule, confidence: Confidence) -> str:
    if confidence.HasField("value"):
        why = f"my confidence in the answer that I have is {confidence.value:.2f}"
    else:
        why = "nothing says how sure the answer that I have is"
    return f"I do not answer this: {why}, and I answer only from {rule.min:.2f} on."


def _of(value: float | None, source: confidence_pb2.ConfidenceSource.ValueType) -> Confidence:
    if value is None or not math.isfinite(value):
        return Confidence(source=confidence_pb2.CONFIDENCE_SOURCE_NONE)
    return Confidence(value=min(max(value, 0.0), 1.0), source=source)


def _reported(text: str) -> float | None:
    """What the last line of an answer says; None if it is no such line, or beyond its scale."""
    found = _SELF_REPORT.fullmatch(_last_line(text)[1])
    if found is None:
        return None
    value = float(found["number"]) / (100 if found["percent"] else 1)
    return value if value <= 1 else None


def _last_line(text: str) -> tuple[str, str]:
    body, _, line = text.rstrip().rpartition("\n")
    return body, line
