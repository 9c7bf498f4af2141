"""Masks of guided sequences: asked for before a step of the model, used after it.

The process of a guide (llm_pipeline/guides) makes the masks while the model computes the logits that they are for. A
sequence whose masks have not arrived by then is stalled: a copy of its logits is kept, some 200 KB, and it is left out
of all steps until the masks are there. To compute its last token again would take a row of a step, some milliseconds,
and other kernels than the first time might give other digits.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Sequence
from llm_pipeline.guides.masks import GuidesUnavailableError

Masks: TypeAlias = "npt.NDArray[np.bool_]"  # [rows, vocab_size]


class MaskSource(Protocol):
    """The part of guides.masks.MaskSource that the engine uses. It never blocks."""

    def fileno(self) -> int:
        """The descriptor that becomes readable when an answer has arrived."""

    def ask(self, accepted: SequenceType[int], draft: SequenceType[int]) -> None:
        """Adds the accepted tokens to the text, and asks for the next mask and for the one after each draft token."""

    def receive(self) -> Masks | None:
        """Returns the masks, with at least one row, or None if they have not arrived.

        Raises GuideError or GuidesUnavailableError.
        """

    def close(self) -> None:
        """Closes the connection."""


ConnectMasks: TypeAlias = Callable[[str], MaskSource]  # to the address of a guide's process


class SequenceMasks:
    """The masks of one sequence, whose connection is made with the first question.

    A sequence that is computed again after a preemption uses the masks that it has asked for.
    """

    def __init__(self, sequence: Sequence, connect: ConnectMasks) -> None:
        self._sequence = sequence
        self._connect = connect
        self._source: MaskSource | None = None
        self._failure: GuidesUnavailableError | None = None
        self._known_tokens = len(sequence.tokens)  # the guide constrains what follows the prompt
        self._asked_tokens = 0  # number of tokens before the position that was asked for
        self._masks: Masks | None = None  # the answer, if it has arrived

    @property
    def is_asked(self) -> bool:
        """Whether the masks of the next token have been asked for, with or without a draft."""
        return self._asked_tokens == len(self._sequence.tokens)

    def ask(self, draft: SequenceType[int]) -> None:
        """Asks for the masks of the next token and of those after each draft token, once for each position."""
        if self.is_asked:
            return
        tokens = self._sequence.tokens
        accepted, self._known_tokens = tokens[self._known_tokens :], len(tokens)
        self._asked_tokens = len(tokens)
        self._masks = None
        try:
            if self._source is None:
                self._source = self._connect(self._sequence.request.guide_address or "")
            self._source.ask(accepted, draft)
        except OSError as error:  # no descriptor is left
            self._failure = GuidesUnavailableError("Structured output is not available at the moment. Retry shortly.")
            self._failure.__cause__ = error

    def take(self) -> Masks | None:
        """Returns the masks that were asked for last; None if they have not arrived.

        Raises GuideError if the guide can't be followed any further, and GuidesUnavailableError.
        """
        if self._failure is not None:
            raise self._failure
        if self._masks is None and self._source is not None:
            self._masks = self._source.receive()
        return self._masks

    def fileno(self) -> int:
        """The descriptor that becomes readable when the masks have arrived, -1 if there is no connection."""
        return -1 if self._source is None else self._source.fileno()

    def close(self) -> None:
        """Closes the connection, which frees the request's state in the guide's process."""
        if self._source is not None:
            self._source.close()


@dataclass(frozen=True)
class StalledChunk:
    """A chunk whose logits are computed and whose masks have not arrived. It has no draft."""

    chunk: ScheduledChunk
    rows: npt.NDArray[np.float32]  # [1, vocab_size]
    since_s: float  # time of the engine's clock
