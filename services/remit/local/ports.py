"""Whether every port is free, asked before anything starts."""

from __future__ import annotations

import errno
import socket

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.topology import Address, Topology
from remit.rpc.errors import RemitError, Violation


def check_ports(topology: Topology) -> None:
    """Binds and releases every port of the mesh.

    Raises:
        RemitError: CONFIGURATION_INVALID; a violation names each port that cannot be used, and the
            message names the first with what moves it.

    """
    faults = [
        Violation(setting, f"{address} {fault}")
        for setting, address in topology.listeners()
        if (fault := _fault(address))
    ]
    if not faults:
        return
    first = faults[0]
    others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
        f"{first.description}{others}; {_remedy(first.field)}",
        violations=faults,
    )


def _fault(address: Address) -> str:
    try:
        family, kind, *_, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)  # a bound socket that does not listen yet shows only here
    except OSError as error:
        return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
    return ""


def _remedy(setting: str) -> str:
    flag = "--edge-port" if setting.startswith("edge.") else "--port-base"
    return f"choose another with {flag}, or set {setting} in a file for --topology"
