"""Where tools come from: shipped ones, modules of one's own, entry points of packages."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools import tool
from remit.tools.builtin import shipped_tools
from remit.tools.registry import ENTRY_POINT_GROUP, Registry, load_registry
from remit.tools.settings import ToolsSettings

GOOD = '''
from remit.tools import tool

@tool(permission_class="none")
async def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}!"
'''


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def names_of(registry: Registry) -> list[str]:
    return [definition.name for definition in registry]


def fault_of(*names: str) -> str:
    with pytest.raises(RemitError) as caught:
        load_registry((), names)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    return caught.value.message


def test_the_shipped_tools_with_their_classes() -> None:
    registry = load_registry(shipped_tools(ToolsSettings()), ())
    classes = {each.name: (each.permission_class, each.idempotent) for each in registry}
    assert classes == {
        "calculator": (1, True),
        "clock": (1, True),
        "read_file": (2, True),
        "search": (2, True),
        "send_email": (4, False),
        "write_file": (3, True),
    }
    assert len(registry) == 6


def test_a_module_of_ones_own_is_loaded(modules: Path) -> None:
    (modules / "greeting_one.py").write_text(GOOD)
    assert names_of(load_registry((), ["greeting_one"])) == ["greet"]


def test_a_tool_seen_twice_is_one_tool(modules: Path) -> None:
    (modules / "greeting_two.py").write_text(GOOD)
    (modules / "greeting_three.py").write_text("from greeting_two import greet\n")
    assert names_of(load_registry((), ["greeting_two", "greeting_three"])) == ["greet"]


def test_two_tools_of_one_name_are_both_named(modules: Path) -> None:
    (modules / "greeting_four.py").write_text(GOOD)
    (modules / "greeting_five.py").write_text(GOOD)
    fault = fault_of("greeting_four", "greeting_five")
    assert fault == "greeting_five:greet: the name 'greet' is taken by greeting_four:greet"


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("tools_absent", None, "cannot be imported: ModuleNotFoundError"),
        ("tools_broken", "def", "cannot be imported: SyntaxError"),
        ("tools_raising", "raise RuntimeError('no disk')", "RuntimeError: no disk"),
        ("tools_empty", "x = 1", "holds no function under @tool"),
        ("tools_bare", GOOD.replace("name: str", "name"), "tools_bare:greet: parameter 'name'"),
    ],
)
def test_what_cannot_be_loaded_names_its_module(
    modules: Path, name: str, source: str | None, fault: str
) -> None:
    if source is not None:
        (modules / f"{name}.py").write_text(source)
    found = fault_of(name)
    assert name in found
    assert fault in found


@tool(permission_class="none")
async def offered() -> str:
    """Answer."""
    return "yes"


def entry_points(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Installs one entry point, as a package's metadata would."""
    found = importlib.metadata.EntryPoint("mine", value, ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: [found] if group == ENTRY_POINT_GROUP else [],
    )


def test_an_entry_point_may_be_a_module_or_a_function(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (modules / "greeting_six.py").write_text(GOOD)
    entry_points(monkeypatch, "greeting_six")
    assert names_of(load_registry((), ())) == ["greet"]
    entry_points(monkeypatch, "greeting_six:greet")
    assert names_of(load_registry((), ())) == ["greet"]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("json:dumps", "is neither a module nor a function under @tool"),
        ("json:nothing", "cannot be imported: AttributeError"),
        ("nowhere_at_all", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_wrong_entry_point_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str, fault: str
) -> None:
    entry_points(monkeypatch, value)
    found = fault_of()
    assert f"entry point mine = {value}" in found
    assert fault in found


def not_found(name: str, offered_names: list[str] | None = None) -> RemitError:
    registry = load_registry(shipped_tools(ToolsSettings()), ())
    with pytest.raises(RemitError) as caught:
        registry.get(name, offered_names)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_TOOL_NOT_FOUND
    return caught.value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tools/calculater", "tools/calculater does not exist; did you mean tools/calculator?"),
        ("tools/zzz", "tools/zzz does not exist"),
        ("calculator", "'calculator' does not exist; did you mean tools/calculator?"),
        ("tools/../clock", "'tools/../clock' does not exist; did you mean tools/clock?"),
        ("", "'' does not exist"),
    ],
)
def test_an_unknown_tool_suggests_the_nearest(name: str, message: str) -> None:
    assert not_found(name).message == message


def test_only_what_is_offered_is_suggested() -> None:
    assert "did you mean" not in not_found("tools/calculater", ["tools/clock"]).message


def test_a_long_name_is_not_repeated_in_full() -> None:
    assert len(not_found("x" * 100_000).message) < 300
