"""What the benchmark says is worth no more than its arithmetic and its rendering: both tested here.

Nothing is measured in these tests.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import compare, report, tables
from tests.bench.counters import Counters, Machine, Use, served
from tests.bench.figures import BASELINE, LATEST, Result, is_unlikely, ratio
from tests.bench.memory import rollup_kib
from tests.bench.native import by_family
from tests.bench.runs import speed
from tests.bench.stats import Spread, by_metric, chance_of_signs, quantile, ratios

FIGURES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20)


def result(figures: dict[str, list[float]], **facts: Any) -> Result:
    """A result of a measurement at 1 and 32 concurrent."""
    known: dict[str, Any] = {
        "tree": "abc1234",
        "measured": "2026-01-02T03:04:05+00:00",
        "machine": {"CPU": "one that counts, 2 cores"},
        "effort": {"rounds": 3, "concurrencies": [1, 32], "watchers": 64},
    }
    return Result(**known | facts, figures=figures)


# ------------------------------------------------------------------------------------ statistics


def test_quartiles_are_linear_between_neighbours() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 4)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_there_is_no_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="no value"):
        Spread.of([])


@given(FIGURES, st.floats(0, 1))
def test_a_quantile_lies_within_the_values(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = quantile(ordered, share)
    assert ordered[0] <= found <= ordered[-1] or math.isclose(found, ordered[-1])


@given(FIGURES)
def test_what_is_twice_as_much_in_each_round_is_twice_as_much(values: list[float]) -> None:
    assert ratios(values, [value * 2 for value in values]) == pytest.approx([2.0] * len(values))


def test_a_round_without_anything_before_says_nothing() -> None:
    assert ratios([0.0, 2.0], [5.0, 3.0]) == [1.5]


@pytest.mark.parametrize(
    ("values", "chance"),
    [
        ([0.9] * 5, 2 / 32),
        ([0.9] * 4 + [1.1], 12 / 32),
        ([0.9, 1.1], 1.0),
        ([1.0, 1.0], 1.0),
        ([], 1.0),
    ],
    ids=["five alike", "four of five", "one each", "no difference", "no round"],
)
def test_the_sign_test_is_exact(values: list[float], chance: float) -> None:
    assert chance_of_signs(values) == pytest.approx(chance)


def test_a_figure_that_a_round_lacks_was_zero_in_it() -> None:
    assert by_metric([{"a": 1.0}, {"b": 2.0}]) == {"a": [1.0, 0.0], "b": [0.0, 2.0]}


def test_throughput_leaves_out_how_a_load_begins_and_ends() -> None:
    # Two places, a run of 1 s each, ten times; the last two end late since others were waited for.
    ends = [(float(1 + number // 2), 1.0) for number in range(20)]
    found = speed([*ends, (15.0, 5.0), (20.0, 9.0)], concurrency=2)
    assert found["runs"] == 22
    assert found["runs_per_s"] == pytest.approx(2.0)
    assert found["p50_ms"] == pytest.approx(1000)


def test_throughput_of_too_few_runs_is_not_told() -> None:
    assert speed([(1.0, 1.0), (1.5, 1.0)], concurrency=2)["runs_per_s"] == 0.0


# ---------------------------------------------------------------------------------------- parsing


def test_calls_are_counted_without_health_checks() -> None:
    metrics = (
        "# HELP remit_rpc_requests_total RPCs served, by method and canonical code.\n"
        'remit_rpc_requests_total{code="OK",method="/remit.api.cost.v1.CostService/X"} 7.0\n'
        'remit_rpc_requests_total{code="ABORTED",method="/remit.api.cost.v1.CostService/X"} 2.0\n'
        'remit_rpc_requests_total{code="OK",method="/grpc.health.v1.Health/Check"} 90.0\n'
        'remit_rpc_requests_created{code="OK",method="/remit.api.cost.v1.CostService/X"} 1.7e+09\n'
    )
    assert served(metrics) == 9.0


def test_memory_is_read_as_the_kernel_writes_it() -> None:
    text = "55d0-7ffe ---p 00:00 0 [rollup]\nRss:     84720 kB\nPss:    49450 kB\nPss_Dirty: 9 kB\n"
    assert rollup_kib(text) == {"rss": 84720, "pss": 49450}


def test_samples_are_added_up_by_what_a_library_belongs_to() -> None:
    lines = [
        "    49.62%  libpython3.11.so.1.0",
        "  5.02%  libc.so.6",
        " 1.00% ld-linux-x86-64.so.2",
    ]
    found = by_family([*lines, "  16.74%  [kernel.kallsyms]", " 0.5%  libunheard.so"])
    assert found == {"python": 49.62, "libc": 6.02, "kernel": 16.74, "other": 0.5}
    assert set(found) <= set(tables.CODE)


def test_what_was_used_is_the_difference_of_two_moments() -> None:
    earlier = Counters(
        10.0, {"agent": Use(1.0, 0.5, 10)}, {"agent": 5.0}, {"agent": 3}, 7, Machine()
    )
    later = Counters(
        12.0,
        {"agent": Use(1.5, 0.75, 30), "envoy": Use(0.25)},
        {"agent": 9.0},
        {"agent": 4},
        9,
        Machine(busy_s=2.0, idle_s=1.0),
    )
    used = later.since(earlier)
    assert used.at_s == 2.0
    assert used.use == {"agent": Use(0.5, 0.25, 20), "envoy": Use(0.25)}
    assert (used.rpcs, used.commits) == ({"agent": 4.0}, {"agent": 1})
    assert used.flushes == 2
    assert used.machine == Machine(busy_s=2.0, idle_s=1.0)


# ---------------------------------------------------------------------------------------- results


def test_a_result_is_kept_and_read_again(tmp_path: Path) -> None:
    kept = result({"load_1.p50_ms": [1.23456, 2.0], "load_1.nothing": [0.0, 0.0]})
    kept.save(tmp_path / "kept.json")
    found = Result.load(tmp_path / "kept.json")
    assert found.figures == {"load_1.p50_ms": [1.235, 2.0]}
    assert (found.tree, found.effort) == (kept.tree, kept.effort)


def test_a_result_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing was measured"):
        Result.load(tmp_path / "latest.json")


def test_neighbours_are_compared_only_within_one_run_of_the_program() -> None:
    before, after = result({"x": [1.0, 10.0, 100.0]}), result({"x": [2.0, 20.0, 50.0]})
    assert ratio(before, after, "x") == Spread(2.0, 1.25, 2.0, 3)
    apart = result({"x": [2.0, 20.0, 50.0]}, measured="2026-02-02T00:00:00+00:00")
    assert ratio(before, apart, "x") == Spread(2.0, 2.0, 2.0, 1)
    assert ratio(before, result({}), "x") is None


def test_only_rounds_that_agree_are_marked() -> None:
    names = {"all": [1.0, 2.0, 4.0, 3.0, 5.0], "most": [1.0] * 5}
    before = result(names)
    after = result({"all": [0.9, 1.8, 3.9, 2.0, 4.0], "most": [0.9, 0.9, 0.9, 0.9, 1.1]})
    apart = result({"all": [0.5] * 5}, measured="2026-02-02T00:00:00+00:00")
    assert is_unlikely(before, after, "all")
    assert not is_unlikely(before, after, "most")
    assert not is_unlikely(before, apart, "all")
    assert not is_unlikely(before, after, "missing")
    assert tables._change(before, after, "all", "")[-1].startswith("**0.90**")
    assert not tables._change(before, after, "most", "")[-1].startswith("*")


# ---------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.6, "12,346"),
        (99.94, "99.9"),
        (1.0, "1.00"),
        (0.0123, "0.012"),
        (0.0, "0"),
        (-3.2, "-3.20"),
    ],
)
def test_a_number_has_about_three_digits(value: float, text: str) -> None:
    assert tables.number(value) == text


def test_calls_are_compared_with_the_direct_one_round_by_round() -> None:
    found = tables.calls(
        result(
            {
                "call.health_direct.p50_ms": [1.0, 2.0, 4.0],
                "call.health_envoy.p50_ms": [1.5, 3.0, 6.0],
                "call.health_envoy.cpu_ms.envoy": [0.2, 0.2, 0.2],
            }
        )
    )
    rows = [line for line in found.splitlines() if "through Envoy" in line]
    assert len(rows) == 1
    assert "| 3.00 (2.25 to 4.50) | 1.50 |" in rows[0]
    assert rows[0].endswith("| 0.20 | envoy 0.20 |")


def test_every_row_has_the_cells_of_its_head() -> None:
    text = report.as_text(Result.load(LATEST))
    cells = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            cells = 0
        elif cells:
            assert line.count(" | ") == cells, line
        else:
            cells = line.count(" | ")


# -------------------------------------------------------------------------------------- document


def test_prose_stays_and_figures_are_replaced() -> None:
    document = "before\n<!-- bench: runs -->\nold\n<!-- end of bench -->\nafter\n"
    found = report.replaced(document, {"runs": "new \\1"})
    assert found == "before\n<!-- bench: runs -->\nnew \\1\n<!-- end of bench -->\nafter\n"


@pytest.mark.parametrize("blocks", [{}, {"runs": "", "calls": ""}], ids=["too few", "too many"])
def test_markers_and_figures_must_agree(blocks: dict[str, str]) -> None:
    document = "<!-- bench: runs -->\n<!-- end of bench -->\n"
    with pytest.raises(ValueError, match="markers"):
        report.replaced(document, blocks)


def test_the_document_shows_the_results_that_are_kept() -> None:
    document = report.DOCUMENT.read_text(encoding="utf-8")
    rendered = report.rendered(document, Result.load(BASELINE), Result.load(LATEST))
    assert document == rendered, "run `python -m tests.bench.mesh --report`"


# ----------------------------------------------------------------------------------------- steps


def compared() -> dict[str, Any]:
    """Five rounds in which a run became a fifth cheaper."""
    before = {name: 10.0 for name, _ in report.STEP_METRICS}
    after = before | {"cpu_ms_per_run": 8.0}
    return {"a": "aaa", "b": "bbb", "loads": {"32": ([before] * 5, [after] * 5)}}


def test_a_change_is_kept_under_its_name_and_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    report.record_step(report.summary("fewer commits", compared()), path)
    report.record_step(report.summary("fewer commits", compared()), path)
    (step,) = report.load_steps(path)
    assert step["loads"]["32"]["cpu_ms_per_run"] == {
        "a": 10.0,
        "b": 8.0,
        "ratio": [0.8, 0.8, 0.8],
        "chance": 0.0625,
        "rounds": 5,
    }
    assert json.loads(path.read_text()) == [step]


def test_only_what_chance_would_not_do_is_marked() -> None:
    table = report.steps([report.summary("fewer commits", compared())])
    row = table.splitlines()[-1]
    assert row.startswith("| fewer commits | `aaa` to `bbb` | 32 | **0.80** (0.80 to 0.80) |")
    assert "**1.00**" not in row


def test_a_comparison_is_shown_with_both_medians_and_the_ratio() -> None:
    text = compare.render(compared())
    (line,) = [line for line in text.splitlines() if "cpu_ms_per_run" in line]
    assert " ".join(line.split()) == "cpu_ms_per_run 10.00 8.00 * 0.800 (0.800 to 0.800)"
