"""Facts about live requests: as an object, and as arrays, one row for each, so that a step is a few array operations.

Requests are numbered from 0 upwards. A number is never used again, so a late step of a request that has ended here
cannot be mistaken for a step of another one. The row of a request is its number modulo the capacity; a number whose
row is taken is skipped.

No locks here: the rows are guarded by the registry of live requests (live_requests.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.engine_metrics import RequestTimes, TracedRequest
from llm_pipeline.protocol.messages import EngineStep, GenerationRequest, IntArray, RequestEnd
from llm_pipeline.stages.decode.channel_outbox import ChannelOutbox
from llm_pipeline.stages.decode.outbox import Outbox

CAPACITY = 1 << 16
"""Most live requests. 3 MB for all arrays."""

OWN_STREAM = 0
"""The outlet of requests whose chunks go to a response stream of their own. Channels count from 1."""


class NoRowError(Exception):
    """All rows are taken."""


class LiveRequest:
    """One request from its registration until the executor or decode has ended it."""

    __slots__ = (
        "arrived_s",
        "begun_s",
        "cancel_ticks",
        "client_id",
        "first_token_s",
        "has_ended",
        "is_cancelled",
        "key",
        "number",
        "outlet",
        "slot",
        "trace",
    )

    def __init__(
        self,
        number: int,
        request: GenerationRequest,
        client_id: str | None,
        outlet: Outbox | ChannelOutbox,
        slot: int = 0,
    ) -> None:
        self.number = number
        self.key = request.key
        self.trace = request.trace
        self.client_id = client_id
        self.outlet = outlet
        self.slot = slot  # its number in the channel
        self.is_cancelled = False
        self.has_ended = False
        self.cancel_ticks = 0  # housekeeping ticks since the cancellation
        self.arrived_s = time.monotonic()
        self.begun_s = 0.0  # monotonic; 0 if the executor does not report it, or not yet
        self.first_token_s = 0.0  # monotonic; 0 before it

    def on_first_token(self) -> None:
        """Reports the times of a request of a channel, before the burst with its first token is taken."""
        self.first_token_s = now_s = time.monotonic()
        if self.begun_s and isinstance(self.outlet, ChannelOutbox):
            prefill_s = max(now_s - self.begun_s, 0.0)
            self.outlet.add_times(RequestTimes(max(self.begun_s - self.arrived_s, 0.0), prefill_s))

    def on_end(self, end: RequestEnd) -> None:
        """Reports a traced request of a channel, before the burst with its end is taken."""
        trace = self.trace
        if trace is None or not isinstance(self.outlet, ChannelOutbox):
            return
        to_unix_s = time.time() - time.monotonic()
        self.outlet.add_traced(
            TracedRequest(
                trace.traceparent,
                trace.tracestate,
                trace.choice,
                arrived_s=self.arrived_s + to_unix_s,
                ended_s=time.monotonic() + to_unix_s,
                begun_s=self.begun_s + to_unix_s if self.begun_s else None,
                first_token_s=self.first_token_s + to_unix_s if self.first_token_s else None,
                finish_reason=None if end.finish_reason is None else end.finish_reason.value,
                error=None if end.error is None else end.error.code.value,
            )
        )


@dataclass(frozen=True)
class Advance:
    """The part of an engine step that counts: the tokens of live requests, up to max_tokens of each.

    `rows` and `numbers` are int64 [n], each request at most once, `counts` int64 [n] the number of tokens of each,
    and `token_ids` integers [sum of counts]. `invalid` are numbers of requests with a token id that is not in the
    vocabulary; they are not in the arrays. `complete` are those that have reached max_tokens.
    """

    rows: IntArray
    numbers: IntArray
    counts: IntArray
    token_ids: IntArray
    invalid: tuple[int, ...]
    complete: tuple[int, ...]
    started: tuple[int, ...]  # numbers of those whose first tokens these are

    @property
    def has_one_each(self) -> bool:
        """Whether each request has one token."""
        return len(self.token_ids) == len(self.rows)

    def select(self, is_selected: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray, IntArray]:
        """Returns the rows, counts and token ids of the selected requests, bool [n]."""
        if is_selected.all():
            return self.rows, self.counts, self.token_ids
        return (
            self.rows[is_selected],
            self.counts[is_selected],
            self.token_ids[is_selected if self.has_one_each else np.repeat(is_selected, self.counts)],
        )


class RequestRows:
    """The rows of live requests. Not thread-safe."""

    def __init__(self, vocab_size: int, capacity: int = CAPACITY) -> None:
        """`capacity` is a power of two from 2."""
        self._vocab_size = vocab_size
        self._mask = capacity - 1
        self._next_number = 0
        # A free row contains a number that belongs to another row, so it equals no number that is looked up in it.
        self._number = np.arange(capacity) ^ 1
        self._tokens_left = np.zeros(capacity, np.int64)
        self._is_active = np.zeros(capacity, np.bool_)  # has made tokens
        self._position = np.zeros(capacity, np.int64)  # in the step being checked
        self.outlet = np.zeros(capacity, np.int64)
        self.slot = np.zeros(capacity, np.int64)  # the number that the client gave a request of a channel

    def add(self, max_tokens: int, *, outlet: int = OWN_STREAM, slot: int = 0) -> int:
        """Returns the number of a new request. Raises NoRowError if all rows are taken."""
        row = self._free_row()
        number = self._next_number
        self._next_number += 1
        self._number[row] = number
        self._tokens_left[row] = max_tokens
        self._is_active[row] = False
        self.outlet[row] = outlet
        self.slot[row] = slot
        return number

    def remove(self, number: int) -> None:
        """Frees the row of a request that has ended."""
        row = number & self._mask
        self._number[row] = row ^ 1

    def advance(self, step: EngineStep) -> Advance:
        """Counts the tokens of a step. Unknown and ended requests are ignored, and so are tokens beyond max_tokens.

        Raises ValueError if the arrays do not fit together; the rows are unchanged then.
        """
        numbers = np.asarray(step.numbers)
        token_ids = np.asarray(step.token_ids)
        counts = np.ones(len(numbers), np.int64) if step.counts is None else np.asarray(step.counts)
        rows = self._checked_rows(numbers, counts, token_ids)
        counts = counts.astype(np.int64, copy=False)  # uint64 and int64 would become float64
        is_live = self._number[rows] == numbers
        if not is_live.all():
            rows, numbers, counts, token_ids = _kept(is_live, rows, numbers, counts, token_ids)
        invalid: tuple[int, ...] = ()
        if len(token_ids) and not (token_ids.min() >= 0 and token_ids.max() < self._vocab_size):
            is_bad_token = (token_ids < 0) | (token_ids >= self._vocab_size)
            owner = np.repeat(np.arange(len(rows)), counts)
            is_valid = np.ones(len(rows), np.bool_)
            is_valid[owner[is_bad_token]] = False
            invalid = tuple(numbers[~is_valid].tolist())
            rows, numbers, counts, token_ids = _kept(is_valid, rows, numbers, counts, token_ids)
        left = self._tokens_left[rows] - counts
        complete: tuple[int, ...] = ()
        least_left = left.min() if len(left) else 1
        if least_left <= 0:
            complete = tuple(numbers[left <= 0].tolist())
        if least_left < 0:
            allowed = counts + np.minimum(left, 0)
            token_ids = token_ids[_within(counts, allowed)]
            has_tokens = allowed > 0  # false for all tokens of a request for none
            rows, numbers, counts, left = rows[has_tokens], numbers[has_tokens], allowed[has_tokens], left[has_tokens]
            left = np.maximum(left, 0)
        self._tokens_left[rows] = left
        is_active = self._is_active[rows]
        self._is_active[rows] = True
        return Advance(
            rows,
            numbers,
            counts,
            token_ids,
            invalid=invalid,
            complete=complete,
            started=() if is_active.all() else tuple(numbers[~is_active].tolist()),
        )

    def _free_row(self) -> int:
        for _ in range(len(self._number)):
            row = self._next_number & self._mask
            if self._number[row] & self._mask != row:
                return row
            self._next_number += 1
        raise NoRowError

    def _checked_rows(self, numbers: IntArray, counts: IntArray, token_ids: IntArray) -> IntArray:
        if not all(array.ndim == 1 and array.dtype.kind in "iu" for array in (numbers, counts, token_ids)):
            raise ValueError("numbers, counts and token ids must be one-dimensional arrays of integers")
        if len(counts) != len(numbers) or counts.sum() != len(token_ids) or (len(counts) and counts.min() < 1):
            raise ValueError("the counts do not match the numbers and the token ids")
        rows: IntArray = numbers & self._mask
        positions = np.arange(len(rows))
        self._position[rows] = positions
        if not (self._position[rows] == positions).all():
            # Two live requests never share a row, so this is one request twice, or an ended one beside a live one.
            is_live = self._number[rows] == numbers
            if len(np.unique(rows[is_live])) != is_live.sum():
                raise ValueError("a request occurs twice in one step")
        return rows


def named_numbers(step: object) -> list[Any]:
    """Returns the numbers that an invalid step names, as far as they can be read. They may be of no request."""
    named = [*_items(step, "numbers"), *(getattr(end, "number", None) for end in _items(step, "ends"))]
    return [number for number in named if isinstance(number, (int, float, np.number))]


def _items(owner: object, name: str) -> list[Any]:
    """Returns the items of an attribute that may be anything."""
    try:
        return list(getattr(owner, name, ()))
    except TypeError:
        return []


def _kept(
    is_kept: npt.NDArray[np.bool_], rows: IntArray, numbers: IntArray, counts: IntArray, token_ids: IntArray
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    return rows[is_kept], numbers[is_kept], counts[is_kept], token_ids[np.repeat(is_kept, counts)]


def _within(counts: IntArray, allowed: IntArray) -> npt.NDArray[np.bool_]:
    """Selects the first `allowed` of each request's `counts` tokens: bool [sum of counts]."""
    starts = np.cumsum(counts) - counts
    place = np.arange(counts.sum()) - np.repeat(starts, counts)
    selected: npt.NDArray[np.bool_] = place < np.repeat(allowed, counts)
    return selected
