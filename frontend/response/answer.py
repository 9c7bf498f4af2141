"""The form of an answer, which the two response classes fill: one JSON object, or the events of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from frontend.generation.completion_run import Choice
from llm_pipeline.protocol.messages import TextChunk


class Frames(Protocol):
    """Encodes the events of one stream."""

    def chunk(self, choice: Choice, chunk: TextChunk) -> bytes:
        """The events of one chunk, or b"" if it has nothing for the client. Chunks of a choice come in order."""

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The event after the last chunk of a stream whose client asked for usage."""


class Answer(Protocol):
    """The form of the answer to one request.

    `id_prefix` begins the id of the answer, `object_type` and `chunk_type` are the `object` of the whole answer and of
    a chunk, and `schema_name` is the name of the whole answer's JSON Schema.
    """

    id_prefix: str
    object_type: str
    chunk_type: str
    schema_name: str

    @property
    def model(self) -> str:
        """The model under the name in the request."""

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""

    def frames(self, head: Mapping[str, Any]) -> Frames:
        """The encoder of a stream whose events all begin with the fields of `head`."""

    def selected(self, chunks: Sequence[Sequence[TextChunk]]) -> Sequence[int]:
        """The indices of the choices to return, in the order of the answer. `chunks` are those of each choice."""

    def choice(self, position: int, choice: Choice, chunks: Sequence[TextChunk]) -> dict[str, Any]:
        """The object of one choice at this position of the answer."""

    def more_fields(self, chunks: Sequence[Sequence[TextChunk]]) -> Mapping[str, Any]:
        """Fields of the whole answer beside the usual ones."""
