"""The rules of a service for each remit: its settings, tightened by what policy wants."""

from __future__ import annotations

import functools
from typing import Final

from remit.api.errors.v1 import error_reason_pb2
from remit.guardrails.rules import Rules
from remit.guardrails.wanted import Wanted
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit

MOST_KNOWN: Final = 256
"""Claims whose rules are kept at most. There are about as many as different sets of policies that
apply to somebody."""


class ServiceRules:
    """Rules by what the remit of a call says."""

    def __init__(self, service: str, settings: Rules) -> None:
        self.settings = settings
        """Those that hold whatever policy wants."""
        self._service = service
        self._by_claim = functools.lru_cache(MOST_KNOWN)(self._tightened)

    def of(self, remit: Remit) -> Rules:
        """The rules for a call with this remit. Raises as `of_claim`."""
        return self.of_claim(remit.guardrails)

    def of_claim(self, claim: str) -> Rules:
        """The rules for what a remit says of guardrails.

        Raises REMIT_INVALID where it is not understood: policy is of a newer version, and wants
        what this service could not do.
        """
        return self._by_claim(claim) if claim else self.settings

    def _tightened(self, claim: str) -> Rules:
        return self.settings.tightened(wanted_of(claim).rules(self._service))


def wanted_of(claim: str) -> Wanted:
    """What a remit says of guardrails. Raises REMIT_INVALID where it is not understood."""
    try:
        return Wanted.from_claim(claim)
    except ValueError as error:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_REMIT_INVALID, f"the remit wants {error}"
        ) from error
