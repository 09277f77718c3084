"""The declared models with their engines, and how they are found by name."""

from __future__ import annotations

import asyncio
import bisect
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import model_service_pb2
from remit.inference.builtin_rules import BuiltinRulesEngine
from remit.inference.declarations import BuiltinModel, ModelsFile, OpenAIModel
from remit.inference.engine import Engine
from remit.rpc.errors import RemitError, Violation, invalid_request

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200


@dataclass(frozen=True)
class DeclaredModel:
    """A model that can be called, and the engine that serves it."""

    declaration: BuiltinModel | OpenAIModel
    engine: Engine

    @property
    def name(self) -> str:
        """`models/{model}`."""
        return self.declaration.resource_name

    def to_message(self) -> model_service_pb2.Model:
        """The model as the contract tells it."""
        reason = self.engine.not_ready_reason()
        return model_service_pb2.Model(
            name=self.name,
            description=self.declaration.description,
            engine=self.declaration.engine,
            context_tokens=self.declaration.context_tokens,
            max_output_tokens=self.declaration.max_output_tokens,
            ready=not reason,
            not_ready_reason=reason,
            measures_confidence=self.engine.measures_confidence,
            list_item=self.declaration.list_item,
        )


class ModelCatalog:
    """All declared models."""

    def __init__(self, models: Iterable[DeclaredModel]) -> None:
        self._models = {model.name: model for model in sorted(models, key=lambda m: m.name)}
        self._names = list(self._models)

    def get(self, name: str) -> DeclaredModel:
        """The model of that full name. Raises MODEL_NOT_FOUND with the nearest name."""
        model = self._models.get(name)
        if model is None:
            raise model_not_found(name, self._names)
        return model

    def find(self, name: str) -> DeclaredModel | None:
        """The model of that full name, or None."""
        return self._models.get(name)

    def page(
        self, page_size: int, page_token: str, offered: Callable[[str], bool]
    ) -> tuple[list[DeclaredModel], str]:
        """Models by name for which `offered` is true, and the token of the next page.

        A token is the last name of the page before. Raises INVALID_REQUEST for a negative size or a
        token that is no model's name.
        """
        _check_page(page_size, page_token)
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        start = bisect.bisect_right(self._names, page_token)
        names = [name for name in self._names[start:] if offered(name)]
        more = len(names) > size
        return [self._models[name] for name in names[:size]], names[size - 1] if more else ""

    async def close(self) -> None:
        """Closes every engine."""
        await asyncio.gather(*(model.engine.close() for model in self._models.values()))


def build_catalog(file: ModelsFile, *, max_answer_bytes: int, max_connections: int) -> ModelCatalog:
    """The catalog with an engine for each declared model.

    `max_answer_bytes` bounds one answer, `max_connections` the connections to one model's provider.
    """

    def engine_of(declaration: BuiltinModel | OpenAIModel) -> Engine:
        if isinstance(declaration, BuiltinModel):
            return BuiltinRulesEngine()
        # The SDK takes more than a second to import: only for those who declare such a model.
        from remit.inference.openai_engine import OpenAIEngine  # noqa: PLC0415

        return OpenAIEngine(
            declaration, max_answer_bytes=max_answer_bytes, max_connections=max_connections
        )

    return ModelCatalog(DeclaredModel(model, engine_of(model)) for model in file.models)


def model_not_found(name: str, known: Iterable[str]) -> RemitError:
    """MODEL_NOT_FOUND; it suggests a known name that is spelt nearly the same."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return RemitError(
        error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND, f"{name[:200]} is not declared{hint}"
    )


def _check_page(page_size: int, page_token: str) -> None:
    violations = []
    if page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
    if page_token and not page_token.startswith("models/"):
        violations.append(Violation("page_token", "must be a next_page_token of this list"))
    if violations:
        raise invalid_request(violations)
