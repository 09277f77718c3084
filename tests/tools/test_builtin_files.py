"""`read_file`, `search` and `write_file` as a model calls them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools.arguments import plain_struct
from remit.tools.builtin.read_file import read_file_tool
from remit.tools.builtin.search import search_tool
from remit.tools.builtin.write_file import write_file_tool
from remit.tools.settings import ToolsSettings
from tests.tools.calls import Caller, context_of

BAD_PATHS = ["", "/etc/passwd", "../secret.txt", "a/../../b", "./a", "a//b", "a\0b", "a\u202eb"]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder that the operator offers."""
    docs = tmp_path / "docs"
    (docs / "guides").mkdir(parents=True)
    (docs / "budget.md").write_text("# Budget\nThe budget of March is 500 euro.\nEnd.\n")
    (docs / "guides" / "walrus.txt").write_text("The walrus eats clams.\n")
    (docs / "image.png").write_bytes(b"\x89PNG\xff\x00")
    (tmp_path / "secret.txt").write_text("budget walrus secret")
    (docs / "way_out").symlink_to(tmp_path)
    return docs


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


def put(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)


def configured(docs: Path, **fields: Any) -> ToolsSettings:
    return ToolsSettings(folders=(docs,), **fields)


@pytest.fixture
def read_file(docs: Path, workspace: Path) -> Caller:
    return Caller(read_file_tool(configured(docs, file_max_bytes=1_000)), workspace)


@pytest.fixture
def search(docs: Path, workspace: Path) -> Caller:
    return Caller(search_tool(configured(docs)), workspace)


@pytest.fixture
def write_file(docs: Path, workspace: Path) -> Caller:
    return Caller(write_file_tool(configured(docs)), workspace)


# ------------------------------------------------------------------------------------- read_file


async def test_a_file_is_read_whole_or_by_lines(read_file: Caller) -> None:
    assert await read_file(path="budget.md") == {
        "path": "budget.md",
        "content": "# Budget\nThe budget of March is 500 euro.\nEnd.\n",
        "size_bytes": 47,
        "lines": 3,
    }
    part = await read_file(path="budget.md", first_line=2, last_line=2)
    assert (part["content"], part["lines"]) == ("The budget of March is 500 euro.\n", 3)
    assert (await read_file(path="budget.md", first_line=9))["content"] == ""


async def test_the_workspace_comes_before_the_folders(read_file: Caller, workspace: Path) -> None:
    put(workspace, {"budget.md": "mine"})
    assert (await read_file(path="budget.md"))["content"] == "mine"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.md", "tools/read_file: none.md does not exist"),
        ("image.png", "is not UTF-8 text (byte 0)"),
        ("guides", "guides is not a regular file"),
        ("way_out/secret.txt", "way_out/secret.txt leads through"),
    ],
)
async def test_what_cannot_be_read_says_why(read_file: Caller, path: str, message: str) -> None:
    error = await read_file.error(path=path)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert message in error.message


async def test_a_file_over_the_bound_is_refused(read_file: Caller, docs: Path) -> None:
    (docs / "big.txt").write_text("x" * 1_001)
    error = await read_file.error(path="big.txt")
    assert error.message == "tools/read_file: big.txt has 1001 bytes; the limit is 1000"


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_bad_paths_are_refused_before_anything_runs(read_file: Caller, path: str) -> None:
    error = await read_file.error(path=path)
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    assert [violation.field for violation in error.violations] == ["arguments.path"]


@pytest.mark.parametrize("arguments", [{}, {"path": 1}, {"path": "a", "first_line": 0}])
async def test_bad_arguments_are_refused(read_file: Caller, arguments: dict[str, Any]) -> None:
    error = await read_file.error(**arguments)
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=60,
)
@given(path=st.text(max_size=30))
async def test_any_path_ends_in_content_or_a_clear_error(read_file: Caller, path: str) -> None:
    try:
        found = await read_file(path=path)
    except RemitError as error:
        known = {
            error_reason_pb2.ERROR_REASON_TOOL_FAILED,
            error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS,
        }
        assert error.reason in known  # noqa: PT017 - either end is right
        assert "service's log" not in error.message  # noqa: PT017 - as above
    else:
        assert "secret" not in found["content"]


# ---------------------------------------------------------------------------------------- search


async def test_the_best_match_comes_first_with_its_line(search: Caller) -> None:
    found = await search(query="march budget")
    (hit,) = found["results"]
    assert hit["path"] == "budget.md"
    assert (hit["line"], hit["snippet"]) == (2, "The budget of March is 500 euro.")
    assert hit["score"] > 0
    assert (found["matches"], found["files_searched"], found["files_skipped"]) == (1, 2, 1)
    assert found["complete"] is True


async def test_what_is_found_can_be_read(search: Caller, read_file: Caller) -> None:
    (hit,) = (await search(query="clams"))["results"]
    read = await read_file(path=hit["path"], first_line=hit["line"], last_line=hit["line"])
    assert "clams" in read["content"]


async def test_a_file_behind_a_link_is_not_found(search: Caller) -> None:
    assert (await search(query="secret"))["results"] == []


async def test_the_workspace_is_searched_and_hides_what_it_covers(
    search: Caller, workspace: Path
) -> None:
    put(workspace, {"budget.md": "nothing here", "note.md": "march again"})
    found = await search(query="march")
    assert [hit["path"] for hit in found["results"]] == ["note.md"]


