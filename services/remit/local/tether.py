"""Starts a program that cannot outlive the process that started it.

    python -I -S tether.py SIGNAL PARENT_PID UID GID PROGRAM [ARGUMENT...]

The kernel sends SIGNAL to the program when its parent dies, however the parent dies (prctl(2),
PR_SET_PDEATHSIG). The setting survives exec but not a change of user, so the user changes first;
UID -1 keeps it. It runs as a script, without the package, because it must cost nothing. Only Linux
has this; elsewhere the program just starts.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Changes user, ties itself to its parent and becomes the program."""
    signal_number, parent, uid, gid = (int(text) for text in arguments[:4])
    program = arguments[4:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent:
            sys.exit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606 - becoming the program is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
