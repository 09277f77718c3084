"""Free ports for tests, safe when several test processes choose at once.

Finding a free port and using it are two moments, and another test process may choose the same port
between them. So a port stays claimed for as long as this process lives, by a UDP socket on the same
number: no service of Remit listens on UDP, and two processes cannot hold the same one.
"""

from __future__ import annotations

import os
import random
import socket

LOWEST_PORT = 20_000
# The ephemeral range of Linux starts at 32768; an outgoing connection may take any port of it.
HIGHEST_PORT = 32_767

_claims: dict[int, socket.socket] = {}


def free_ports(count: int) -> list[int]:
    """Return ``count`` distinct TCP ports on 127.0.0.1 that nothing listens on.

    No port is returned twice to this process, nor to another one that is still alive.

    Raises:
        RuntimeError: fewer than ``count`` ports are free.

    """
    candidates = list(range(LOWEST_PORT, HIGHEST_PORT + 1))
    random.Random(os.urandom(8)).shuffle(candidates)  # noqa: S311 - spreads, hides nothing
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if port not in _claims and _claim(port):
            found.append(port)
    if len(found) < count:
        message = f"only {len(found)} of {count} ports are free below {HIGHEST_PORT + 1}"
        raise RuntimeError(message)
    return found


def _claim(port: int) -> bool:
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind(("127.0.0.1", port))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return False
    _claims[port] = claim
    return True
