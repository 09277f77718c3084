"""The benchmark of revocations still runs, and says what it saw."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.bench import revocation_tables
from tests.bench.figures import Result
from tests.bench.revocation import GROUPS, KINDS, TRIALS
from tests.bench.revocation_tables import KEY, MEANINGS, POLICY, STREAM, USER, USER_RUN
from tests.bench.revoking import Found, Seen, found, policies
from tests.bench.running import MeasuringError
from tests.bench.trees import REPOSITORY
from tests.waiting import PATIENCE

TIMEOUT_S: Final = 180.0 * PATIENCE
QUICK: Final = [KEY, USER_RUN]
LONG: Final = [kind for kind in KINDS if kind not in QUICK]


def seen(*answers: tuple[float, bool]) -> list[Seen]:
    """Tries of 0.25 s each, by when they were asked."""
    return [Seen(asked, asked + 0.25, worked) for asked, worked in answers]


def test_the_refusal_that_counts_is_the_one_after_which_nothing_works() -> None:
    tries = seen((1, True), (11, False), (12, True), (13, False), (14, False))
    assert found(tries, 10.0, 5.0) == Found(3.25, 2.0, 0)


def test_what_works_after_the_bound_is_late() -> None:
    tries = seen((1, True), (14.9, True), (15.1, True), (16, True), (17, False))
    assert found(tries, 10.0, 5.0) == Found(7.25, 6.0, 2)


def test_what_works_to_the_end_is_late_and_not_tried_again() -> None:
    tries = seen((1, True), (11, False), (16, True))
    assert found(tries, 10.0, 5.0) == Found(6.25, 6.0, 1)


def test_what_is_refused_before_the_answer_of_the_admin_was_in_no_time() -> None:
    assert found(seen((1, True), (9, False), (11, False)), 10.0, 5.0) == Found(0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("tries", "told"),
    [
        (seen((1, False), (11, False)), "did not work before"),
        (seen((11, True), (12, False)), "did not work before"),
        ([], "did not work before"),
    ],
    ids=["never", "only after", "nothing"],
)
def test_tries_that_show_nothing_are_no_measurement(tries: list[Seen], told: str) -> None:
    with pytest.raises(MeasuringError, match=told):
        found(tries, 10.0, 5.0)


def result(figures: dict[str, list[float]]) -> Result:
    effort = {"rounds": 2, "bounds": {KEY: 5.0, USER: 5.0}}
    facts = {"CPU": "one that counts, 2 cores"}
    return Result("abc1234", "2026-01-02T03:04:05+00:00", facts, effort, figures)


def test_each_kind_has_its_row_with_its_bound(tmp_path: Path) -> None:
    figures = {"key.refused_s": [1.0, 3.0], "key.worked_s": [0.9, 2.9], "machine.load": [0.5]}
    result(figures).save(tmp_path / "kept.json")
    text = revocation_tables.kept(tmp_path / "kept.json")[revocation_tables.BLOCK]
    assert "| its calls at the edge | 5.00 | 2.00 | 3.00 | 2.90 | 0 |" in text
    assert "2 trials each" in text
    assert "Every bound was kept." in text
    assert "not measured" in revocation_tables.kept(tmp_path / "none.json")["revocation"].lower()


def test_a_bound_that_was_not_kept_is_named() -> None:
    assert revocation_tables.exceeded(result({"key.worked_s": [4.9, 5.1]})) == [KEY]
    late = result({"user.late": [0.0, 1.0]})
    assert revocation_tables.exceeded(late) == [USER]
    assert "**Bounds that were not kept: user.**" in revocation_tables.verdict(late)
    # A refusal is seen a call later than it began.
    assert not revocation_tables.exceeded(result({"key.worked_s": [4.99], "key.refused_s": [5.01]}))


def test_every_kind_is_measured_once_and_shown() -> None:
    assert sorted(kind for group in GROUPS for kind in group) == sorted(KINDS)
    assert set(MEANINGS) == set(KINDS)
    assert KINDS[STREAM].at_once >= TRIALS, "one after another they would take ten minutes"


def test_a_team_calls_tools_by_grants_alone() -> None:
    [text] = policies().values()
    assert text.count("teams/granted") == 1


@pytest.mark.parametrize("kinds", [QUICK, pytest.param(LONG, marks=pytest.mark.storm)])
@pytest.mark.timeout(200)
async def test_one_trial_of_each_kind_keeps_its_bound(kinds: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.revocation", "--trials", "1", "--json"),
        *("--kinds", *kinds),
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
    assert process.returncode in {0, 1}, errors.decode()
    measured = Result(**json.loads(output))
    assert all(len(measured.values(f"{kind}.refused_s")) == 1 for kind in kinds)
    # How long a replica takes to load policies is a matter of the machine; no other bound is.
    exceeded = set(revocation_tables.exceeded(measured))
    assert exceeded <= {POLICY}, errors.decode()
    assert process.returncode == bool(exceeded)
