"""`make bench`: what the mesh costs on this machine, through the front door.

python -m tests.bench.mesh                            measure the working tree, write the docs
python -m tests.bench.mesh --quick                    show that everything runs; write nothing
python -m tests.bench.mesh --against HEAD~3           is the working tree better than HEAD~3?
python -m tests.bench.mesh --against A --revision B   is B better than A?
python -m tests.bench.mesh --against HEAD --revision HEAD --overlay services/remit/effects
                                                      is this change alone better?
python -m tests.bench.mesh --against A --step "what"  the same, kept for the docs
python -m tests.bench.mesh --against A --whole        measure all of both in turn: A becomes
                                                      the baseline of the docs
python -m tests.bench.mesh --profile agent            where a service spends its time
python -m tests.bench.mesh --storage                  what a run stores; kept for the docs
python -m tests.bench.mesh --report                   write the docs again from the results
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys

from tests.bench import compare, profiling, report, storage
from tests.bench.figures import BASELINE, LATEST
from tests.bench.measure import QUICK, Effort, measure
from tests.bench.trees import tree


def main() -> None:
    """Parses the options and does one of the things above."""
    options = _options()
    if options.report:
        report.write()
    elif options.storage:
        _store(options)
    elif options.profile:
        profiling.profile(options.profile, options.revision, options.concurrent[-1])
    elif options.against and not options.whole:
        _compare(options)
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    """One tree, or two in turn."""
    with contextlib.ExitStack() as stack:
        trees = [stack.enter_context(tree(options.revision, options.overlay))]
        if options.against:
            trees.insert(0, stack.enter_context(tree(options.against)))
        effort = QUICK if options.quick else Effort()
        if options.rounds:
            effort = dataclasses.replace(effort, rounds=options.rounds)
        results = measure(trees, effort)
    print(report.as_text(results[-1]))
    if options.quick:
        return
    for result, path in zip(results[::-1], (LATEST, BASELINE), strict=False):
        result.save(path)
    report.write()


def _store(options: argparse.Namespace) -> None:
    """What a run stores."""
    with tree(options.revision, options.overlay) as measured:
        result = storage.measure(measured)
    print(storage.shown(result))
    storage.save(result)
    report.write()


def _compare(options: argparse.Namespace) -> None:
    """Whole runs on two trees in turn."""
    sides = compare.Sides(options.against, options.revision, options.overlay)
    plan = compare.Plan(options.concurrent, options.rounds or 8, options.seconds)
    result = compare.run(sides, plan)
    print(json.dumps(result) if options.json else compare.render(result, all_metrics=options.all))
    if options.step:
        report.record_step(report.summary(options.step, result))
        report.write()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="measure little, and write nothing")
    add("--report", action="store_true", help="measure nothing")
    add("--storage", action="store_true", help="measure what a run stores, and nothing else")
    add("--against", metavar="A", help="the revision before")
    add("--revision", metavar="B", help="the revision after; the working tree if not given")
    add("--overlay", nargs="+", default=[], help="paths of the working tree that replace B's")
    add("--whole", action="store_true", help="with --against: measure everything of both")
    add("--step", metavar="WHAT", help="with --against: keep the result under this name")
    add("--concurrent", type=int, nargs="+", default=[1, 32])
    add("--rounds", type=int, help="8 to compare runs, 7 to measure everything")
    add("--seconds", type=float, default=4.0, help="of one load")
    add("--all", action="store_true", help="show every metric")
    add("--json", action="store_true", help="show every round")
    add("--profile", metavar="AREA", choices=profiling.AREAS, help="a service, under load")
    options = parser.parse_args()
    if (options.step or options.whole) and not options.against:
        sys.exit("--step and --whole need --against")
    return options


if __name__ == "__main__":
    main()
