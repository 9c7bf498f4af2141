"""Separates what a model writes before its answer, its reasoning, from the answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llm_pipeline.text.stop_strings import StopMatcher


@dataclass(frozen=True)
class ReasoningMarkers:
    """What a family of models writes before and after its reasoning."""

    start: str
    end: str


MARKERS = (
    ReasoningMarkers("<think>", "</think>"),  # DeepSeek R1, Qwen 3, GLM 4.5, SmolLM 3
    ReasoningMarkers("[THINK]", "[/THINK]"),  # Magistral
    ReasoningMarkers("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)


def markers_of(templates: Iterable[str]) -> ReasoningMarkers | None:
    """The markers that a model's chat templates contain; None if the model does not reason."""
    source = "\n".join(templates)
    return next((markers for markers in MARKERS if markers.end in source), None)


def ends_in_reasoning(prompt: str, markers: ReasoningMarkers) -> bool:
    """Whether a prompt ends with the start of reasoning, as some templates write it for the model."""
    return prompt.rstrip().endswith(markers.start)


class ReasoningSplitter:
    """Splits text into reasoning and answer, without the markers and the line breaks beside them.

    Reasoning is only what the text begins with, after space. `is_inside`: the text begins within reasoning.
    """

    def __init__(self, markers: ReasoningMarkers, *, is_inside: bool) -> None:
        self._markers = markers
        self._end = StopMatcher((markers.end,))
        self._is_inside = is_inside
        self._is_over = False
        self._start_read = ""  # what may be the start marker, with the space before it
        self._at_line_breaks = is_inside  # that are dropped
        self._line_breaks: list[str] = []  # at the end of the reasoning so far

    def feed(self, text: str) -> tuple[str, str]:
        """Returns the next pieces of reasoning and of the answer."""
        if self._is_over:
            return "", self._without_line_breaks(text)
        if not self._is_inside:
            self._start_read += text
            bare, start = self._start_read.lstrip(), self._markers.start
            if len(bare) < len(start) and start.startswith(bare):
                return "", ""
            read, self._start_read = self._start_read, ""
            if not bare.startswith(start):
                self._is_over = True
                return "", read
            self._is_inside = self._at_line_breaks = True
            text = bare[len(start) :]
        reasoning, end = self._end.feed(text)
        reasoning = self._inner(reasoning)
        if end is None:
            return reasoning, ""
        # Where the text was held back, `end` counts from the beginning of the last piece.
        self._is_over, self._at_line_breaks, self._line_breaks = True, True, []
        return reasoning, self._without_line_breaks(text[end:])

    def finish(self) -> tuple[str, str]:
        """Returns the rest of both."""
        if self._is_over or not self._is_inside:
            return "", self._start_read
        return self._inner(self._end.flush()), ""

    def _without_line_breaks(self, text: str) -> str:
        if self._at_line_breaks:
            text = text.lstrip("\n")
            self._at_line_breaks = not text
        return text

    def _inner(self, text: str) -> str:
        """Reasoning without the line breaks at its ends, of which the last are known only at its end."""
        text = self._without_line_breaks(text)
        content = text.rstrip("\n")
        if not content:
            if text:
                self._line_breaks.append(text)
            return ""
        before, self._line_breaks = "".join(self._line_breaks), []
        if len(content) < len(text):
            self._line_breaks.append(text[len(content) :])
        return before + content
