"""docs/TOOLS.md, done as it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from remit.api.policy.v1.permission_pb2 import PermissionClass
from remit.tools import registry as registry_module
from remit.tools.builtin import shipped_tools
from remit.tools.registry import ENTRY_POINT_GROUP, load_registry
from remit.tools.settings import ToolsSettings
from tests.waiting import PATIENCE

PAGE = (Path(__file__).parents[2] / "docs" / "TOOLS.md").read_text()

# What the tools service does with the settings of its environment, and a call.
CALL = """
import asyncio, json, sys
from pathlib import Path
from remit.tools.builtin import shipped_tools
from remit.tools.registry import load_registry
from remit.tools.settings import ToolsSettings
from tests.tools.calls import Caller

settings = ToolsSettings.load()
registry = load_registry(shipped_tools(settings), settings.modules)
tool = registry.get("tools/greet")
caller = Caller(tool.function, Path())
arguments = json.loads(sys.argv[1])
print(json.dumps({"schema": json.loads(tool.input_schema_json),
                  "description": tool.description,
                  "result": asyncio.run(caller(**arguments))}))
"""


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, f"docs/TOOLS.md has no {language} block"
    return found[1]


def test_a_tool_of_ones_own_takes_ten_lines() -> None:
    assert len(block("python").splitlines()) <= 10


def test_a_tool_of_ones_own_works_as_the_page_says(tmp_path: Path) -> None:
    source = block("python")
    name = re.match(r"# (\w+\.py)\n", source)
    assert name is not None
    (tmp_path / name[1]).write_text(source)
    *assignments, command, action = shlex.split(block("sh"))
    assert (command, action) == ("remit", "up")
    environment = dict(pair.split("=", 1) for pair in assignments)
    environment["PYTHONPATH"] = os.pathsep.join(
        [environment["PYTHONPATH"].replace("$PWD", str(tmp_path)), str(Path(__file__).parents[2])]
    )
    found = subprocess.run(
        [sys.executable, "-c", CALL, json.dumps({"name": "Ada", "excited": True})],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["result"] == {"greeting": "Hello, Ada!"}
    assert said["description"] == "Greet somebody by name."
    assert said["schema"]["required"] == ["name"]


def test_the_entry_point_is_that_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installs a package with the page's entry point, as far as Python's import system sees."""
    points = tomllib.loads(block("toml"))["project"]["entry-points"]
    assert list(points) == [ENTRY_POINT_GROUP]
    (tmp_path / "greeting.py").write_text(block("python"))
    info = tmp_path / "greeting-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in points[ENTRY_POINT_GROUP].items()]
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "greeting", raising=False)
    assert [each.name for each in load_registry((), ())] == ["greet"]
    assert registry_module.ENTRY_POINT_GROUP == "remit.tools"


def test_the_table_of_shipped_tools_is_that_of_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \|", PAGE, re.MULTILINE)
    shipped = [
        (
            each.name,
            PermissionClass.Name(each.permission_class).removeprefix("PERMISSION_CLASS_").lower(),
            "yes" if each.idempotent else "no",
        )
        for each in load_registry(shipped_tools(ToolsSettings()), ())
    ]
    assert rows == shipped


def test_every_setting_of_the_page_exists() -> None:
    prefix = "REMIT_TOOLS_"
    known = {f"{prefix}{name.upper()}" for name in ToolsSettings.model_fields}
    assert set(re.findall(rf"{prefix}[A-Z_]+[A-Z]", PAGE)) <= known
