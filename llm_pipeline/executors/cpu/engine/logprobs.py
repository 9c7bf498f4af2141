"""Logprobs: natural logarithms of token probabilities, by the log-softmax of the model's unprocessed logits.

That is vLLM's default (`raw_logprobs`): temperature, penalties, bias and filters do not change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.messages import TopLogprobs

Rows: TypeAlias = "npt.NDArray[np.float32]"  # [count, vocab_size]
_ROWS_AT_ONCE = 16  # a row of a large vocabulary takes half a megabyte, and every operation a copy


def compute_logprobs(rows: Rows, token_ids: Sequence[int], top_count: int) -> tuple[list[float], list[TopLogprobs]]:
    """Returns, for each row of logits, the logprob of its token and the `top_count` most likely tokens.

    `rows` is f32 [len(token_ids), vocab_size]. The most likely token comes first; the second list is empty if
    `top_count` is 0. A token's own logprob equals its value among the top ones exactly.
    """
    values: list[float] = []
    tops: list[TopLogprobs] = []
    for start in range(0, len(token_ids), _ROWS_AT_ONCE):
        logprobs = _log_softmax(rows[start : start + _ROWS_AT_ONCE])
        ids = token_ids[start : start + _ROWS_AT_ONCE]
        values += logprobs[np.arange(len(ids)), list(ids)].tolist()
        if top_count:
            tops += _top(logprobs, top_count)
    return values, tops


def _log_softmax(rows: Rows) -> Rows:
    shifted: Rows = rows - rows.max(axis=1, keepdims=True)
    # The sum in float64: its rounding would otherwise depend on the vocabulary's order.
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted


def _top(logprobs: Rows, count: int) -> list[TopLogprobs]:
    count = min(count, logprobs.shape[1])
    ids = np.argpartition(logprobs, -count, axis=1)[:, -count:]
    values = np.take_along_axis(logprobs, ids, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    ids, values = np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
    return [
        (tuple(row_ids), tuple(row_values)) for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]
