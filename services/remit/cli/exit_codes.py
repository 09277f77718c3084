"""What the exit code of `remit` means; scripts may rely on it.

== =======================================================================
0  done
1  it failed: the run, the call, or a verification
2  the command line is wrong
3  the mesh is not running, not healthy or cannot be reached
4  a mesh already runs on this state directory
5  a setting, a file or the state directory is wrong
6  not allowed: the key is missing, wrong, revoked or lacks the permission
130 interrupted by the user
== =======================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from remit.rpc.errors import RemitError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNHEALTHY: Final = 3
ALREADY_RUNNING: Final = 4
CONFIGURATION: Final = 5
NOT_ALLOWED: Final = 6
INTERRUPTED: Final = 130

_OF_REASON: Final = {
    "DEPENDENCY_UNAVAILABLE": UNHEALTHY,
    "CONFIGURATION_INVALID": CONFIGURATION,
    "DATA_CORRUPT": CONFIGURATION,
    "CREDENTIAL_MISSING": NOT_ALLOWED,
    "CREDENTIAL_INVALID": NOT_ALLOWED,
    "CREDENTIAL_REVOKED": NOT_ALLOWED,
    "PERMISSION_DENIED": NOT_ALLOWED,
    "CALLER_NOT_ALLOWED": NOT_ALLOWED,
}


def of_error(error: RemitError) -> int:
    """The exit code that tells this error."""
    return _OF_REASON.get(error.reason_name, FAILED)
