"""The tools that a run's model is offered: listed once, remembered a while, pinned per run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from remit.agent.conversation import Offer
from remit.agent.definitions import AgentCatalog, AgentDefinition, did_you_mean
from remit.agent.sealing import Content
from remit.agent.sub_runs import offered
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_pb2, tool_service_pb2, tool_service_pb2_grpc
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.mesh import remit_metadata

_PAGE: Final = 200
_MAX_PAGES: Final = 50


@dataclass(frozen=True)
class Remembered:
    """An offer and the monotonic time at which it was made."""

    offer: Offer
    time: float


class Offers:
    """Offers by subject and agent version: two subjects may be offered different tools."""

    def __init__(
        self,
        tools: tool_service_pb2_grpc.ToolServiceStub,
        catalog: AgentCatalog,
        clock: Clock,
        *,
        size: int,
        lifetime_s: float,
    ) -> None:
        self._tools = tools
        self._catalog = catalog
        self._clock = clock
        self._size = size
        self._lifetime_s = lifetime_s
        self._remembered: OrderedDict[tuple[str, str], Remembered] = OrderedDict()

    def remembered(self, subject: str, definition: AgentDefinition) -> Offer | None:
        """The offer, if it is remembered and fresh, or if the agent has no tools."""
        if not definition.tools:
            return Offer(self._agents(definition))
        known = self._remembered.get((subject, definition.version))
        if known is None or self._clock.monotonic() - known.time > self._lifetime_s:
            return None
        return known.offer

    async def get(self, subject: str, definition: AgentDefinition, remit: str) -> Offer:
        """The offer under the run's remit. Raises TOOL_NOT_FOUND for a tool that is not offered."""
        offer = self.remembered(subject, definition)
        if offer is None:
            tools = _chosen(await self._listed(remit), definition)
            offer = Offer((*tools, *self._agents(definition)))
            self._remember((subject, definition.version), offer)
        return offer

    def _agents(self, definition: AgentDefinition) -> tuple[tool_pb2.Tool, ...]:
        """The agents that a run of the definition may start, as its model is offered them.

        Raises AGENT_NOT_FOUND for one that a definition of an earlier version names.
        """
        return tuple(offered(self._catalog.get(name)) for name in definition.agent_names)

    async def _listed(self, remit: str) -> dict[str, tool_pb2.Tool]:
        listed: dict[str, tool_pb2.Tool] = {}
        token = ""
        for _ in range(_MAX_PAGES):
            page = await self._tools.ListTools(
                tool_service_pb2.ListToolsRequest(page_size=_PAGE, page_token=token),
                metadata=remit_metadata(remit),
            )
            listed |= {tool.name: tool for tool in page.tools}
            token = page.next_page_token
            if not token:
                return listed
        raise RemitError(
            reasons.ERROR_REASON_TOO_LARGE, f"more than {_PAGE * _MAX_PAGES} tools are offered"
        )

    def _remember(self, key: tuple[str, str], offer: Offer) -> None:
        self._remembered[key] = Remembered(offer, self._clock.monotonic())
        self._remembered.move_to_end(key)
        if len(self._remembered) > self._size:
            self._remembered.popitem(last=False)


def pinned(offer: Offer) -> Content:
    """The offer as it is stored for its run."""
    stored = tool_service_pb2.ListToolsResponse(tools=offer.tools)
    return Content.of(stored.SerializeToString(deterministic=True))


def unpinned(data: bytes) -> Offer:
    """The offer that was stored for a run."""
    return Offer(tuple(tool_service_pb2.ListToolsResponse.FromString(data).tools))


def _chosen(
    listed: dict[str, tool_pb2.Tool], definition: AgentDefinition
) -> tuple[tool_pb2.Tool, ...]:
    for name in definition.tool_names:
        if name not in listed:
            raise RemitError(
                reasons.ERROR_REASON_TOOL_NOT_FOUND,
                f"{definition.full_name} needs {name}, which is not offered"
                f"{did_you_mean(name, listed)}",
            )
    return tuple(listed[name] for name in definition.tool_names)
