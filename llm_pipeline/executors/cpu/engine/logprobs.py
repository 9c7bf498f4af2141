"""Log probs of tokens: the log-softmax of the model's own logits, before temperature, penalties, bias and filters.

That is vLLM's default (`raw_logprobs`): the same numbers whatever a request's sampling is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.messages import TopLogprobs

Rows: TypeAlias = "npt.NDArray[np.float32]"  # [count, vocab_size]
_ROWS_AT_ONCE = 16  # a row of a large vocabulary takes half a megabyte, and every operation a copy


def log_probs_of(rows: Rows, token_ids: Sequence[int], top_count: int) -> tuple[list[float], list[TopLogprobs]]:
    """Of each row, its token's log prob and the `top_count` most likely tokens, most likely first.

    Without `top_count` the second list is empty. A token's own value is the very number that it has among the top ones.
    """
    values: list[float] = []
    tops: list[TopLogprobs] = []
    for start in range(0, len(token_ids), _ROWS_AT_ONCE):
        part = _log_softmax(rows[start : start + _ROWS_AT_ONCE])
        ids = token_ids[start : start + _ROWS_AT_ONCE]
        values += part[np.arange(len(ids)), list(ids)].tolist()
        if top_count:
            tops += _top(part, top_count)
    return values, tops


def _log_softmax(rows: Rows) -> npt.NDArray[np.float32]:
    shifted: npt.NDArray[np.float32] = rows - rows.max(axis=1, keepdims=True)
    # The sum in float64: its rounding would otherwise depend on the vocabulary's order.
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted


def _top(log_probs: npt.NDArray[np.float32], count: int) -> list[TopLogprobs]:
    count = min(count, log_probs.shape[1])
    ids = np.argpartition(log_probs, -count, axis=1)[:, -count:]
    values = np.take_along_axis(log_probs, ids, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    ids, values = np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
    return [(tuple(each), tuple(numbers)) for each, numbers in zip(ids.tolist(), values.tolist(), strict=True)]
