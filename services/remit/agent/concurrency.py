"""How many unfinished runs a user and an org may have at once, exact under races of replicas.

Policy says how many when a run is registered; here they are counted, in the transaction that
creates the run and under a lock of the org that every replica takes. Runs that clients started
count, whether they wait, run or are paused; what a run starts below itself does not, or a run could
not go on for its own sub-runs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from remit.agent.entries import Item, NewRun
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONCURRENCY_LIMITED
from remit.postgres import Connection
from remit.rpc.errors import QuotaViolation, RemitError

_LOCK: Final = 56
"""Class of the advisory locks, one for each org that has limited users or is limited."""
_COUNT: Final = """
SELECT org, subject, count(*) AS runs FROM runs
WHERE state < 3 AND parent IS NULL AND org = ANY($1::text[]) GROUP BY org, subject
"""


def opening(items: Sequence[Item]) -> str:
    """SQL that opens the transaction of a batch whose runs must be counted; empty for any other.

    The locks are had before anything is read, so that what is read is all that was committed.
    """
    keys = sorted({_key(org) for org in _limited_orgs(items)})
    locks = [f"SELECT pg_advisory_xact_lock({_LOCK}, {key})" for key in keys]
    return "; ".join(["BEGIN", *locks]) if locks else ""


async def refused_by_concurrency(
    connection: Connection, items: Sequence[Item]
) -> dict[int, RemitError]:
    """New runs that their user or org may not have besides its others, by identity of the item.

    They are taken in order: those before one count against it. Without limits nothing is asked.
    The connection is in the transaction that `opening` opened for a batch with these items.
    """
    orgs = _limited_orgs(items)
    if not orgs:
        return {}
    rows = await connection.fetch(_COUNT, orgs)
    unfinished: Counter[str] = Counter()
    for row in rows:
        unfinished[row["subject"]] += row["runs"]
        unfinished[row["org"]] += row["runs"]
    return dict(_over((item for item in _started(items) if item.org in orgs), unfinished))


def _started(items: Sequence[Item]) -> list[NewRun]:
    """The new runs that clients start."""
    return [item for item in items if isinstance(item, NewRun) and not item.run.parent]


def _limited_orgs(items: Sequence[Item]) -> list[str]:
    limited = (item for item in _started(items) if item.max_user_runs or item.max_org_runs)
    return sorted({item.org for item in limited})


def _key(org: str) -> int:
    """The org's advisory lock; orgs that share one by chance wait for each other, no more."""
    return int.from_bytes(hashlib.sha256(org.encode()).digest()[:4], "big", signed=True)


def _over(new: Iterable[NewRun], unfinished: Counter[str]) -> Iterable[tuple[int, RemitError]]:
    for item in new:
        limits = {item.run.subject: item.max_user_runs, item.org: item.max_org_runs}
        full = {whom: most for whom, most in limits.items() if most and unfinished[whom] >= most}
        if full:
            yield id(item), concurrency_limited(full)
        else:
            unfinished.update(limits.keys())


def concurrency_limited(full: dict[str, int]) -> RemitError:
    """CONCURRENCY_LIMITED by these limits, by whom they limit."""
    whom, most = next(iter(full.items()))
    return RemitError(
        ERROR_REASON_CONCURRENCY_LIMITED,
        f"{whom} may have {most} unfinished runs at once, and has",
        quota=[QuotaViolation(name, f"{limit} unfinished runs") for name, limit in full.items()],
    )
