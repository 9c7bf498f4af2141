"""Faults of a broken engine that a script can trigger, for tests of everything that runs on top of an executor."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from llm_pipeline.executors.port import OutputSink
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput

_UNKNOWN_KEY = "unknown"


class Fault(str, Enum):
    """Ways in which an engine breaks the rules of the executor port."""

    REFUSES = "refuses"  # submit raises RuntimeError
    RAISES = "raises"  # computing a step raises
    FOREIGN_KEY = "foreign_key"  # tokens and an end for a request that was never submitted
    BAD_IDS = "bad_ids"  # a token id outside the vocabulary
    WRONG_TYPES = "wrong_types"  # tokens that are not numbers
    NO_TUPLE = "no_tuple"  # a number instead of a tuple of tokens
    TOO_MANY = "too_many"  # tokens beyond max_tokens
    AFTER_END = "after_end"  # tokens and a second end after the end


def faulty_steps(
    fault: Fault, request: GenerationRequest, token_ids: tuple[int, ...], word: int, sink: OutputSink
) -> Iterator[StepOutput]:
    """Yields `token_ids`, then the fault, then the token `word` until the request is cancelled.

    Faults that concern more than one step at a time send the extra ones straight to `sink`.
    """
    key = request.key
    for token_id in token_ids:
        yield StepOutput(key, (token_id,))
    if fault is Fault.RAISES:
        raise RuntimeError("the script fails a step")
    if fault is Fault.FOREIGN_KEY:
        sink([StepOutput(_UNKNOWN_KEY, (word,)), StepOutput(_UNKNOWN_KEY, (), FinishReason.STOP)])
        yield StepOutput(key, (word,), FinishReason.LENGTH)
    elif fault is Fault.AFTER_END:
        sink([StepOutput(key, (word,), FinishReason.STOP), StepOutput(key, (word,))])
        yield StepOutput(key, (word,), FinishReason.LENGTH)
    invalid_token_ids: dict[Fault, Any] = {
        Fault.BAD_IDS: (10**6,),
        Fault.WRONG_TYPES: (word, "a word", None),
        Fault.NO_TUPLE: word,
        Fault.TOO_MANY: (word,) * 10_000,
    }
    yield StepOutput(key, invalid_token_ids[fault])
    while True:
        yield StepOutput(key, (word,))
