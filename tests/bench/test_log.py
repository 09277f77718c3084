"""The benchmark of the log still runs, and its tables say what it measured."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.bench import log_tables, log_ways
from tests.bench.figures import Result
from tests.bench.ledger_side import CORE, GRPC
from tests.bench.log import WAYS, Plan
from tests.bench.log_files import EXPORT, TILES, at_rest, verified
from tests.bench.pairs import measure
from tests.bench.payers import USERS, payers
from tests.bench.running import MeasuringError
from tests.bench.trees import REPOSITORY
from tests.conftest import PostgresCluster

TIMEOUT_S = 540.0
ENTRIES = 1_100


def result(figures: dict[str, list[float]], **effort: object) -> Result:
    plan: dict[str, object] = {"rounds": 2, "concurrencies": [256], "entries": 100_000}
    return Result("abc1234", "2026-01-02T03:04:05+00:00", {}, plan | effort, figures)


async def dsns(postgres: PostgresCluster) -> tuple[str, str]:
    audit, keys = await postgres.fresh("audit"), await postgres.fresh("audit_keys")
    return postgres.dsn(audit, "remit_audit"), postgres.dsn(keys, "remit_audit_keys")


async def test_every_way_to_the_store_appends(postgres: PostgresCluster, tmp_path: Path) -> None:
    audit, keys = await dsns(postgres)
    async with log_ways.logs(keys, tmp_path) as made, log_ways.store_ways(audit, made) as ways:
        look = log_ways.look_at(postgres.pid)
        found = {
            name: await measure(ways[name], payers(USERS), 4, 0.01, look) for name in WAYS[CORE]
        }
    assert all(each["pairs_per_s"] > 0 for each in found.values())
    assert not any(each["failed"] for each in found.values())
    assert found["each"]["operations_per_commit"] == 1.0
    assert found["batched"]["operations_per_commit"] > 1.0


async def test_a_log_at_rest_is_verified_and_what_was_changed_is_not_measured(
    postgres: PostgresCluster, tmp_path: Path
) -> None:
    audit, keys = await dsns(postgres)
    async with log_ways.logs(keys, tmp_path) as made:
        rest = await at_rest(audit, made, ENTRIES, tmp_path)
    kept = {name for name in rest.bytes_per_entry if name.startswith("database.")}
    assert {"database.events", "database.leaves", "database.leaves_event_id_key"} <= kept, kept
    assert rest.bytes_per_entry[EXPORT] > rest.bytes_per_entry[TILES] > 100
    for what in (EXPORT, TILES):
        found = await verified(rest, what)
        assert found["alone_entries_per_s"] > found["entries_per_s"] > 0
        assert found["seconds"] > 0
    text = (tmp_path / EXPORT).read_bytes()
    (tmp_path / EXPORT).write_bytes(text.replace(b'"leaf_index":7,', b'"leaf_index":8,'))
    with pytest.raises(MeasuringError, match="was not verified"):
        await verified(rest, EXPORT)


def test_the_aim_is_held_against_the_neighbours_of_each_round() -> None:
    rates = {"core.256.each": [100.0, 200.0], "core.256.batched": [1000.0, 2200.0]}
    rates |= {"grpc.256.each": [100.0, 100.0], "grpc.256.gate": [400.0, 600.0]}
    found = result({f"{name}.appends_per_s": values for name, values in rates.items()})
    assert "10.5 (10.2 to 10.8), the aim" in log_tables.verdict(found, CORE)
    assert "5.00 (4.50 to 5.50), **below the aim of 10**" in log_tables.verdict(found, GRPC)
    found.figures["grpc.256.each.failed"] = [1.0, 2.0]
    assert "3 effects missed the deadline" in log_tables.verdict(found, GRPC)


def test_cpu_is_told_of_an_append_and_not_of_a_pair() -> None:
    figures = {"core.256.batched.appends_per_s": [10.0], "core.256.batched.cpu_us.log": [300.0]}
    (row,) = log_tables.level(result(figures), CORE).splitlines()[2:]
    assert "| 150 |" in row


@pytest.mark.parametrize(("seconds", "told"), [(9.9, "is the aim"), (10.1, "is **not the aim**")])
def test_the_slowest_verification_decides(seconds: float, told: str) -> None:
    slow = {"verify.export.seconds": [1.0, seconds], "verify.tiles.seconds": [2.0, 2.0]}
    assert told in log_tables.verified_in_time(result(slow))


def test_bytes_are_told_by_relation_and_in_all() -> None:
    sizes = {"database.events": 400.0, "database.leaves": 100.0, EXPORT: 900.0, TILES: 600.0}
    rows = log_tables.size(result({f"bytes.{name}": [size] for name, size in sizes.items()}))
    assert "| **the database** | **500** |" in rows
    assert "| `events` | 400 |" in rows


def test_a_log_that_was_not_measured_is_said_to_be_none(tmp_path: Path) -> None:
    found = log_tables.kept(tmp_path / "log.json")
    assert set(found.values()) == {"Not measured on a machine of its own yet."}
    figures = {f"bytes.{name}": [1.0] for name in ("database.events", EXPORT, TILES)}
    figures["machine.mloops_per_s"] = [1.0]
    result(figures).save(tmp_path / "log.json")
    assert log_tables.kept(tmp_path / "log.json").keys() == found.keys()


def test_only_a_whole_measurement_is_written() -> None:
    assert Plan().is_whole
    assert Plan(rounds=9).is_whole
    assert not Plan(entries=0).is_whole


@pytest.mark.storm
@pytest.mark.timeout(TIMEOUT_S + 30)
async def test_a_quick_round_measures_every_way() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.log", "--quick"),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        process.terminate()
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode()
    for ways in log_tables.MEANINGS.values():
        for meaning in ways.values():
            assert meaning in output.decode()
