"""Selects the completions that a response returns when best_of is greater than n."""

from __future__ import annotations

from collections.abc import Sequence

from llm_pipeline.protocol.messages import TextChunk


def select_best_of(chunks: Sequence[Sequence[TextChunk]], *, candidates: int, n: int) -> list[int]:
    """Indices of the completions to return, in the order of the response. `chunks` are those of each completion.

    Of each prompt's `candidates` completions, the `n` with the highest logprob per token, best first.
    """
    indices = range(len(chunks))
    if candidates == n:
        return list(indices)
    selected: list[int] = []
    for start in indices[::candidates]:
        ranked = sorted(
            indices[start : start + candidates], key=lambda index: _logprob_per_token(chunks[index]), reverse=True
        )
        selected += ranked[:n]
    return selected


def _logprob_per_token(chunks: Sequence[TextChunk]) -> float:
    last = chunks[-1]
    return (last.cumulative_logprob or 0.0) / max(last.completion_tokens, 1)
