"""Faults of a broken engine that a script can trigger, for tests of everything that runs on top of an executor."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import numpy as np

from llm_pipeline.executors.step_builder import RequestOutput
from llm_pipeline.protocol.messages import EngineStep, FinishReason, RequestEnd

_FOREIGN_NUMBER = 2**62


class Fault(str, Enum):
    """Ways in which an engine breaks the rules of the executor port."""

    REFUSES = "refuses"  # submit raises RuntimeError
    RAISES = "raises"  # computing a step raises
    FOREIGN_NUMBER = "foreign_number"  # tokens and an end for a request that was never submitted
    BAD_IDS = "bad_ids"  # a token id outside the vocabulary
    FLOAT_IDS = "float_ids"  # token ids that are not integers
    MISSING_IDS = "missing_ids"  # fewer token ids than the counts add up to
    REPEATED_NUMBER = "repeated_number"  # a request twice in one step
    TOO_MANY = "too_many"  # tokens beyond max_tokens
    AFTER_END = "after_end"  # tokens and a second end after the end


def faulty_outputs(
    fault: Fault, number: int, token_ids: tuple[int, ...], word: int
) -> Iterator[RequestOutput | EngineStep]:
    """Yields `token_ids`, then the fault, then the token `word` until the request is cancelled.

    An EngineStep is for the sink as it is and apart from other requests, whose output it would spoil.
    """
    for token_id in token_ids:
        yield RequestOutput((token_id,))
    if fault is Fault.RAISES:
        raise RuntimeError("the script fails a step")
    if fault in (Fault.FOREIGN_NUMBER, Fault.AFTER_END):
        ended = number if fault is Fault.AFTER_END else _FOREIGN_NUMBER
        yield _step([ended], [word], ends=[RequestEnd(ended, FinishReason.STOP)])
        yield RequestOutput((word,))
        yield RequestOutput((word,), FinishReason.LENGTH)
    yield _invalid_output(fault, number, word)
    while True:
        yield RequestOutput((word,))


def _invalid_output(fault: Fault, number: int, word: int) -> RequestOutput | EngineStep:
    if fault is Fault.BAD_IDS:
        return RequestOutput((10**6,))
    if fault is Fault.TOO_MANY:
        return RequestOutput((word,) * 10_000)
    if fault is Fault.MISSING_IDS:
        return _step([number], [word], counts=[3])
    if fault is Fault.REPEATED_NUMBER:
        return _step([number, number], [word, word])
    assert fault is Fault.FLOAT_IDS
    return EngineStep(np.array([number], np.int64), np.array([word + 0.5]))


def _step(
    numbers: list[int], token_ids: list[int], *, counts: list[int] | None = None, ends: list[RequestEnd] | None = None
) -> EngineStep:
    return EngineStep(
        np.array(numbers, np.int64),
        np.array(token_ids, np.int64),
        None if counts is None else np.array(counts, np.int64),
        ends or (),
    )
