"""What operators watch of the log: what is appended, how large it is, and that it is signed.

Appends are each replica's own. The sizes are those of the one log: take the maximum over replicas.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Final

from prometheus_client import Counter, Gauge

from remit.api.audit.v1 import event_pb2
from remit.rpc.errors import RemitError

APPENDS: Final = Counter(
    "remit_audit_appends_total",
    "Events given to the log, by kind and result: OK or the reason why it was not appended.",
    ["kind", "result"],
)
TREE_SIZE: Final = Gauge(
    "remit_audit_tree_size", "Leaves of the log at the last look; the same on each replica."
)
CHECKPOINT_SIZE: Final = Gauge(
    "remit_audit_checkpoint_size",
    "Leaves that the newest signed checkpoint covers; the same on each replica.",
)
CHECKED_TIME: Final = Gauge(
    "remit_audit_checkpoint_timestamp_seconds",
    "Unix time at which this replica last saw that a signed checkpoint covers the whole log.",
)
TILES_SIZE: Final = Gauge(
    "remit_audit_tiles_size",
    "Leaves that this replica last saw in the tiles' folder; 0 where no folder is set.",
)
TILES_FAILURES: Final = Counter(
    "remit_audit_tiles_failures_total",
    "Rounds of writing tiles that failed, by reason: that of the log, or the disk's errno.",
    ["reason"],
)

ARCHIVE_FAILING: Final = Gauge(
    "remit_audit_archive_failing",
    "1 while the last round in which this replica archived or dropped old months failed; 0 where it"
    " keeps all.",
)
ROLLED_BACK: Final = Gauge(
    "remit_audit_rolled_back",
    "1 while this replica refuses to append because the log does not extend what it had signed.",
)

EDGE_ENTRIES: Final = Counter(
    "remit_edge_log_entries_total",
    "Calls refused by the gateway itself of which the edge's access log told this replica. What"
    " Envoy counts as written and no replica counts here is on its way, or lost.",
)


def count_appends(events: Sequence[event_pb2.Event], results: Sequence[int | RemitError]) -> None:
    """Counts a batch of events."""
    counts = collections.Counter(
        (event.kind, result.reason_name if isinstance(result, RemitError) else "OK")
        for event, result in zip(events, results, strict=True)
    )
    for (kind, result), count in counts.items():
        name = event_pb2.EventKind.Name(kind).removeprefix("EVENT_KIND_")
        APPENDS.labels(name, result).inc(count)


def note_checkpoint(tree_size: int) -> None:
    """Notes that a signed checkpoint covers the whole log, which has so many leaves."""
    CHECKPOINT_SIZE.set(tree_size)
    CHECKED_TIME.set_to_current_time()
