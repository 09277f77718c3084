"""`make bench`: what the mesh costs on this machine, through the front door.

python -m tests.bench.mesh --against HEAD~3        is the working tree better than HEAD~3?
python -m tests.bench.mesh --against A --revision B
"""

from __future__ import annotations

import argparse
import json

from tests.bench import compare


def main() -> None:
    """Parses the options, measures, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="REVISION", default="HEAD", help="A of A against B")
    parser.add_argument("--revision", help="B; the working tree if not given")
    parser.add_argument(
        "--overlay", nargs="+", default=[], help="paths of the working tree that replace those of B"
    )
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one load")
    parser.add_argument("--all", action="store_true", help="show every metric")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan = compare.Plan(options.concurrent, options.rounds, options.seconds)
    sides = compare.Sides(options.against, options.revision, options.overlay)
    result = compare.run(sides, plan)
    print(json.dumps(result) if options.json else compare.render(result, all_metrics=options.all))


if __name__ == "__main__":
    main()
