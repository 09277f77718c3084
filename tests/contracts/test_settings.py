"""Every setting is described, has a default that works, and stands in docs/SETTINGS.md."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError
from remit.settings import ServiceSettings
from tests.golden import assert_golden

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "SETTINGS.md"
INTRODUCTION = """\
# Settings

Every service reads its settings from the environment. Each works without any under `remit up`,
which fills in addresses, certificates and databases. A wrong value stops the start with
CONFIGURATION_INVALID and the variable's name. `REMIT_SECRETS_DIR` names a folder whose files are
settings too, named as the variables; what the environment says goes first.

This page is made from the code by `make golden`.
"""


def settings_of(area: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"remit.{area}.settings")
    found: type[ServiceSettings] = getattr(module, f"{area.capitalize()}Settings")
    return found


def own_fields(area: str) -> dict[str, FieldInfo]:
    shared = ServiceSettings.model_fields
    return {n: f for n, f in settings_of(area).model_fields.items() if n not in shared}


def row(prefix: str, name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    # A file that is shipped, and everybody's home, stand somewhere else in every installation.
    text = str(default).removeprefix(f"{ROOT}/").replace(f"{Path.home()}/", "~/")
    shown = f"`{text}`" if text not in {"", ".", "None"} else "none"
    return f"| `{prefix}{name.upper()}` | {shown} | {field.description} |"


@pytest.mark.golden
def test_the_page_lists_every_setting() -> None:
    lines = [INTRODUCTION, "## Of every service\n", "`<AREA>` is the area in capitals.\n"]
    lines += ["| Variable | Default | Meaning |", "| --- | --- | --- |"]
    lines += [row("REMIT_<AREA>_", n, f) for n, f in ServiceSettings.model_fields.items()]
    for area in AREAS:
        lines += [f"\n## {area}\n", "| Variable | Default | Meaning |", "| --- | --- | --- |"]
        prefix = f"REMIT_{area.upper()}_"
        lines += [row(prefix, n, f) for n, f in own_fields(area).items()]
    assert_golden(PAGE, "\n".join(lines) + "\n")


@pytest.mark.parametrize("area", AREAS)
def test_every_setting_is_described_and_has_a_default(area: str) -> None:
    for name, field in settings_of(area).model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), f"{name}: a sentence ends with a full stop"
        assert not field.is_required(), name


@pytest.mark.parametrize("area", AREAS)
def test_settings_are_frozen_and_read_from_the_areas_own_variables(
    area: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"REMIT_{area.upper()}_REPLICA", "seven")
    settings = settings_of(area).load()
    assert settings.replica == "seven"
    assert settings_of(area).model_config["frozen"]


@pytest.mark.parametrize("area", AREAS)
def test_a_wrong_value_names_its_variable(area: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"REMIT_{area.upper()}_DRAIN_S", "soon")
    with pytest.raises(RemitError, match=f"REMIT_{area.upper()}_DRAIN_S") as caught:
        settings_of(area).load()
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert caught.value.violations
