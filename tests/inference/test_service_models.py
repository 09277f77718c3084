"""`ModelService`: which models there are, and to whom."""

from __future__ import annotations

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1.model_service_pb2 import GetModelRequest, ListModelsRequest
from remit.api.options.v1 import options_pb2
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.inference.service_world import InferenceWorld, a_run, token_of

AGENT = options_pb2.CALLER_AGENT


async def test_models_are_listed_by_name_in_pages(inference: InferenceWorld) -> None:
    names, token = [], ""
    with remit_token(token_of()):
        for _ in range(3):
            request = ListModelsRequest(page_size=1, page_token=token)
            page = await inference.models().ListModels(request)
            names += [model.name for model in page.models]
            token = page.next_page_token
    assert (names, token) == (["models/builtin-rules", "models/gpt", "models/keyless"], "")


async def test_a_model_says_whether_it_can_be_called(inference: InferenceWorld) -> None:
    with remit_token(token_of()):
        listed = (await inference.models().ListModels(ListModelsRequest())).models
    assert [m.name for m in listed if m.measures_confidence] == ["models/builtin-rules"]
    assert {m.name: m.list_item for m in listed}["models/gpt"] == "openai/gpt-5-mini"
    ready = {model.name: (model.engine, model.ready) for model in listed}
    assert ready == {
        "models/builtin-rules": ("builtin-rules", True),
        "models/gpt": ("openai", True),
        "models/keyless": ("openai", False),
    }
    assert "MISSING_KEY" in listed[2].not_ready_reason


async def test_a_run_sees_the_models_of_its_remit_alone(inference: InferenceWorld) -> None:
    with remit_token(token_of(run=a_run(), models=("models/gpt",))):
        listed = await inference.models(AGENT).ListModels(ListModelsRequest())
        found = await inference.models(AGENT).GetModel(GetModelRequest(name="models/gpt"))
        with pytest.raises(RemitError) as caught:
            await inference.models(AGENT).GetModel(GetModelRequest(name="models/builtin-rules"))
    assert [model.name for model in listed.models] == ["models/gpt"]
    assert (found.model.context_tokens, found.model.max_output_tokens) == (10_000, 100)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND


async def test_an_unknown_model_is_not_found(inference: InferenceWorld) -> None:
    with remit_token(token_of()), pytest.raises(RemitError) as caught:
        await inference.models().GetModel(GetModelRequest(name="models/gtp"))
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND
    assert "did you mean models/gpt?" in caught.value.message


async def test_a_wrong_page_is_refused_with_every_violation(inference: InferenceWorld) -> None:
    with remit_token(token_of()), pytest.raises(RemitError) as caught:
        await inference.models().ListModels(ListModelsRequest(page_size=-1, page_token="x"))
    assert [v.field for v in caught.value.violations] == ["page_size", "page_token"]
