"""What the parts of a worker share while they work on one run."""

from __future__ import annotations

from dataclasses import dataclass

from remit.agent.attempts import Attempts
from remit.agent.conversation import Offer
from remit.agent.definitions import AgentDefinition
from remit.agent.history import Exchange
from remit.agent.logbook import Logbook
from remit.agent.offers import Offers, pinned, unpinned
from remit.agent.reading import RunReader
from remit.agent.sealing import Content
from remit.agent.settings import AgentSettings
from remit.api.inference.v1 import inference_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2_grpc


@dataclass(frozen=True)
class Outside:
    """The services that perform a run's effects."""

    inference: inference_service_pb2_grpc.InferenceServiceStub
    tools: tool_service_pb2_grpc.ToolServiceStub
    offers: Offers


@dataclass
class Work:
    """One run, its journal and its means."""

    run: str
    definition: AgentDefinition
    logbook: Logbook
    attempts: Attempts
    outside: Outside
    reader: RunReader
    settings: AgentSettings
    fencing_token: int
    deadline: float
    """Monotonic seconds at which the run must end."""
    offer: Offer | None = None
    """What is pinned for the run, once it is known here."""
    history: tuple[Exchange, ...] = ()
    """What its model sees of what came before the run, oldest first."""

    @property
    def model(self) -> str:
        """`models/{model}`."""
        return self.definition.model_name

    async def pinned_offer(self, remit: str) -> tuple[Offer, Content | None]:
        """The run's offer, and its content if it must still be pinned. Raises RemitError."""
        if self.offer is not None:
            return self.offer, None
        stored = await self.reader.offer(self.run)
        if stored is not None:
            self.offer = unpinned(stored)
            return self.offer, None
        subject = self.logbook.progress.accepted.subject
        offer = await self.outside.offers.get(subject, self.definition, remit)
        return offer, pinned(offer)
