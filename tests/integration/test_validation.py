"""Every public RPC tells all that is wrong with a request at once, field by field.

Walks over the contracts: an RPC that is new is asked too, with rubbish in every field that may hold
some. What a service cannot judge before other fields are right stands in `LATER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import grpc
import pytest
from google.protobuf import message
from google.protobuf.descriptor import FieldDescriptor

from remit.rpc.contracts import MethodContract, all_contracts
from remit.rpc.errors import RemitError
from tests.integration.by_contract import answer_of, request_of, serialized
from tests.integration.clients import bearer, channel
from tests.integration.conftest import RunningMesh
from tests.waiting import PATIENCE

RUBBISH: Final = "\u0007 bad/../name\x00"
BELOW: Final = -7
_TEXT: Final = FieldDescriptor.TYPE_STRING
_NUMBERS: Final = {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64}
FREE: Final = {"reason", "message", "text"}
"""Fields that may hold any text."""
LATER: Final = {
    # Files of a run are known when the run is.
    "AgentService/GetArtifact": {"artifact"},
    # Which points there are is known when the run is.
    "AgentService/ForkRun": {"from_sequence", "from_step"},
    # Faults of policies are told with file and line, by a reason of their own.
    "PolicySetService/DiffPolicySets": {"files"},
    "PolicySetService/PushPolicySet": {"files"},
    "PolicySetService/SimulatePolicy": {"files"},
    "PolicySetService/StartPolicyShadow": {"files"},
    # It is of an item, and is looked at when that is one.
    "PriceService/ListPrices": {"list_item"},
}
CONTRACTS: Final = {
    contract.path.rpartition(".")[2]: contract
    for contract in all_contracts().values()
    if contract.is_public and request_of(contract).DESCRIPTOR.fields
}


def spoil(request: message.Message) -> Iterator[str]:
    """Puts rubbish into every text and number of a message, and yields the names of the fields."""
    for field in request.DESCRIPTOR.fields:
        if field.name in FREE:
            continue
        if field.type == _TEXT:
            if field.is_repeated:
                getattr(request, field.name).append(RUBBISH)
            else:
                setattr(request, field.name, RUBBISH)
            yield field.name
        elif field.type in _NUMBERS and not field.is_repeated:
            setattr(request, field.name, BELOW)
            yield field.name
        elif field.type == FieldDescriptor.TYPE_MESSAGE and _is_ours(field):
            inner = getattr(request, field.name)
            if list(spoil(inner.add() if field.is_repeated else inner)):
                yield field.name


def _is_ours(field: Any) -> bool:
    """Whether a message of Remit's, and not one of several that exclude each other."""
    described = field.message_type
    one_of = field.containing_oneof
    return (
        described.full_name.startswith("remit.")
        and not described.GetOptions().map_entry
        and (one_of is None or len(one_of.fields) == 1)
    )


def spoilt(contract: MethodContract) -> tuple[message.Message, set[str]]:
    """A request with rubbish in it, and the fields that hold it.

    Where a stream's request wraps another one, they are those of that.
    """
    request = request_of(contract)()
    fields = set(spoil(request))
    if "request" in fields:
        inner = request_of(contract)()
        fields = (fields - {"request"}) | set(spoil(getattr(inner, "request")))  # noqa: B009 - generated
    return request, fields


@pytest.mark.parametrize("path", CONTRACTS)
async def test_everything_that_is_wrong_is_told_at_once(mesh: RunningMesh, path: str) -> None:
    contract = CONTRACTS[path]
    request, fields = spoilt(contract)
    assert fields, "what holds no rubbish shows nothing"
    async with channel(mesh.address) as edge:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await answered(edge, contract, request, mesh.api_key)
    error = RemitError.from_rpc(raised.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT, error
    told = {_top(violation.field) for violation in error.violations}
    assert fields - told <= LATER.get(path, set()), f"{path} told only of {sorted(told)}"
    assert error.next_step


async def answered(
    edge: grpc.aio.Channel, contract: MethodContract, request: message.Message, key: str
) -> None:
    types = serialized, answer_of(contract).FromString
    options: dict[str, Any] = {"metadata": bearer(key), "timeout": 30 * PATIENCE}
    if contract.stream is None:
        await edge.unary_unary(contract.path, *types)(request, **options)
    else:
        await anext(aiter(edge.unary_stream(contract.path, *types)(request, **options)))


def _top(field: str) -> str:
    """The field of the request, or of the wrapped one, in which a fault lies."""
    return field.removeprefix("request.").partition(".")[0].partition("[")[0]
