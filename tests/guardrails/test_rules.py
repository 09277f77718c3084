"""Rules: read from one line, wrong ones named all at once, what is not named as shipped."""

from __future__ import annotations

import pytest

from remit.agent.settings import AgentSettings
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.guardrails import BUILT_IN, Direction, Mode, Rules, parse_rules
from remit.inference.settings import InferenceSettings
from remit.rpc.errors import RemitError
from remit.tools.settings import ToolsSettings

SERVICES = (AgentSettings, InferenceSettings, ToolsSettings)


def test_a_line_sets_modes_and_leaves_the_others_off() -> None:
    rules = Rules(parse_rules(" secrets.output=redact,personal_data.input = refuse, "))
    set_ = {
        (name, direction): rules.mode(name, direction)
        for name in BUILT_IN
        for direction in Direction
        if rules.mode(name, direction) is not Mode.OFF
    }
    assert set_ == {
        ("secrets", Direction.OUTPUT): Mode.REDACT,
        ("personal_data", Direction.INPUT): Mode.REFUSE,
    }


def test_everything_wrong_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="is set twice") as caught:
        parse_rules(
            "secrets, secret.input=flag, secrets.both=flag, secrets.input=drop,"
            " secrets.input=flag, secrets.input=off"
        )
    for words in (
        "must be DETECTOR.DIRECTION=MODE",
        "no detector secret; there are suspicious_patterns, secrets, personal_data, ip_addresses",
        "the direction must be input or output",
        "the mode must be one of off, flag, redact, refuse",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("settings", SERVICES)
def test_a_service_does_not_start_with_wrong_ones(
    settings: type[AgentSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = settings.model_config["env_prefix"]
    monkeypatch.setenv(f"{prefix}GUARDRAILS", "secrets.input=hide")
    with pytest.raises(RemitError, match="the mode must be one of") as caught:
        settings.load()
    assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID
    assert caught.value.violations[0].field == f"{prefix}GUARDRAILS"


def test_an_agent_screens_no_output() -> None:
    with pytest.raises(RemitError, match="the direction must be input"):
        AgentSettings.load(guardrails="secrets.output=flag")


def test_what_is_not_named_stays_as_shipped() -> None:
    rules = AgentSettings.load(guardrails="personal_data.input=redact").guardrail_rules
    assert rules.mode("suspicious_patterns", Direction.INPUT) is Mode.REFUSE
    assert rules.mode("secrets", Direction.INPUT) is Mode.FLAG
    assert rules.mode("personal_data", Direction.INPUT) is Mode.REDACT
    off = AgentSettings.load(guardrails="suspicious_patterns.input=off").guardrail_rules
    assert off.mode("suspicious_patterns", Direction.INPUT) is Mode.OFF


@pytest.mark.parametrize("settings", SERVICES)
def test_nothing_shipped_holds_an_answer_back(settings: type[AgentSettings]) -> None:
    rules = settings.load().guardrail_rules
    shipped = {rules.mode(name, Direction.OUTPUT) for name in BUILT_IN}
    assert shipped <= {Mode.OFF, Mode.FLAG}
