"""Texts that are known before they are streamed, so that a stream can be checked to the last character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.executors.scripted.scripts import synthetic_words

PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "Water boils at",
    "A rolling restart is",
    "List three colours:",
)


@dataclass(frozen=True)
class Task:
    """A request and its expected text."""

    prompt: str
    max_tokens: int
    text: str


def scripted_tasks(engine_dir: Path, url: str, model: str, lengths: Sequence[int]) -> dict[int, list[Task]]:
    """Returns tasks by length. The scripted executor answers with words in a fixed order; the prompt chooses the first.

    Only the first word is asked for.
    """
    vocabulary: Mapping[str, int] = orjson.loads((engine_dir / TOKENIZER_NAME).read_bytes())["model"]["vocab"]
    pieces = {token_id: piece for piece, token_id in vocabulary.items()}
    words = [f" {pieces[token_id][1:]}" for token_id in synthetic_words(engine_dir)]
    tasks: dict[int, list[Task]] = {length: [] for length in lengths}
    for prompt in PROMPTS:
        first = words.index(_complete(url, model, prompt, 1))
        for length in lengths:
            text = "".join(words[(first + index) % len(words)] for index in range(length))
            tasks[length].append(Task(prompt, length, text))
    return tasks


def recorded_tasks(url: str, model: str, length: int) -> list[Task]:
    """Returns tasks with the greedy texts of an engine that has nothing else to do."""
    return [Task(prompt, length, _complete(url, model, prompt, length)) for prompt in PROMPTS]


def _complete(url: str, model: str, prompt: str, max_tokens: int) -> str:
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=120, trust_env=False, verify=False)
    text: str = response.raise_for_status().json()["choices"][0]["text"]
    return text
