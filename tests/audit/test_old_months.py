"""What readers get of months that were dropped: said in every list, whole in every export."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remit.api.audit.v1 import audit_query_service_pb2 as query_pb2
from remit.audit.archive_file import label, month_of
from remit.audit.archive_run import ArchivePlan
from remit.audit.archived_months import next_month
from remit.audit.export import write_export
from remit.audit.key_files import LOG_PUBLIC_KEY
from remit.audit.operating import archived
from remit.audit.settings import AuditSettings
from remit.audit.verifier import verify_export
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.audit.events import ALICE, RUN, claim_name
from tests.audit.old_months import make_old, month_ago
from tests.audit.test_run_events import run_events
from tests.audit.test_service import Audit, audit, intent, serving, token
from tests.monitoring.values import gained
from tests.waiting import eventually

assert audit  # the fixture of a running service

OLD = month_ago(3)


def with_folders(settings: AuditSettings, place: Path, **changes: Any) -> AuditSettings:
    changes = {
        "tiles_dir": place / "tiles",
        "archive_dir": place / "archive",
        "tiles_interval_ms": 10,
        "archiver_dsn": settings.dsn.replace("remit_audit@", "remit_audit_archiver@"),
    } | changes
    return settings.model_copy(update=changes)


async def age(settings: AuditSettings, stop: int) -> None:
    """The first leaves of the log are of an old month."""
    async with Database.open(settings.dsn, pool_size=1) as database:
        await make_old(database, OLD, 0, stop)


@contextlib.asynccontextmanager
async def dropped(audit: Audit, place: Path, count: int) -> AsyncIterator[Audit]:
    """A replica with tiles, over a log whose first events were dropped with their month."""
    settings = with_folders(audit.settings, place)
    for start in range(0, count, 150):
        stop = min(start + 150, count)
        await audit.append(*(intent(f"e-{n}") for n in range(start, stop)))
    await age(settings, count)
    async with serving(settings) as replica:
        plan = ArchivePlan(month_ago(2), drops=True)

        async def done() -> bool:
            with contextlib.suppress(RemitError):  # the tiles are not there yet
                return bool(await archived(settings, plan, clock=SystemClock(), ids=SystemIds()))
            return False

        await eventually(done)
        yield replica


def months_of(answer: Any) -> list[tuple[str, int, int, int]]:
    return [(m.month, m.first_index, m.last_index, m.events) for m in answer.archived_months]


async def test_a_list_says_what_it_cannot_show(audit: Audit, tmp_path: Path) -> None:
    async with dropped(audit, tmp_path, 5) as replica:
        await replica.append(intent("new-1"), intent("new-2"))
        told = [(label(OLD), 0, 4, 5)]
        answer = await replica.list_events(run=RUN)
        assert [e.event.event_id for e in answer.events] == ["new-2", "new-1"]
        assert months_of(answer) == told
        page = await replica.list_events(run=RUN, page_size=1)
        assert (len(page.events), months_of(page)) == (1, []), "not looked at yet"
        token = page.next_page_token
        assert months_of(await replica.list_events(run=RUN, page_token=token)) == told
        later = datetime.combine(next_month(OLD), datetime.min.time(), UTC) + timedelta(days=2)
        assert months_of(await replica.list_events(start_time=later)) == []
        early = later - timedelta(days=20)
        assert months_of(await replica.list_events(start_time=early)) == told
        assert months_of(await replica.list_events(claim=claim_name())) == told


async def test_a_run_made_later_has_nothing_there(audit: Audit, tmp_path: Path) -> None:
    async with dropped(audit, tmp_path, 2) as replica:
        run = f"runs/{SystemIds().uuid7()}"
        assert months_of(await replica.list_events(run=run)) == []
        of_run = await run_events(replica, token(ALICE, run=""))
        assert [m[0] for m in months_of(of_run)] == [label(OLD)]
        assert not of_run.events


async def test_a_tail_says_it_where_it_passes(audit: Audit, tmp_path: Path) -> None:
    async with dropped(audit, tmp_path, 5) as replica:
        await replica.append(intent("new-1"))
        request = query_pb2.TailEventsRequest(run=RUN, until_now=True)
        with replica.query() as stub:
            pieces = [piece async for piece in stub.TailEvents(request)]
        assert [m[0] for piece in pieces for m in months_of(piece)] == [label(OLD)]
        assert [e.event.event_id for piece in pieces for e in piece.events] == ["new-1"]
        request.after_sequence = 5
        with replica.query() as stub:
            pieces = [piece async for piece in stub.TailEvents(request)]
        assert not [m for piece in pieces for m in months_of(piece)]


async def test_an_export_is_whole_from_the_tiles(audit: Audit, tmp_path: Path) -> None:
    async with dropped(audit, tmp_path, 300) as replica:
        await replica.append(intent("new-1"))
        path = tmp_path / "log.export"

        async def stream() -> AsyncIterator[Any]:
            for message in await replica.export():
                yield message

        await write_export(path, stream())
        key = (replica.settings.keys_dir / LOG_PUBLIC_KEY).read_text()
        report = verify_export(path, key)
        assert report.tree_size == (await replica.ask("GetCheckpoint")).checkpoint.tree_size
        assert report.tree_size > 302
        # A leaf that somebody changed in the tiles is not handed out.
        bundle = tmp_path / "tiles" / "tile" / "entries" / "000"
        bundle.write_bytes(bundle.read_bytes().replace(b"acme", b"ecma", 1))
        with pytest.raises(RemitError, match="not in the tiles as it was logged"):
            await replica.export()
    async with serving(audit.settings) as without:
        with pytest.raises(RemitError) as raised:
            await without.export()
        assert raised.value.reason_name == "EVENTS_ARCHIVED"


async def test_a_service_with_a_retention_archives_by_itself(audit: Audit, tmp_path: Path) -> None:
    settings = with_folders(audit.settings, tmp_path, retention_months=2, archive_check_s=0.05)
    await audit.append(*(intent(f"e-{n}") for n in range(5)))
    await age(settings, 5)
    async with serving(settings) as replica:

        async def gone() -> bool:
            return bool((await replica.list_events()).archived_months)

        await eventually(gone)
        entries = (await replica.list_events(reader="orgs/operator/users/audit")).events
        assert "audit.archive" in [entry.event.action for entry in entries]
        [entry] = [e.event for e in entries if e.event.action == "audit.archive"]
        assert entry.event_id.startswith(f"archive-{label(OLD)}-")
        assert month_of(entry.event_id[8:15]) == OLD


async def test_who_cannot_archive_says_so_until_it_can(audit: Audit, tmp_path: Path) -> None:
    settings = with_folders(audit.settings, tmp_path, retention_months=2, archive_check_s=0.05)
    await audit.append(*(intent(f"e-{n}") for n in range(5)))
    await age(settings, 5)
    (tmp_path / "archive").write_text("no folder")
    failing = gained("remit_audit_archive_failing")
    async with serving(settings) as replica:
        await eventually(lambda: failing() == 1)
        assert failing() == 1
        assert len((await replica.list_events(run=RUN)).events) == 5, "all is there"
        (tmp_path / "archive").unlink()

        async def gone() -> bool:
            return bool((await replica.list_events()).archived_months)

        await eventually(gone)
        await eventually(lambda: failing() == 0)


async def test_nothing_is_dropped_while_the_log_was_rolled_back(
    audit: Audit, tmp_path: Path
) -> None:
    settings = with_folders(audit.settings, tmp_path)
    await audit.append(*(intent(f"e-{n}") for n in range(5)))
    await audit.ask("GetCheckpoint", min_tree_size=5)
    from tests.audit.test_reconciliation import restored  # noqa: PLC0415 - used once

    await restored(settings, 3)
    plan = ArchivePlan(month_ago(2), drops=True)
    with pytest.raises(RemitError) as raised:
        await archived(settings, plan, clock=SystemClock(), ids=SystemIds())
    assert raised.value.reason_name == "LOG_ROLLED_BACK"
