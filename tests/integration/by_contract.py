"""Messages of any method, by its contract: for tests that walk over all of them."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message, message_factory

from remit.rpc.contracts import MethodContract


def request_of(contract: MethodContract) -> type[message.Message]:
    """What the method takes."""
    return message_factory.GetMessageClass(_descriptor(contract).input_type)


def answer_of(contract: MethodContract) -> type[message.Message]:
    """What it answers, or each message of its stream."""
    return message_factory.GetMessageClass(_descriptor(contract).output_type)


def has_field(contract: MethodContract, name: str) -> bool:
    """Whether its request has a field of that name."""
    return name in _descriptor(contract).input_type.fields_by_name


def serialized(request: message.Message) -> bytes:
    """The bytes of any message."""
    return request.SerializeToString()


def _descriptor(contract: MethodContract) -> Any:
    service, _, method = contract.path.removeprefix("/").rpartition("/")
    pool: Any = descriptor_pool.Default()
    return pool.FindServiceByName(service).methods_by_name[method]
