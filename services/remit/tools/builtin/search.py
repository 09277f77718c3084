"""`search`: ranked full-text search over the files that `read_file` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from remit.tools.builtin.read_file import readable_folders
from remit.tools.context import ToolContext, ToolError
from remit.tools.definition import tool
from remit.tools.folder import Folder, FolderError
from remit.tools.ranking import Document, document, rank, snippet, terms_of
from remit.tools.settings import ToolsSettings

MAX_TERMS = 50

Query = Annotated[
    str,
    Field(min_length=1, max_length=400, description="Words to look for, in any order."),
]
Count = Annotated[int, Field(ge=1, le=50, description="Most results to return.")]


@dataclass
class _Corpus:
    """What a search has looked at, and what it has not and why.

    A file of a later folder with the path of an earlier one is left out: `read_file` could not
    return it.
    """

    folder_of: dict[str, Folder] = field(default_factory=dict)
    documents: list[Document] = field(default_factory=list)
    read_bytes: int = 0
    skipped: int = 0
    complete: bool = True


def search_tool(settings: ToolsSettings) -> Callable[..., object]:
    """The tool over the workspace and the folders of the settings."""

    @tool(permission_class="read", idempotent=True, timeout_s=30)
    def search(context: ToolContext, query: Query, max_results: Count = 10) -> dict[str, object]:
        """Search text files for words and return the best matches first.

        Each of `results` has `path` (for read_file), `score`, `line` and a `snippet` of that line.
        `complete` is false where there were more files than one search may read.
        """
        terms = terms_of(query)[:MAX_TERMS]
        if not terms:
            raise ToolError("the query holds no word to look for")
        with readable_folders(context.workspace_path, settings.folders) as folders:
            corpus = _read(folders, terms, settings, context)
            hits = rank(corpus.documents, terms)
            results = [
                {
                    "path": hit.name,
                    "score": round(hit.score, 4),
                    **_best_line(corpus.folder_of[hit.name], hit.name, terms, settings),
                }
                for hit in hits[:max_results]
            ]
        return {
            "results": results,
            "matches": len(hits),
            "files_searched": len(corpus.documents),
            "files_skipped": corpus.skipped,
            "complete": corpus.complete,
        }

    return search


def _read(
    folders: Sequence[Folder], terms: Sequence[str], settings: ToolsSettings, context: ToolContext
) -> _Corpus:
    corpus = _Corpus()
    for path, size_bytes, folder in _files(folders, settings.search_max_files, corpus):
        context.check()
        if size_bytes > settings.file_max_bytes:
            corpus.skipped += 1
            continue
        if corpus.read_bytes + size_bytes > settings.search_max_bytes:
            corpus.complete = False
            break
        corpus.read_bytes += size_bytes
        text = _text(folder, path, settings.file_max_bytes)
        if text is None:
            corpus.skipped += 1
            continue
        corpus.documents.append(document(path, text, terms))
    return corpus


def _files(
    folders: Sequence[Folder], max_files: int, corpus: _Corpus
) -> Iterator[tuple[str, int, Folder]]:
    """Paths, sizes in bytes and folders of the files to read; notes where there were too many."""
    for folder in folders:
        for path, size_bytes in folder.files(max_files):
            if path in corpus.folder_of:
                continue
            if len(corpus.folder_of) >= max_files:
                corpus.complete = False
                return
            corpus.folder_of[path] = folder
            yield path, size_bytes, folder


def _text(folder: Folder, path: str, max_bytes: int) -> str | None:
    """A file as text; None for one that is no text, or is gone or of another kind by now."""
    try:
        return folder.read(path, max_bytes).decode("utf-8")
    except (UnicodeDecodeError, FolderError, FileNotFoundError):
        return None


def _best_line(
    folder: Folder, path: str, terms: Sequence[str], settings: ToolsSettings
) -> dict[str, object]:
    text = _text(folder, path, settings.file_max_bytes)
    best = snippet(text or "", terms)
    return {"line": best.line, "snippet": best.text}
