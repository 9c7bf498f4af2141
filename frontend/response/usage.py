"""Token counts of a request: the `usage` object of responses."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.generation.completion_run import Choice


def token_counts(choices: Sequence[Choice]) -> tuple[int, int]:
    """Prompt and completion tokens of a request. A prompt counts once, however many choices it has, as OpenAI does."""
    prompts = {choice.prompt_index: choice.prompt_tokens for choice in choices if choice.prompt_tokens}
    return sum(prompts.values()), sum(choice.completion_tokens for choice in choices)


def usage_object(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The `usage` of a response, a chunk or a stream."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
