"""Settings of the tools service: what the environment may say, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools.settings import ToolsSettings


def test_lists_are_separated_by_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("REMIT_TOOLS_MODULES", "one, two.three,")
    monkeypatch.setenv("REMIT_TOOLS_FOLDERS", f"{tmp_path},{tmp_path / 'a'}")
    settings = ToolsSettings.load()
    assert settings.modules == ("one", "two.three")
    assert settings.folders == (tmp_path, tmp_path / "a")


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("FOLDERS", "/nowhere/at/all", "is not a folder"),
        ("SMTP_SECURITY", "ssl", "'none', 'starttls' or 'tls'"),
        ("SMTP_PORT", "0", "greater than or equal to 1"),
        ("SMTP_FROM", "remit", "match pattern"),
        ("SMTP_USERNAME", "remit", "a password is not sent in clear"),
        ("MAX_RESULT_BYTES", "1", "greater than or equal to 1024"),
        ("MAX_ARTIFACTS", "100", "less than or equal to 2"),
        ("MAX_RUNNING", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(f"REMIT_TOOLS_{variable}", value)
    with pytest.raises(RemitError) as caught:
        ToolsSettings.load()
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert fault in caught.value.message


def test_every_setting_is_documented() -> None:
    undocumented = [n for n, field in ToolsSettings.model_fields.items() if not field.description]
    assert undocumented == []


def test_the_password_is_not_printed() -> None:
    settings = ToolsSettings(smtp_username="remit", smtp_password="hunter2", smtp_security="tls")
    assert "hunter2" not in repr(settings)
    assert settings.smtp_password.get_secret_value() == "hunter2"
