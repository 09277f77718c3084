"""Whether every port is free, asked before anything starts."""

from __future__ import annotations

import errno
import socket

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.topology import Address, Topology
from remit.rpc.errors import RemitError


def check_ports(topology: Topology) -> None:
    """Binds and releases every port of the mesh.

    Raises:
        RemitError: CONFIGURATION_INVALID naming each port that cannot be used and what moves it.

    """
    faults = [
        f"{address} ({setting}) {fault}; {_remedy(setting)}"
        for setting, address in topology.listeners()
        if (fault := _fault(address))
    ]
    if faults:
        raise RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, ". ".join(faults))


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
