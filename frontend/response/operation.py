"""An operation of the API on a model: what differs between completions and chat on the way to the engine and back."""

from __future__ import annotations

from typing import Protocol

from frontend.models.registry import ServedModel
from frontend.request.parsing import RequestForm, RequestT
from frontend.request.to_parameters import EngineInput
from frontend.response.answer import Answer


class Operation(Protocol[RequestT]):
    """One operation. `name` is its label in metrics and in the log."""

    @property
    def name(self) -> str: ...

    @property
    def form(self) -> RequestForm[RequestT]:
        """The rules of its requests."""

    async def prepare(self, model: ServedModel, request: RequestT, holder: str | None) -> tuple[EngineInput, Answer]:
        """The engine's input and the answer's form. `holder` is the name of the request's API key.

        Raises PipelineError (400) if the model cannot do it.
        """