async def test_no_more_results_than_asked(search: Caller, docs: Path) -> None:
    for n in range(5):
        (docs / f"w{n}.txt").write_text("walrus")
    found = await search(query="walrus", max_results=2)
    assert (len(found["results"]), found["matches"]) == (2, 6)


@pytest.mark.parametrize("bound", [{"search_max_files": 2}, {"search_max_bytes": 60}])
async def test_a_search_that_is_cut_says_so(
    docs: Path, workspace: Path, bound: dict[str, int]
) -> None:
    search = Caller(search_tool(configured(docs, **bound)), workspace)
    assert (await search(query="walrus"))["complete"] is False


async def test_files_over_the_bound_are_counted_as_skipped(docs: Path, workspace: Path) -> None:
    search = Caller(search_tool(configured(docs, file_max_bytes=30)), workspace)
    found = await search(query="walrus")
    assert (found["files_searched"], found["files_skipped"], found["complete"]) == (1, 2, True)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"query": ""}, {"query": "a" * 401}, {"query": "a", "max_results": 0}, {"query": ["a"]}],
)
async def test_bad_searches_are_refused(search: Caller, arguments: dict[str, Any]) -> None:
    error = await search.error(**arguments)
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS


async def test_a_query_without_a_word_is_explained(search: Caller) -> None:
    assert (await search.error(query="?!")).message.endswith("holds no word to look for")


async def test_a_search_stops_when_its_time_is_over(search: Caller, workspace: Path) -> None:
    with pytest.raises(RemitError) as caught:
        await search.outcome({"query": "a"}, context_of(workspace, limit_s=0))
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED


async def test_a_folder_that_is_gone_is_left_out(docs: Path, workspace: Path) -> None:
    search = Caller(search_tool(configured(docs)), workspace)
    shutil.rmtree(docs)
    assert (await search(query="walrus"))["files_searched"] == 0


# ------------------------------------------------------------------------------------ write_file


async def test_a_file_is_created_then_replaced(write_file: Caller, workspace: Path) -> None:
    first = await write_file.outcome({"path": "reports/march.md", "content": "h\u00e9llo"})
    assert plain_struct(first.result) == {
        "path": "reports/march.md",
        "size_bytes": 6,
        "created": True,
    }
    (artifact,) = first.artifacts
    assert artifact.artifact.name == "reports/march.md"
    assert artifact.artifact.media_type == "text/markdown"
    assert artifact.content == "h\u00e9llo".encode()
    assert (await write_file(path="reports/march.md", content=""))["created"] is False
    assert (workspace / "reports" / "march.md").read_bytes() == b""


@pytest.mark.parametrize("path", [*BAD_PATHS, "a" * 201])
async def test_bad_places_are_refused(write_file: Caller, path: str, workspace: Path) -> None:
    error = await write_file.error(path=path, content="x")
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    assert workspace not in workspace.parent.glob("*")


async def test_no_link_is_written_through(
    write_file: Caller, workspace: Path, tmp_path: Path
) -> None:
    put(workspace, {})
    (workspace / "link.txt").symlink_to(tmp_path / "secret.txt")
    (workspace / "dir").symlink_to(tmp_path)
    for path in ("link.txt", "dir/secret.txt", "dir/new.txt"):
        error = await write_file.error(path=path, content="x")
        assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert (tmp_path / "secret.txt").read_text() == "budget walrus secret"
    assert not (tmp_path / "new.txt").exists()


async def test_offered_folders_cannot_be_written_to(write_file: Caller, docs: Path) -> None:
    assert (await write_file(path="budget.md", content="mine"))["created"] is True
    assert (docs / "budget.md").read_text().startswith("# Budget")


async def test_a_file_is_no_folder(write_file: Caller) -> None:
    await write_file(path="a", content="x")
    assert "not a folder" in (await write_file.error(path="a/b", content="x")).message
    await write_file(path="c/d", content="x")
    assert "not a regular file" in (await write_file.error(path="c", content="x")).message


async def test_the_workspace_has_bounds(docs: Path, workspace: Path) -> None:
    settings = configured(docs, workspace_max_bytes=10, workspace_max_files=2, max_artifact_bytes=8)
    write_file = Caller(write_file_tool(settings), workspace)
    await write_file(path="a", content="12345678")
    assert "needs 3; the limit is 10" in (await write_file.error(path="b", content="123")).message
    await write_file(path="a", content="1")  # what it replaces makes room
    await write_file(path=".hidden", content="123")
    assert "2 files, its limit" in (await write_file.error(path="c", content="")).message
    assert "the limit is 8" in (await write_file.error(path="a", content="\u00e9" * 5)).message


async def test_nothing_is_written_once_the_time_is_over(
    write_file: Caller, workspace: Path
) -> None:
    with pytest.raises(RemitError):
        await write_file.outcome({"path": "a", "content": "x"}, context_of(workspace, limit_s=0))
    assert not (workspace / "a").exists()


async def test_a_workspace_that_cannot_be_made_is_explained(
    write_file: Caller, workspace: Path
) -> None:
    put(workspace.parent, {"workspace": "a file where a folder should be"})
    error = await write_file.error(path="a", content="x")
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert "the workspace cannot be used (FileExistsError); tell the operator" in error.message
