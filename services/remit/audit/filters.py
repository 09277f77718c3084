"""Which events are wanted, and the statements that find them without walking the whole log.

A statement walks one index, that of the filter which leaves least (a claim before a run, a run
before a user, and so on down to the org), and looks at no more than a bounded number of its entries
for the other filters. Where that bound comes first, the page is a short one and its token goes on
behind what was looked at. So no mixture of filters makes one call long, however rare its events.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

_OFTEN: Final = {
    "kind": ("INTENT", "OUTCOME"),
    "outcome": ("", "SUCCEEDED"),
    "action": ("tools.call", "models.generate"),
}
"""What nearly every effect has: found soon without an index, and left out of the partial ones."""
_DIGEST_HEX: Final = 16
_SHORT_BYTES: Final = 8
_SHORT: Final = f"substring(subject_pseudonym FOR {_SHORT_BYTES})"
"""An index holds a quarter of the pseudonym, which tells users apart just as well."""


@dataclass(frozen=True)
class EventFilter:
    """Which events are wanted. Empty and None leave a field open; `end_time` is exclusive.

    `kind` and `outcome` are words as leaves have them.
    """

    org: str
    run: str = ""
    claim: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    subject_pseudonym: bytes = b""
    action: str = ""
    outcome: str = ""
    kind: str = ""

    def digest(self) -> str:
        """Return what binds a page token to these filters."""
        stated = [self.org, self.run, self.claim, str(self.start_time), str(self.end_time)]
        stated += [self.subject_pseudonym.hex(), self.action, self.outcome, self.kind]
        return hashlib.sha256("\x00".join(stated).encode()).hexdigest()[:_DIGEST_HEX]


@dataclass
class Statement:
    """SQL and its arguments."""

    text: str = ""
    arguments: list[object] = field(default_factory=list)

    def put(self, value: object) -> str:
        """Take up an argument and return its placeholder."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"


@dataclass(frozen=True)
class Walk:
    """Which events are looked at: from an index on, and `most` entries of the index at most."""

    start_index: int
    most: int
    is_backward: bool = True
    """Newest first: `start_index` itself is left out then, and included otherwise."""
    stop_index: int = 2**63 - 1
    """Of a walk forward, which ends before it."""

    def _order(self, index: _Index, short: str) -> str:
        """Order as the index does, so that nothing is sorted."""
        way = "DESC" if self.is_backward else "ASC"
        columns = [short if column == _SHORT else column for column in index.columns]
        return ", ".join(f"{column} {way}" for column in (*columns, "leaf_index"))

    def found(self, wanted: EventFilter, limit: int) -> Statement:
        """Make the statement of the events that are wanted among those looked at."""
        statement = Statement()
        index = _index(wanted)
        looked_at = self._looked_at(statement, index)
        rest = [text.format(statement.put(value)) for text, value in _conditions(wanted)]
        statement.text = (
            "SELECT leaf_index, append_time, subject_pseudonym, leaf, payload"  # noqa: S608 - texts of this module
            f" FROM (SELECT *, {_SHORT} AS short {looked_at} LIMIT {statement.put(self.most)})"
            f" AS walked WHERE {' AND '.join(rest)}"
            f" ORDER BY {self._order(index, short='short')} LIMIT {statement.put(limit)}"
        )
        return statement

    def last(self, wanted: EventFilter) -> Statement:
        """Make the statement of the last event looked at, which has a row if `most` are."""
        statement = Statement()
        looked_at = self._looked_at(statement, _index(wanted))
        offset = statement.put(self.most - 1)
        statement.text = f"SELECT leaf_index, append_time {looked_at} OFFSET {offset} LIMIT 1"
        return statement

    def _looked_at(self, statement: Statement, index: _Index) -> str:
        """State the walk as a range of its index, in the order of the index.

        With `org = $1 ORDER BY leaf_index` PostgreSQL may walk the log's own key instead, past any
        number of events of others.
        """
        columns = (*index.columns, "leaf_index")
        least, most = self.start_index, self.stop_index
        if self.is_backward:
            least, most = 0, self.start_index
        ends = []
        for side, bound in ((">=", least), ("<", most)):
            values = ", ".join(map(statement.put, (*index.arguments, bound)))
            ends.append(f"({', '.join(columns)}) {side} ({values})")
        order = self._order(index, short=_SHORT)
        return f"FROM events WHERE {' AND '.join(ends)} AND {index.only} ORDER BY {order}"


@dataclass(frozen=True)
class _Index:
    """An index of events that ends with the place in the log, and where it is walked."""

    columns: tuple[str, ...]
    arguments: tuple[object, ...]
    only: str = "true"
    """What shows that a partial index holds all that is asked for."""


def _index(wanted: EventFilter) -> _Index:
    """Return the index of the filter that leaves least."""
    short = (wanted.subject_pseudonym[:_SHORT_BYTES],)
    if wanted.claim:
        return _Index(("claim",), (wanted.claim,), "claim <> ''")
    if wanted.run:
        return _Index(("run",), (wanted.run,), "run <> ''")
    if wanted.subject_pseudonym:
        return _Index((_SHORT,), short)
    for column in ("outcome", "kind", "action"):
        value, often = getattr(wanted, column), _OFTEN[column]
        if value and value not in often:
            return _Index(("org", column), (wanted.org, value), f"{column} NOT IN {often}")
    return _Index(("org",), (wanted.org,))


def _conditions(wanted: EventFilter) -> list[tuple[str, object]]:
    """Return every filter that is set, as a condition and its argument."""
    candidates: tuple[tuple[str, object], ...] = (
        ("org = {0}", wanted.org),
        ("run = {0}", wanted.run),
        ("claim = {0}", wanted.claim),
        ("subject_pseudonym = {0}", wanted.subject_pseudonym),
        ("action = {0}", wanted.action),
        ("outcome = {0}", wanted.outcome),
        ("kind = {0}", wanted.kind),
        ("event_time >= {0}", wanted.start_time),
        ("event_time < {0}", wanted.end_time),
    )
    return [(text, value) for text, value in candidates if value]
