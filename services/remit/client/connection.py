"""The connection of a client to the edge of a mesh: where, with which key, how patient."""

from __future__ import annotations

import re
from typing import Final, Self, TypeVar

import grpc

from remit.api.agent.v1 import agent_service_pb2_grpc, conversation_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.client.conversations import Conversations
from remit.client.resumption import Patience, Resumption
from remit.client.runs import Runs
from remit.rpc.errors import RemitError
from remit.rpc.mesh import CHANNEL_OPTIONS, Mesh, StubFactory

_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")

Stub = TypeVar("Stub")


class Client:
    """The edge of a mesh, called with one API key. Connects when it is first used.

    Without `credentials` it speaks plain text, as the edge of a mesh on this machine does; where
    TLS is put before the edge, give `grpc.ssl_channel_credentials()`.

    Raises CREDENTIAL_INVALID for what cannot be a key.
    """

    def __init__(
        self,
        address: str,
        api_key: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience | None = None,
        resumption: Resumption | None = None,
    ) -> None:
        check_key(api_key)
        self._mesh = _connect(address, credentials)
        self.metadata = (("authorization", f"Bearer {api_key}"),)
        """Sent with every call."""
        resumption = resumption or Resumption(patience or Patience())
        self.runs = Runs(
            self.stub(agent_service_pb2_grpc.AgentServiceStub), self.metadata, resumption
        )
        """Runs."""
        self.conversations = Conversations(
            self.stub(conversation_service_pb2_grpc.ConversationServiceStub),
            self.metadata,
            resumption,
        )
        """Conversations."""

    def stub(self, factory: StubFactory[Stub]) -> Stub:
        """The stub of any service: its calls take `metadata`, and fail with RemitError."""
        return self._mesh.stub(factory)

    async def close(self) -> None:
        """Closes the connection; what is under way is cancelled here, and runs go on."""
        await self._mesh.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def check_key(key: str) -> None:
    """Raises CREDENTIAL_INVALID for what cannot be sent as a key."""
    if not _KEY.fullmatch(key):
        raise RemitError(
            reasons.ERROR_REASON_CREDENTIAL_INVALID,
            "the API key is empty or holds characters that no key has",
        )


def _connect(address: str, credentials: grpc.ChannelCredentials | None) -> Mesh:
    if credentials is None:
        return Mesh.connect(address, None)
    channel = grpc.aio.secure_channel(address, credentials, [*CHANNEL_OPTIONS])
    return Mesh(channel, is_service=False)
