"""Finds the offered tool that can do a job, by its JSON Schema, and fills in its arguments.

Nothing here knows a tool by name; an agent is taken where the job names it, and never else. A tool
fits when every argument that it requires can be given, the value goes into a string property that
is meant for it, and the tool's own words speak of the job. Among those that fit, the one with the
most evidence is taken; ties go by name, so that the order in which tools are offered never matters.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from remit.api.inference.v1.message_pb2 import ToolDefinition

Json = Mapping[str, object]
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NAME_EVIDENCE: Final = 3
_DESCRIPTION_EVIDENCE: Final = 1
_MAX_DESCRIPTION_EVIDENCE: Final = 3
_EXACT_PROPERTY_EVIDENCE: Final = 6
_MAX_REMEMBERED: Final = 256
_MAX_REMEMBERED_CHARS: Final = 16_384


def words(text: str) -> frozenset[str]:
    """The words of a text or an identifier, in lower case and without a plural's or verb's s."""
    return frozenset(_stem(word) for word in _sequence(text))


@dataclass(frozen=True)
class Need:
    """One value that a job gives to a tool.

    `words` are what a property for it is called or described by; `avoided` are words of properties
    that look alike and are for something else; `others` are names of properties for the job's other
    values, which may well be mentioned in a description.
    """

    value: str
    words: frozenset[str]
    avoided: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    optional: bool = False


@dataclass(frozen=True)
class Job:
    """What a tool must be able to do: words that speak for it and against it, and its values."""

    words: frozenset[str]
    avoided: frozenset[str]
    needs: tuple[Need, ...]
    agent: str = ""
    """`agents/{agent}` that alone may do it; empty for a job of a tool."""


@dataclass(frozen=True)
class Fit:
    """A tool that can do the job, its arguments and how much speaks for it."""

    tool: str
    arguments: Mapping[str, Any]
    evidence: int


def best_fit(tools: Iterable[ToolDefinition], job: Job) -> Fit | None:
    """The offered tool that suits the job best; None if none does."""
    fits = [found for tool in tools if (found := _fit(_read(tool), job)) is not None]
    return min(fits, key=lambda found: (-found.evidence, found.tool), default=None)


@dataclass(frozen=True)
class _Property:
    name: str
    schema: Json
    name_words: frozenset[str]
    description_words: frozenset[str]

    def takes(self, value: str) -> bool:
        """Whether the schema lets a string of this value through, as far as it says."""
        schema = self.schema
        allowed, least, most = schema.get("enum"), schema.get("minLength"), schema.get("maxLength")
        return (
            _is_string(schema)
            and not (isinstance(allowed, list) and value not in allowed)
            and not (isinstance(least, int) and len(value) < least)
            and not (isinstance(most, int) and len(value) > most)
        )


@dataclass(frozen=True)
class _Offer:
    name: str
    name_words: frozenset[str]
    description_words: frozenset[str]
    first_word: str
    properties: tuple[_Property, ...] = ()
    required: frozenset[str] = field(default_factory=frozenset)


def _read(tool: ToolDefinition) -> _Offer:
    """The offer of a definition; small ones are remembered, for the same come with every call."""
    read = _remembered if len(tool.input_schema_json) <= _MAX_REMEMBERED_CHARS else _offer
    return read(tool.name, tool.description, tool.input_schema_json)


def _offer(name: str, description: str, schema_json: str) -> _Offer:
    """Reads a definition; a schema that is no object schema offers no properties."""
    schema = _object(schema_json)
    properties, required = schema.get("properties"), schema.get("required")
    return _Offer(
        name=name,
        name_words=words(name.removeprefix("tools/")),
        description_words=words(description),
        first_word=_first_word(description),
        properties=tuple(
            _property(key, _resolved(value, schema))
            for key, value in (properties.items() if isinstance(properties, dict) else ())
        ),
        required=frozenset(
            key for key in (required if isinstance(required, list) else ()) if isinstance(key, str)
        ),
    )


_remembered = functools.lru_cache(maxsize=_MAX_REMEMBERED)(_offer)


def _fit(offer: _Offer, job: Job) -> Fit | None:
    is_agent = offer.name.startswith("agents/")
    if (job.agent or is_agent) and offer.name != job.agent:
        return None
    evidence = _evidence(offer, job)
    if evidence is None:
        return None
    filled = _filled(offer, job.needs)
    if filled is None:
        return None
    arguments, property_evidence = filled
    total = evidence + property_evidence
    if total == 0:
        return None
    for missing in sorted(offer.required - arguments.keys()):
        value = _default(next((p for p in offer.properties if p.name == missing), None))
        if value is None:
            return None
        arguments[missing] = value
    return Fit(offer.name, arguments, total)


def _evidence(offer: _Offer, job: Job) -> int | None:
    """How much the tool's own words speak for the job; None where they speak of another one."""
    if offer.first_word in job.avoided:
        return None
    if offer.name_words & job.avoided and not offer.name_words & job.words:
        return None
    named = _NAME_EVIDENCE * bool(offer.name_words & job.words)
    first = _NAME_EVIDENCE * (offer.first_word in job.words)
    described = min(
        _DESCRIPTION_EVIDENCE * len(offer.description_words & job.words), _MAX_DESCRIPTION_EVIDENCE
    )
    against = len(offer.description_words & job.avoided)
    evidence = named + first + described - against
    return evidence if named or first or described else None


