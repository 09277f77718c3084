"""A worker's time with a run: from the grant of its lease to the run's end or the lease's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from remit.agent.conversation import Offer
from remit.agent.definitions import AgentDefinition
from remit.agent.history import Exchange
from remit.agent.journal import Progress
from remit.agent.leases import Held
from remit.agent.run_remit import IssuedRemit
from remit.agent.sealing import KeyRef

STOP_SHARE: Final = 0.8
"""Share of a lease after which its holder stops, by its own monotonic clock."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the creator of a run already knows, so that its worker need not read it back."""

    progress: Progress
    definition: AgentDefinition
    remit: IssuedRemit
    offer: Offer | None
    """Pinned with the first events; None if it was not known."""
    history: tuple[Exchange, ...] = ()


@dataclass(slots=True)
class Tenure:
    """A run in this replica's hands."""

    run: str
    fencing_token: int
    grant_time: float
    """Monotonic seconds, from before the lease was asked for; moved on by each renewal."""
    lease_s: float
    deadline: float
    """Monotonic seconds at which the run itself must end."""
    org: str
    """`orgs/{org}` that it counts for."""
    key: KeyRef
    """What the run is sealed with."""
    head: Head | None = None
    traceparent: str = ""
    """The trace that created the run."""
    handing_over: bool = False
    """Set by a drain: the worker stops before its next effect."""

    @property
    def held(self) -> Held:
        """The lease, to renew or to give back."""
        return Held(self.run, self.fencing_token)

    @property
    def stop_time(self) -> float:
        """Monotonic seconds at which the worker stops unless the lease was renewed."""
        return self.grant_time + self.lease_s * STOP_SHARE
