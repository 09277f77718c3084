"""The tools that can be called: those shipped, and those of one's own.

A tool of one's own is a function under `@tool` in a module that the settings name, or that a
package offers under the entry point group `remit.tools`. Everything is loaded before the service
is ready: a tool that cannot be defined stops the start, never a call.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Final

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools.definition import ToolDefinition, define, is_declared

ENTRY_POINT_GROUP: Final = "remit.tools"
_SUGGESTION_CUTOFF: Final = 0.6
_PREFIX: Final = "tools/"  # compared without it: what all names share makes none of them near


class Registry:
    """Tools by name, in alphabetical order. It does not change once it is built."""

    def __init__(self, definitions: Iterable[ToolDefinition]) -> None:
        found: dict[str, ToolDefinition] = {}
        for definition in definitions:
            other = found.setdefault(definition.name, definition)
            if other.function is not definition.function:
                raise _invalid(
                    f"{definition.source}: the name {definition.name!r} is taken by {other.source}"
                )
        self._definitions = dict(sorted(found.items()))

    def __iter__(self) -> Iterator[ToolDefinition]:
        return iter(self._definitions.values())

    def __len__(self) -> int:
        return len(self._definitions)

    def get(self, resource_name: str, offered: Iterable[str] | None = None) -> ToolDefinition:
        """The tool named `tools/{tool}`.

        Args:
            resource_name: its full name.
            offered: full names among which a near miss may be suggested; all of them by default.

        Raises:
            RemitError: TOOL_NOT_FOUND, with the nearest name there is.

        """
        if names.is_name("tool", resource_name):
            found = self._definitions.get(names.parse("tool", resource_name)[0])
            if found is not None:
                return found
        raise self._not_found(resource_name, offered)

    def _not_found(self, resource_name: str, offered: Iterable[str] | None) -> RemitError:
        known = [definition.resource_name for definition in self]
        candidates = known if offered is None else [name for name in offered if name in known]
        return not_found(resource_name, candidates)


def not_found(resource_name: str, candidates: Sequence[str]) -> RemitError:
    """TOOL_NOT_FOUND, with the nearest of the candidates."""
    shown = resource_name if names.is_name("tool", resource_name) else repr(resource_name[:200])
    known = [candidate.removeprefix(_PREFIX) for candidate in candidates]
    asked = resource_name.removeprefix(_PREFIX)[:200]
    near = difflib.get_close_matches(asked, known, n=1, cutoff=_SUGGESTION_CUTOFF)
    suggestion = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
    return RemitError(
        error_reason_pb2.ERROR_REASON_TOOL_NOT_FOUND, f"{shown} does not exist{suggestion}"
    )


def load_registry(shipped: Iterable[Callable[..., object]], modules: Sequence[str]) -> Registry:
    """The shipped tools, those of the named modules, and those of installed packages.

    Raises:
        RemitError: CONFIGURATION_INVALID naming the module, and the function where there is one.

    """
    functions = [
        *shipped,
        *(function for module in modules for function in _functions_of_module(module)),
        *_functions_of_entry_points(),
    ]
    return Registry(define(function) for function in functions)


def _functions_of_module(name: str) -> list[Callable[..., object]]:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # foreign code may raise anything
        raise _import_failed(name, error) from error
    return _declared_in(module)


def _functions_of_entry_points() -> Iterator[Callable[..., object]]:
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        where = f"entry point {entry_point.name} = {entry_point.value}"
        try:
            loaded = entry_point.load()
        except Exception as error:  # as above
            raise _import_failed(where, error) from error
        if inspect.ismodule(loaded):
            yield from _declared_in(loaded)
        elif is_declared(loaded):
            yield loaded
        else:
            raise _invalid(f"{where}: is neither a module nor a function under @tool")


def _declared_in(module: ModuleType) -> list[Callable[..., object]]:
    functions = [value for value in vars(module).values() if is_declared(value)]
    if not functions:
        raise _invalid(f"{module.__name__}: holds no function under @tool")
    return functions


def _import_failed(where: str, error: Exception) -> RemitError:
    return _invalid(f"{where}: cannot be imported: {type(error).__name__}: {error}")


def _invalid(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message)
