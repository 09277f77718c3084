"""Profiles one service from inside: Python imports this file at its start if it is on the path.

`tests/bench/profiling.py` puts it there and names the service and the folder. The product knows
nothing of it. SIGUSR1 begins a profile and SIGUSR2 ends and writes it. Its clock is the CPU time of
the main thread, so what waits is not in it.
"""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

AREA = os.environ.get("PYTHON_BENCH_PROFILE_AREA", "")
INTERVAL_S = 0.0005


def _is_service() -> bool:
    return bool(AREA) and sys.orig_argv[-2:] == ["serve", AREA]


def _prepare() -> None:
    from pyinstrument import Profiler  # noqa: PLC0415 - in the one process that is profiled
    from pyinstrument.renderers import ConsoleRenderer, HTMLRenderer  # noqa: PLC0415
    from pyinstrument.stack_sampler import get_stack_sampler  # noqa: PLC0415

    folder = Path(os.environ["PYTHON_BENCH_PROFILE_FOLDER"])
    get_stack_sampler().timer_func = time.thread_time
    profiler = Profiler(interval=INTERVAL_S, async_mode="disabled")

    def begin(_number: int, _frame: FrameType | None) -> None:
        # From the loop itself: native code is booked on the frame in which the profile began.
        asyncio.get_running_loop().call_soon_threadsafe(profiler.start)

    def end(_number: int, _frame: FrameType | None) -> None:
        session = profiler.stop()
        (folder / "tree.txt").write_text(ConsoleRenderer(show_all=True).render(session))
        root = session.root_frame()
        (folder / "functions.txt").write_text(_functions(root) if root else "nothing ran")
        (folder / "profile.html").write_text(HTMLRenderer(show_all=True).render(session))
        (folder / "done").touch()

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)


def _functions(root: Any) -> str:
    """Functions by the CPU time that they took themselves, in % of the whole, most first.

    A second column has the time with all that they called; a recursion is counted once.
    """
    own, total = Counter[str](), Counter[str]()

    def visit(frame: Any, above: frozenset[str]) -> None:
        name = f"{frame.function}  {frame.file_path_short}:{frame.line_no}"
        below = [child for child in frame.children if not child.is_synthetic]
        own[name] += frame.time - sum(child.time for child in below)
        if name not in above:
            total[name] += frame.time
        for child in below:
            visit(child, above | {name})

    visit(root, frozenset())
    lines = [
        f"{100 * time_s / root.time:6.2f} {100 * total[name] / root.time:6.2f}  {name}"
        for name, time_s in own.most_common()
    ]
    return "\n".join(["own %  with what it calls %", *lines])


if _is_service():
    _prepare()
