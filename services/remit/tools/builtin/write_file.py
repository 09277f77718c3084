"""`write_file`: a text file in the workspace of the subject, whole or not at all."""

from __future__ import annotations

import mimetypes
import threading
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

from remit.tools.context import ToolContext, ToolError
from remit.tools.definition import tool
from remit.tools.folder import Folder, FolderError, check_relative_path
from remit.tools.results import MAX_ARTIFACT_NAME_CHARS, File, ToolResult
from remit.tools.settings import ToolsSettings

MAX_CONTENT_CHARS = 2**20

WorkspacePath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_ARTIFACT_NAME_CHARS,
        description="Path relative to the workspace, such as `reports/march.md`. Folders are made.",
    ),
    AfterValidator(check_relative_path),
]


Content = Annotated[str, Field(max_length=MAX_CONTENT_CHARS, description="The whole new content.")]


def write_file_tool(settings: ToolsSettings) -> Callable[..., object]:
    """The tool over the workspaces of the settings."""
    # Room is counted, then used: one writer at a time keeps the bound a bound.
    writing = threading.Lock()
    most = settings.max_artifact_bytes

    @tool(permission_class="write", idempotent=True, timeout_s=15)
    def write_file(
        context: ToolContext,
        path: WorkspacePath,
        content: Content,
    ) -> ToolResult:
        """Create or replace a text file in the workspace.

        Returns `path`, `size_bytes`, whether the file was `created`, and the file as an artifact.
        """
        data = content.encode("utf-8")
        if len(data) > most:
            message = f"{path} would have {len(data)} bytes; the limit is {most}"
            raise ToolError(message)
        try:
            with Folder(context.workspace()) as workspace, writing:
                context.check()
                _check_room(workspace, path, len(data), settings)
                created = workspace.write(path, data)
        except FolderError as error:
            raise ToolError(str(error)) from error
        except OSError as error:
            message = f"the workspace cannot be used ({type(error).__name__}); tell the operator"
            raise ToolError(message) from error
        file = File(path, mimetypes.guess_type(path)[0] or "text/plain", data)
        return ToolResult({"path": path, "size_bytes": len(data), "created": created}, files=[file])

    return write_file


def _check_room(workspace: Folder, path: str, size_bytes: int, settings: ToolsSettings) -> None:
    """Refuse what the workspace has no room for; a file that is replaced makes room for its own."""
    others = [
        size
        for name, size in workspace.files(settings.workspace_max_files, hidden=True)
        if name != path
    ]
    if len(others) + 1 > settings.workspace_max_files:
        message = f"the workspace holds {settings.workspace_max_files} files, its limit"
        raise ToolError(message)
    used_bytes = sum(others)
    if used_bytes + size_bytes > settings.workspace_max_bytes:
        message = (
            f"the workspace holds {used_bytes} bytes and {path} needs {size_bytes}; "
            f"the limit is {settings.workspace_max_bytes}"
        )
        raise ToolError(message)
