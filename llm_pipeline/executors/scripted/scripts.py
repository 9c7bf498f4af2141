"""Scripts, and the outputs that a scripted answer consists of.

A script file is a JSON list of objects, see `Script`. The first script whose `prompt_ids` equal the prompt's, or that
has none, is replayed. Without a matching script, the text is synthetic (synthetic.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.executors.scripted.faults import Fault, faulty_outputs
from llm_pipeline.executors.step_builder import RequestOutput
from llm_pipeline.protocol.errors import internal_error
from llm_pipeline.protocol.messages import EngineStep, FinishReason, GenerationRequest

_log = logging.getLogger(__name__)
_SYNTHETIC_WORDS = 997


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


def outputs_of(
    script: Script, number: int, request: GenerationRequest, word: int
) -> Iterator[RequestOutput | EngineStep]:
    """Yields the outputs of the request in its steps; an EngineStep is a fault (faults.py). `word` is any token."""
    if script.fault is not None:
        return faulty_outputs(script.fault, number, script.token_ids, word)
    return _until_stop_token(request, _replay(request, script))


def _replay(request: GenerationRequest, script: Script) -> Iterator[RequestOutput]:
    """Yields the script's outputs, one token each, cut at `max_tokens`."""
    ids = script.token_ids[: request.max_tokens]
    reason = FinishReason.LENGTH if len(script.token_ids) >= request.max_tokens else FinishReason.STOP
    if len(ids) == len(script.token_ids):  # nothing was cut off, so the script's own finish reason applies
        reason = script.finish or reason
    if script.error is None and not script.stall and ids:
        for token_id in ids[:-1]:
            yield RequestOutput((token_id,))
        yield RequestOutput(ids[-1:], reason)
        return
    for token_id in ids:
        yield RequestOutput((token_id,))
    if script.error is not None:
        _log.error("the script fails a request: %s", script.error)
        yield RequestOutput(error=internal_error())  # an engine's error texts are not for clients
    elif not script.stall:
        yield RequestOutput(finish_reason=reason)


def _until_stop_token(request: GenerationRequest, outputs: Iterator[RequestOutput]) -> Iterator[RequestOutput]:
    """Yields the outputs up to the first stop token after the first `min_tokens` tokens."""
    count = 0
    for output in outputs:
        count += len(output.token_ids)
        if count > request.sampling.min_tokens and output.token_ids and output.token_ids[-1] in request.stop_token_ids:
            yield RequestOutput(output.token_ids, FinishReason.STOP)
            return
        yield output