def _filled(offer: _Offer, needs: Sequence[Need]) -> tuple[dict[str, Any], int] | None:
    """A property for every need, each used once, and the evidence; None if one has no place."""
    arguments: dict[str, Any] = {}
    total = 0
    for need in needs:
        candidates = [
            (score, p.name)
            for p in offer.properties
            if p.name not in arguments and p.takes(need.value) and (score := _suits(p, need)) > 0
        ]
        if candidates:
            score, name = min(candidates, key=lambda found: (-found[0], found[1]))
            arguments[name] = need.value
            total += score
        elif not need.optional:
            return None
    return arguments, total


def _suits(candidate: _Property, need: Need) -> int:
    if (candidate.name_words | candidate.description_words) & need.avoided:
        return 0
    if candidate.name_words & need.others:
        return 0
    exact = _EXACT_PROPERTY_EVIDENCE * bool(candidate.name_words & need.words)
    described = min(len(candidate.description_words & need.words), _MAX_DESCRIPTION_EVIDENCE)
    return exact + described


def _default(missing: _Property | None) -> Any:  # noqa: ANN401 - any JSON value
    """A value that the schema itself names for an argument that the job does not give."""
    if missing is None:
        return None
    schema = missing.schema
    return schema.get("default", schema.get("const"))


def _property(name: str, schema: Json) -> _Property:
    text = " ".join(str(schema.get(key, "")) for key in ("title", "description", "format"))
    return _Property(name, schema, words(name), words(text))


def _is_string(schema: Json) -> bool:
    stated = schema.get("type")
    if isinstance(stated, list):
        return "string" in stated
    return stated == "string"


def _resolved(value: object, root: Json) -> Json:
    """The schema of a property: its reference followed, its string variant chosen."""
    schema = value if isinstance(value, dict) else {}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        definitions = root.get("$defs")
        target = reference.removeprefix("#/$defs/")
        found = definitions.get(target) if isinstance(definitions, dict) else None
        schema = {**(found if isinstance(found, dict) else {}), **schema}
    variants = schema.get("anyOf", schema.get("oneOf"))
    for variant in variants if isinstance(variants, list) else ():
        if isinstance(variant, dict) and variant.get("type") == "string":
            return {**variant, **schema, "type": "string"}
    return schema


def _object(text: str) -> Json:
    try:
        schema = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return schema if isinstance(schema, dict) else {}


def _sequence(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _first_word(text: str) -> str:
    found = _sequence(text[:100])
    return _stem(found[0]) if found else ""


def _stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
