"""`tensorrt_llm.executor.result`: one result object for each request, which every response changes in place.

Its queue belongs to the event loop in which `generate_async` was called, and a step wakes all queues of its results in
the loop of the first: results of different loops lose their wake-ups, as upstream's do ("all the loops are identical").
An error leaves the result unfinished: to iterate over it again is to wait without end.
"""

from __future__ import annotations

import asyncio
import json
import queue
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorrt_llm.executor.utils import has_event_loop
from tensorrt_llm.llm_facts import make_dataclass

Logprob = make_dataclass("tensorrt_llm.executor.result.Logprob")

_FINISH_REASONS = {"END_ID": "stop", "STOP_WORDS": "stop", "LENGTH": "length", "TIMED_OUT": "timeout"}


class _OutputMethods:
    """Differences to the previous response; the lengths are set by the result that owns the output."""

    __slots__ = ("_last_logprobs_len", "_last_text_len", "_last_token_ids_len")

    def __post_init__(self) -> None:
        self._last_text_len = self._last_token_ids_len = self._last_logprobs_len = 0

    @property
    def length(self: Any) -> int:
        return len(self.token_ids)

    @property
    def text_diff(self: Any) -> str:
        return str(self.text[self._last_text_len :])

    @property
    def token_ids_diff(self: Any) -> list[int]:
        return list(self.token_ids[self._last_token_ids_len :])

    @property
    def logprobs_diff(self: Any) -> list[Any]:
        return list(self.logprobs[self._last_logprobs_len :])


CompletionOutput = make_dataclass("tensorrt_llm.executor.CompletionOutput", _OutputMethods)


@dataclass(frozen=True)
class Response:
    """A response of the worker to one request: an error, or new tokens with all log probs so far."""

    error: str | None = None
    token_ids: Sequence[int] = ()
    log_probs: list[Any] | None = None
    prompt_log_probs: list[Any] | None = None
    finish: str = "NOT_FINISHED"
    cached_tokens: int = 0


class AsyncQueue:
    """A queue of one event loop that other threads fill."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._event = asyncio.Event()

    def put(self, item: Any) -> None:
        """Adds an item without waking anyone; see notify_many."""
        self._items.append(item)

    async def get(self, timeout: float | None = None) -> Any:
        while not self._items:
            self._event.clear()
            await asyncio.wait_for(self._event.wait(), timeout)
        return self._items.popleft()

    @staticmethod
    def notify_many(queues: Sequence[AsyncQueue]) -> None:
        """Wakes the readers of all queues in the loop of the first one."""

        def notify() -> None:
            for item in queues:
                item._event.set()

        try:
            queues[0].loop.call_soon_threadsafe(notify)
        except RuntimeError:
            return  # the loop is closed; upstream logs a warning


def new_queue() -> Any:
    return AsyncQueue() if has_event_loop() else queue.Queue()


@dataclass(eq=False)
class GenerationResult:
    """The output of one request. Made by the LLM."""

    request_id: int
    prompt_token_ids: list[int]
    sampling_params: Any
    streaming: bool
    tokenizer: Any
    abort_request: Callable[[int], None]
    handle_error: Callable[[str | None], None]  # raises the error, or one of the background
    prompt: str | None = None
    queue: Any = field(default_factory=new_queue)
    decoding_iter: int = 0
    cached_tokens: int = 0
    context_logits: None = None

    def __post_init__(self) -> None:
        self._outputs = [CompletionOutput(index) for index in range(self.sampling_params.best_of)]
        self._done = self._aborted = False

    @property
    def outputs(self) -> list[Any]:
        return self._outputs[: self.sampling_params.n]

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self.abort_request(self.request_id)
        self._aborted = True

    def aborted(self) -> bool:
        return self._aborted

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Waits for the end, however long: upstream ignores `timeout`."""
        del timeout
        while not self._done:
            assert not isinstance(self.queue, AsyncQueue), "the stand-in waits for async results in their loop only"
            self._handle(self.queue.get())
        return self

    async def aresult(self) -> GenerationResult:
        async for _ in self:
            pass
        return self

    def __await__(self) -> Any:
        return self.aresult().__await__()

    def __aiter__(self) -> GenerationResult:
        return self

    async def __anext__(self) -> GenerationResult:
        if self._done:
            raise StopAsyncIteration
        assert isinstance(self.queue, AsyncQueue), (
            "The asyncio event loop was not present during initialization, so async operations are not available."
        )
        self._handle(await self.queue.get())
        return self

    def _handle(self, response: Response) -> None:
        if response.error is not None:
            self.handle_error(response.error)
        self._done = response.finish != "NOT_FINISHED"
        self.decoding_iter += 1
        self.cached_tokens = response.cached_tokens
        output = self._outputs[0]
        output._last_token_ids_len = len(output.token_ids)
        output.token_ids.extend(response.token_ids)
        if response.prompt_log_probs is not None:
            output.prompt_logprobs = response.prompt_log_probs
        if response.log_probs is not None:
            output._last_logprobs_len = len(output.logprobs)
            output.logprobs += response.log_probs[output._last_logprobs_len :]
        if response.finish == "CANCELLED":
            output.finish_reason = "cancelled"
        elif self._done:
            output.finish_reason = _FINISH_REASONS[response.finish]
        if response.finish == "STOP_WORDS":
            self._cut_stop_word(output)
        self._detokenize(output)
        self.handle_error(None)

    def _cut_stop_word(self, output: Any) -> None:
        """Removes the stop word from the ids, whose last tokens the caller may have received before."""
        for reason, ids in self.sampling_params._get_stop_reasons_and_words():
            if output.token_ids[-len(ids) :] == ids:
                output.stop_reason = reason
                if not self.sampling_params.include_stop_str_in_output:
                    output.token_ids = output.token_ids[: -len(ids)]
                return

    def _detokenize(self, output: Any) -> None:
        """Sets the whole text so far, and ends at a stop string in it."""
        if self.tokenizer is None or not self.sampling_params.detokenize:
            return
        output._last_text_len = len(output.text)
        output.text = self.tokenizer.decode(output.token_ids)
        for reason, _ in self.sampling_params._get_stop_reasons_and_words():
            if isinstance(reason, str) and reason in output.text:
                end = output.text.find(reason)
                output.text = output.text[: end + len(reason) * self.sampling_params.include_stop_str_in_output]
                output.finish_reason, output.stop_reason = "stop", reason
                self.abort()
                self._done = True
                return


class IterationResult:
    """Statistics of the iterations, for one reader. A time-out ends the iteration until the next request."""

    def __init__(self) -> None:
        self.queue = new_queue()
        self._done = False
        self._timeout: float | None = 2

    def set_timeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def mark_undone(self) -> None:
        self._done = False

    def get_results(self) -> list[dict[str, Any]]:
        results = []
        while not self._done:
            try:
                results.append(json.loads(self.queue.get(timeout=self._timeout)))
            except queue.Empty:  # noqa: PERF203 - it ends the loop
                self._done = True
        return results

    def __aiter__(self) -> IterationResult:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._done:
            raise StopAsyncIteration
        try:
            data: dict[str, Any] = json.loads(await self.queue.get(timeout=self._timeout))
        except asyncio.TimeoutError as error:
            self._done = True
            raise StopAsyncIteration from error
        return data
