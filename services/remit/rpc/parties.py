"""The parties of the mesh by name, as tokens, certificates and messages say them."""

from __future__ import annotations

from typing import Final

from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller

_PREFIX: Final = "CALLER_"


def caller_label(caller: Caller.ValueType) -> str:
    """The name of a party, such as `agent` or `public`."""
    return Caller.Name(caller).removeprefix(_PREFIX).lower()


def caller_of_label(label: str) -> Caller.ValueType:
    """The party of a name. Raises ValueError for an unknown one."""
    caller = Caller.Value(_PREFIX + label.upper())
    if caller == options_pb2.CALLER_UNSPECIFIED:
        message = "no such party"
        raise ValueError(message)
    return caller
