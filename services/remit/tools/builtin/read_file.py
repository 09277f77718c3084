"""`read_file`: a text file of the workspace or of a folder that the operator offers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from remit.tools.context import ToolContext, ToolError
from remit.tools.definition import tool
from remit.tools.folder import MAX_PATH_CHARS, Folder, FolderError, check_relative_path
from remit.tools.settings import ToolsSettings

RelativePath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_PATH_CHARS,
        description="Path relative to the workspace or to an offered folder, such as "
        "`notes/plan.md`.",
    ),
    AfterValidator(check_relative_path),
]
LineNumber = Annotated[int, Field(ge=1, le=10_000_000)]


@contextlib.contextmanager
def readable_folders(workspace: Path, offered: Sequence[Path]) -> Iterator[list[Folder]]:
    """The folders that may be read, in the order of precedence: the workspace first."""
    with contextlib.ExitStack() as stack:
        folders = []
        for path in (workspace, *offered):
            try:
                folders.append(stack.enter_context(Folder(path)))
            except FileNotFoundError:
                continue  # nothing was ever written to this workspace
            except OSError as error:
                message = f"a folder cannot be opened ({type(error).__name__}); tell the operator"
                raise ToolError(message) from error
        yield folders


def read_first(folders: Sequence[Folder], path: str, max_bytes: int) -> bytes:
    """The content of the first folder's file that has this path.

    Raises:
        ToolError: none has it, or it cannot be read.

    """
    for folder in folders:
        try:
            return folder.read(path, max_bytes)
        except FileNotFoundError:
            continue
        except FolderError as error:
            raise ToolError(str(error)) from error
    message = f"{path} does not exist"
    raise ToolError(message)


def text_of(content: bytes, path: str) -> str:
    """A file as text. Raises ToolError for what is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text (byte {error.start}); only text can be read"
        raise ToolError(message) from error


def read_file_tool(settings: ToolsSettings) -> Callable[..., object]:
    """The tool over the workspace and the folders of the settings."""

    @tool(permission_class="read", idempotent=True, timeout_s=10)
    def read_file(
        context: ToolContext,
        path: RelativePath,
        first_line: Annotated[LineNumber, Field(description="First line to return.")] = 1,
        last_line: Annotated[
            LineNumber | None, Field(description="Last line to return; the file's if left out.")
        ] = None,
    ) -> dict[str, object]:
        """Read a UTF-8 text file.

        Returns `content`, `path`, `size_bytes` of the whole file and its number of `lines`.
        """
        with readable_folders(context.workspace_path, settings.folders) as folders:
            content = read_first(folders, path, settings.file_max_bytes)
        lines = text_of(content, path).splitlines(keepends=True)
        return {
            "path": path,
            "content": "".join(lines[first_line - 1 : last_line]),
            "size_bytes": len(content),
            "lines": len(lines),
        }

    return read_file
