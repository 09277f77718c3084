"""What a tool call's arguments touch, in a form that a policy can compare safely.

Cedar has no loops and no notion of a path: `like "/reports/*"` matches `/reports/../etc/passwd`. So
the paths, hosts and mail domains in the arguments are found and normalised before any rule sees
them, and what a rule would need a loop for is computed here:

- "every path is below /reports": `facts.common_path` is the deepest folder that holds them all;
- "some path is below /secret": `facts.path_prefixes` holds every path and each of its folders;
- "every recipient is ours": `["acme.com"].containsAll(facts.mail_domains)`.

What a value means is guessed from its key and its look, generously: a value that is taken for a
path though it is none can make a forbid match, never a permit match wrongly, because every reading
of a value (as written, percent-decoded, Unicode-normalised) is included and all must fit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final
from urllib.parse import unquote, urlsplit

MAX_VALUES: Final = 2_000
"""Strings looked at in one call's arguments; more make the facts incomplete, which denies."""
MAX_PATH_CHARS: Final = 4_096
MAX_PATH_PARTS: Final = 32
"""A deeper path is not trusted; with the limits above it bounds what a rule has to look at."""
MAX_ALL_PATH_CHARS: Final = 65_536
_MAX_DECODINGS: Final = 4
_PATH_KEY: Final = re.compile(
    r"(?:^|[^a-z])(?:path|file|filename|folder|dir|directory|source|destination|target)s?$",
    re.IGNORECASE,
)
# Looks behind the @ for one character only: linear, whatever the text.
_ADDRESS: Final = re.compile(r"(?<=[^\s@<>\"',;:])@([^\s@<>\"',;:]+)")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Facts:
    """Normalised facts about a call's arguments; see the module for how rules use them.

    `incomplete` is true when the arguments could not be read to the end; the shipped policies
    forbid such calls. `path_escapes` is true when a path leaves its root or cannot be trusted.
    """

    common_path: str = ""
    path_prefixes: frozenset[str] = frozenset()
    path_escapes: bool = False
    hosts: frozenset[str] = frozenset()
    mail_domains: frozenset[str] = frozenset()
    incomplete: bool = False

    def to_cedar(self) -> dict[str, object]:
        """The record `Facts` of the schema."""
        return {
            "common_path": self.common_path,
            "path_prefixes": sorted(self.path_prefixes),
            "path_escapes": self.path_escapes,
            "hosts": sorted(self.hosts),
            "mail_domains": sorted(self.mail_domains),
            "incomplete": self.incomplete,
        }


def facts_of(arguments: Mapping[str, object]) -> Facts:
    """Find and normalise what the arguments of one call touch. Never raises."""
    values = list(islice(_strings("", arguments), MAX_VALUES + 1))
    found = _Found()
    for key, value in values[:MAX_VALUES]:
        found.take(key, value)
    return found.facts(incomplete=len(values) > MAX_VALUES)


def normalise_path(path: str) -> str | None:
    """Return `path` rooted at `/` without `.`, `..` or empty parts; None if it cannot be trusted.

    Not to be trusted is what climbs above its root, holds control characters, or is overlong or
    too deep.
    Backslashes count as separators, because some tools take them so.
    """
    if len(path) > MAX_PATH_CHARS or _CONTROL.search(path):
        return None
    kept: list[str] = []
    for part in path.replace("\\", "/").split("/"):
        if part == "..":
            if not kept:
                return None
            kept.pop()
        elif part not in {"", "."}:
            kept.append(part)
    if len(kept) > MAX_PATH_PARTS:
        return None
    return "/" + "/".join(kept)


class _Found:
    """Collects what the strings of one call name."""

    def __init__(self) -> None:
        self._paths: set[str | None] = set()
        self._hosts: set[str] = set()
        self._domains: set[str] = set()
        self._path_chars = 0

    def take(self, key: str, value: str) -> None:
        """Look at one string under its nearest key."""
        self._domains.update(_domain(match[1]) for match in _ADDRESS.finditer(value))
        if _URL.match(value):
            self._hosts.add(_host(value))
        elif len(value) > MAX_PATH_CHARS:
            self._paths.update({None} if _PATH_KEY.search(key) else ())
        elif _looks_like_path(key, value):
            self._path_chars += len(value)
            if self._path_chars <= MAX_ALL_PATH_CHARS:
                self._paths.update(normalise_path(reading) for reading in _readings(value))

    def facts(self, *, incomplete: bool) -> Facts:
        """Return what was found."""
        sound = sorted(path for path in self._paths if path is not None)
        return Facts(
            common_path=_common(sound),
            path_prefixes=frozenset(prefix for path in sound for prefix in _prefixes(path)),
            path_escapes=None in self._paths,
            hosts=frozenset(self._hosts),
            mail_domains=frozenset(self._domains),
            incomplete=incomplete or self._path_chars > MAX_ALL_PATH_CHARS,
        )


def _strings(key: str, root: object) -> Iterator[tuple[str, str]]:
    """Every string in a JSON value with the nearest key; iterative, since depth is the caller's."""
    waiting = [(key, root)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping):
            waiting.extend((str(inner), item) for inner, item in value.items())
        elif isinstance(value, list | tuple):
            waiting.extend((name, item) for item in value)


def _looks_like_path(key: str, value: str) -> bool:
    if _PATH_KEY.search(key):
        return True
    return any(
        ("/" in reading or "\\" in reading or ".." in reading) and not re.search(r"\s", reading)
        for reading in _readings(value)
    )


def _readings(value: str) -> set[str]:
    """Return every way in which a tool might read a path: as written, decoded, normalised."""
    readings = {value}
    decoded = value
    for _ in range(_MAX_DECODINGS):
        decoded = unquote(decoded)
        readings.add(decoded)
    return readings | {unicodedata.normalize("NFKC", reading) for reading in readings}


def _prefixes(path: str) -> Iterator[str]:
    """Yield the path itself and each folder above it, without the root."""
    parts = path.split("/")[1:]
    yield from ("/" + "/".join(parts[:end]) for end in range(1, len(parts) + 1))


def _common(paths: list[str]) -> str:
    """Return the deepest path that holds them all (one holds itself); empty if there is none."""
    if not paths:
        return ""
    split = [path.split("/")[1:] for path in paths]
    first, last = min(split), max(split)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return "/" + "/".join(first[:shared])


def _host(url: str) -> str:
    """Return the host a URL names, lower-case; an unreadable URL is a host that no rule allows."""
    try:
        return _domain(urlsplit(url).hostname or "invalid")
    except ValueError:
        return "invalid"


def _domain(name: str) -> str:
    return unicodedata.normalize("NFKC", name).rstrip(".").casefold()
