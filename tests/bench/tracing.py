"""What tracing costs: the same load without it, with no trace recorded, and with every one.

    python -m tests.bench.tracing --rounds 5 --seconds 6

Three meshes of the working tree stand all the time, and short loads go round them in turn, so that
a change in the machine's speed meets each of them. The collector takes spans and looks at none; it
is no part of the bill. CPU is that of all processes of the mesh, Envoy and PostgreSQL included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

from tests.bench.measure import load, patiently
from tests.bench.running import Mesh, mesh
from tests.bench.trees import Tree, tree
from tests.ports import free_ports

OFF: Final = "off"
VARIANTS: Final[Mapping[str, str]] = {OFF: "", "0 %": "0", "100 %": "1"}
"""The ratio of each."""
WARM_UP_S: Final = 4.0
METRICS: Final = ("cpu_ms_per_run", "runs_per_s", "p50_ms")


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """A server that takes every batch of spans unread."""

    class Everything(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            del handler_call_details
            return grpc.unary_unary_rpc_method_handler(_nothing)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Everything()])
    (port,) = free_ports(1)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _nothing(_request: Any, _context: Any) -> bytes:
    return b""


def options(endpoint: str, ratio: str) -> Sequence[str]:
    """Of `remit up`."""
    return ("--trace-endpoint", endpoint, "--trace-ratio", ratio) if ratio else ()


async def rounds(
    meshes: Mapping[str, Mesh], concurrency: int, count: int, seconds: float
) -> dict[str, list[Mapping[str, float]]]:
    """The figures of each round, by variant; the order changes from round to round."""
    for each in meshes.values():
        await patiently(load(8, WARM_UP_S), each)
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in meshes}
    order = list(meshes)
    for number in range(count):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            found[name].append(await patiently(load(concurrency, seconds), meshes[name]))
            print(f"round {number + 1}: {name}: {_line(found[name][-1])}", file=sys.stderr)
    return found


def _line(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{metric} {figures[metric]:.1f}" for metric in METRICS)


def render(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Medians, and the median of the ratios to the round's own measurement without tracing."""
    lines = ["| Tracing | CPU a run | ratio | Runs a second | ratio |", "| --- " * 5 + "|"]
    for name, figures in found.items():
        cpu, speed = ([each[metric] for each in figures] for metric in METRICS[:2])
        lines.append(
            f"| {name} | {statistics.median(cpu):.1f} ms | {_ratio(found, name, METRICS[0])}"
            f" | {statistics.median(speed):.1f} | {_ratio(found, name, METRICS[1])} |"
        )
    return "\n".join(lines)


def _ratio(found: Mapping[str, Sequence[Mapping[str, float]]], name: str, metric: str) -> str:
    pairs = zip(found[name], found[OFF], strict=True)
    shares = sorted(with_[metric] / without[metric] for with_, without in pairs)
    return f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})"


def measure(source: Tree, concurrency: int, count: int, seconds: float) -> str:
    """Starts the meshes, measures, stops them; returns the table."""
    with collector() as endpoint, contextlib.ExitStack() as stack:
        meshes = {
            name: stack.enter_context(mesh(source, options=options(endpoint, ratio)))
            for name, ratio in VARIANTS.items()
        }
        return render(asyncio.run(rounds(meshes, concurrency, count, seconds)))


def main() -> None:
    """Prints the table of docs/TELEMETRY.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    chosen = parser.parse_args()
    with tree() as source:
        print(measure(source, chosen.concurrency, chosen.rounds, chosen.seconds))


if __name__ == "__main__":
    main()
