"""The models file: what is right is read, what is wrong is named with its fix, no key is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from remit.api.errors.v1 import error_reason_pb2
from remit.inference.declarations import (
    MAX_FILE_BYTES,
    SHIPPED_FILE,
    BuiltinModel,
    KeyReference,
    OpenAIModel,
    load_models,
)
from remit.inference.settings import InferenceSettings
from remit.rpc.errors import RemitError

SECRET = "sk-this-must-never-be-shown"
BUILTIN: dict[str, Any] = {
    "name": "rules",
    "engine": "builtin-rules",
    "context_tokens": 100,
    "max_output_tokens": 10,
}
OPENAI: dict[str, Any] = {
    "name": "gpt",
    "engine": "openai",
    "base_url": "https://api.openai.com/v1",
    "provider_model": "gpt-5-mini",
    "api_key": {"env": "OPENAI_API_KEY"},
    "context_tokens": 100,
    "max_output_tokens": 10,
}


def fault_of(path: Path, content: object) -> RemitError:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text)
    with pytest.raises(RemitError) as caught:
        load_models(path)
    error = caught.value
    assert error.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert error.message.startswith(f"{path}: ")
    told = [str(error), *(v.description for v in error.violations), repr(error.__cause__)]
    assert not any(SECRET in text for text in told)
    return error


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the models file of a test is."""
    return tmp_path / "models.yaml"


def test_the_shipped_file_declares_the_rule_engine() -> None:
    (model,) = load_models(SHIPPED_FILE).models
    assert isinstance(model, BuiltinModel)
    assert model.resource_name == "models/builtin-rules"
    assert InferenceSettings().models_file == SHIPPED_FILE


def test_both_engines_are_read(file: Path) -> None:
    file.write_text(yaml.safe_dump({"models": [BUILTIN, OPENAI]}))
    builtin, openai = load_models(file).models
    assert isinstance(builtin, BuiltinModel)
    assert isinstance(openai, OpenAIModel)
    assert openai.api_key == KeyReference(env="OPENAI_API_KEY")
    assert openai.max_tokens_parameter == "max_tokens"


@pytest.mark.parametrize(
    ("change", "field", "fix"),
    [
        ({"api_key": SECRET}, "models[0](gpt).api_key", "{env: OPENAI_API_KEY}"),
        ({"api_key": {"value": SECRET}}, "models[0](gpt).api_key.value", "remove it"),
        ({"api_key": {}}, "models[0](gpt).api_key", "{env: OPENAI_API_KEY}"),
        ({"base_ulr": "x"}, "models[0](gpt).base_ulr", "correct its spelling"),
        ({"base_url": "api.openai.com"}, "models[0](gpt).base_url", "https://api.openai.com/v1"),
        (
            {"base_url": f"https://user:{SECRET}@host/v1"},
            "models[0](gpt).base_url",
            "keys belong under api_key",
        ),
        ({"base_url": "http://gpu.example/v1"}, "models[0](gpt)", "insecure_http"),
        ({"engine": "openia"}, "models[0](gpt)", "engine: openai"),
        ({"max_output_tokens": 101}, "models[0](gpt)", "lower it"),
        ({"max_output_tokens": 0}, "models[0](gpt).max_output_tokens", "greater than"),
        ({"name": "models/gpt"}, "models[0](models/gpt).name", "pattern"),
        ({"provider_model": ""}, "models[0](gpt).provider_model", "at least 1"),
    ],
)
def test_a_wrong_field_is_named_with_its_fix(
    file: Path, change: dict[str, Any], field: str, fix: str
) -> None:
    error = fault_of(file, {"models": [{**OPENAI, **change}]})
    told = {v.field: v.description for v in error.violations}
    assert field in told
    assert fix in told[field]


def test_every_fault_is_told_at_once(file: Path) -> None:
    error = fault_of(file, {"models": [{"name": "a", "engine": "openai"}, BUILTIN], "x": 1})
    assert {v.field for v in error.violations} == {
        "models[0](a).base_url",
        "models[0](a).provider_model",
        "models[0](a).context_tokens",
        "models[0](a).max_output_tokens",
        "x",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("models: [\n  - {", "is not YAML at line"),
        (f"models: \n - api_key: '{SECRET}\n", "is not YAML at line"),
        ("\x00", "is not YAML"),
        ("", "valid dictionary"),
        ("[]", "valid dictionary"),
        ({"models": []}, "at least 1 item"),
        ({"models": [BUILTIN, BUILTIN]}, "rules is declared more than once"),
        ("x" * (MAX_FILE_BYTES + 1), "has more than"),
    ],
)
def test_a_file_that_is_none_is_said_to_be_none(file: Path, content: object, said: str) -> None:
    assert said in fault_of(file, content).message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_models(tmp_path / "nowhere.yaml")


def test_a_key_is_read_from_its_file_without_the_newline(tmp_path: Path) -> None:
    key = tmp_path / "key"
    reference = KeyReference(file=key)
    assert "put the provider's key there" in reference.missing_reason()
    key.write_text("abc\n")
    assert (reference.read(), reference.missing_reason()) == ("abc", "")
    key.write_bytes(b"\xff")
    assert reference.read() == ""


def test_http_is_allowed_to_this_machine_and_where_it_is_asked_for() -> None:
    for change in (
        {"base_url": "http://127.0.0.1:8000/v1"},
        {"base_url": "http://localhost:8000/v1"},
        {"base_url": "http://gpu.example/v1", "insecure_http": True},
        {"base_url": "http://gpu.example/v1", "api_key": None},
    ):
        OpenAIModel(**{**OPENAI, **change})
