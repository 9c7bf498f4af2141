"""Scripts, and the steps that a scripted or synthetic answer consists of.

A script file is a JSON list of objects, see `Script`. The first script whose `prompt_ids` equal the prompt's, or that
has none, is replayed. Without a matching script, tokens are synthesized until `max_tokens`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.executors.scripted.faults import Fault
from llm_pipeline.protocol.errors import internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput

_log = logging.getLogger(__name__)
_SYNTHETIC_WORDS = 997  # prime, so that streams of different prompts do not run in step


class Script(BaseModel):
    """A scripted answer: `token_ids`, then one of the ways to go on, by default a finish reason.

    `finish` is "stop" or "length". `error` fails the request; its text goes to the log. `stall` sends no more tokens
    until the request is cancelled. `fault` breaks a rule of the executor port.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_ids: tuple[int, ...] | None = None  # unset: matches any prompt
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    error: str | None = None
    stall: bool = False
    fault: Fault | None = None


def read_scripts(path: Path | None) -> list[Script]:
    """Returns the scripts of a file; an empty list without one. Raises ValidationError if the file is invalid."""
    if path is None:
        return []
    return TypeAdapter(list[Script]).validate_json(path.read_bytes())


def find_script(scripts: Sequence[Script], request: GenerationRequest) -> Script | None:
    """Returns the first script that matches the request's prompt."""
    return next((script for script in scripts if script.prompt_ids in (None, request.prompt_ids)), None)


def synthetic_words(engine_dir: Path) -> list[int]:
    """Returns ids of tokens that are words with a leading space, so that synthetic output looks like text."""
    vocabulary: dict[str, Any] = orjson.loads((engine_dir / TOKENIZER_NAME).read_bytes())["model"]["vocab"]
    ids = [
        token_id
        for piece, token_id in vocabulary.items()
        if piece[:1] in ("Ġ", "▁") and piece[1:].isascii() and piece[1:].isalpha()
    ]
    return sorted(ids)[:_SYNTHETIC_WORDS] or [0]


def replay(request: GenerationRequest, script: Script) -> Iterator[StepOutput]:
    """Yields the script's steps, one token each, cut at `max_tokens`."""
    ids = script.token_ids[: request.max_tokens]
    reason = FinishReason.LENGTH if len(script.token_ids) >= request.max_tokens else FinishReason.STOP
    if len(ids) == len(script.token_ids):  # nothing was cut off, so the script's own finish reason applies
        reason = script.finish or reason
    if script.error is None and not script.stall and ids:
        for token_id in ids[:-1]:
            yield StepOutput(request.key, (token_id,))
        yield StepOutput(request.key, ids[-1:], reason)
        return
    for token_id in ids:
        yield StepOutput(request.key, (token_id,))
    if script.error is not None:
        _log.error("the script fails a request: %s", script.error)
        yield StepOutput(request.key, error=internal_error())  # an engine's error texts are not for clients
    elif not script.stall:
        yield StepOutput(request.key, finish_reason=reason)


def synthesize(request: GenerationRequest, words: Sequence[int]) -> Iterator[StepOutput]:
    """Yields `max_tokens` steps of one word each; the prompt decides the first word."""
    start = sum(request.prompt_ids) % _SYNTHETIC_WORDS
    key, count = request.key, len(words)
    for position in range(start, start + request.max_tokens - 1):
        yield StepOutput(key, (words[position % count],))
    yield StepOutput(key, (words[(start + request.max_tokens - 1) % count],), FinishReason.LENGTH)


def until_stop_token(request: GenerationRequest, steps: Iterator[StepOutput]) -> Iterator[StepOutput]:
    """Yields the steps up to the first stop token after the first `min_tokens` tokens."""
    count = 0
    for step in steps:
        count += len(step.token_ids)
        if count > request.sampling.min_tokens and step.token_ids and step.token_ids[-1] in request.stop_token_ids:
            yield StepOutput(request.key, step.token_ids, FinishReason.STOP)
            return
        yield step
