"""A Generator that pushes scripted chunks instead of calling Triton, under the same rules as the real ones.

For tests, and with BACKEND=fake for work on clients without a model:

    FakeGenerator()                                          completes any prompt with fixed text
    FakeGenerator(script=lambda parameters: chunks("a", "b"))  two chunks, the second with a finish reason
    FakeGenerator(script=forever())                          one chunk, then nothing until the request is cancelled
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

from frontend.backends.generator import OnChunk
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.protocol.model_info import DEFAULT_TEMPLATE, ChatFormat, ModelInfo

# A chunk to push, an error to raise, or an event to wait for. A cancellation ends the script at its next step.
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT_FORMAT = ChatFormat(
    templates=((DEFAULT_TEMPLATE, _TEMPLATE),),
    bos_token="",
    eos_token="<|im_end|>",
    special_tokens=("<|im_start|>", "<|im_end|>"),
    added_tokens=(),
    template_sha256="",
)
"""ChatML, without tools."""

ScriptStep: TypeAlias = TextChunk | Exception | asyncio.Event
CompletionScript: TypeAlias = Callable[[CompletionParameters], Iterable[ScriptStep]]

WORDS = (" Paris", ",", " the", " city", " of", " light", " and", " of", " bridges", ".")
PROMPT_TOKENS = 5
_DEFAULT_MAX_TOKENS = 4


def chunks(*texts: str, reason: FinishReason = FinishReason.LENGTH, with_ids: bool = False) -> list[TextChunk]:
    """One chunk of one token for each text; the last has the finish reason."""
    result = [
        TextChunk(text, number, (100 + number,) if with_ids else None, PROMPT_TOKENS if number == 1 else None)
        for number, text in enumerate(texts, 1)
    ]
    if with_ids:
        result[0] = replace(result[0], prompt_token_ids=tuple(range(1, PROMPT_TOKENS + 1)))
    result[-1] = replace(result[-1], finish_reason=reason, prompt_tokens=PROMPT_TOKENS)
    return result


def fixed_words(parameters: CompletionParameters) -> list[TextChunk]:
    """Up to `max_tokens` of WORDS, one per token."""
    count = min(parameters.max_tokens or _DEFAULT_MAX_TOKENS, len(WORDS))
    return chunks(*WORDS[:count], with_ids=parameters.return_token_ids)


def forever(after: int = 1) -> CompletionScript:
    """The first `after` words, then nothing until the request is cancelled."""
    return lambda _: [*chunks(*WORDS[: after + 1])[:after], asyncio.Event()]


class FakeGenerator:
    """Runs `script` for each request. Attributes control its failures and record its requests.

    Without `records_requests` nothing is kept of requests that have ended.
    """

    def __init__(self, script: CompletionScript = fixed_words, *, records_requests: bool = True) -> None:
        self.script = script
        self.is_up = True  # False: not ready, and without model info
        self.is_progressing = True
        self.warm_up_text = " Paris"
        self.failing_cancels = 0  # cancellations that will fail
        self.model_info = ModelInfo(64, 1000, 16, False, CAPABILITIES["cpu"], CHAT_FORMAT)
        self.requests: list[CompletionParameters] = []
        self.cancelled: list[str] = []  # request keys
        self.running: set[str] = set()  # request keys
        self.is_closed = False
        self._records_requests = records_requests
        self._cancel_events: dict[str, asyncio.Event] = {}
        self._has_cancelled = asyncio.Event()

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        """Pushes the chunks of the script: one by one when streaming, otherwise as one. Raises its exceptions."""
        if parameters.request_id.startswith("warm-up"):
            on_chunk(TextChunk(self.warm_up_text, 1, None, PROMPT_TOKENS, FinishReason.LENGTH))
            return
        key = parameters.request_key
        if self._records_requests:
            self.requests.append(parameters)
        self.running.add(key)
        try:
            await self._run_script(parameters, on_chunk)
        finally:
            self.running.discard(key)
            if not self._records_requests:
                self._cancel_events.pop(key, None)

    async def _run_script(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        cancelled = self._cancel_events.setdefault(parameters.request_key, asyncio.Event())
        unsent: list[TextChunk] = []
        for step in self.script(parameters):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await _wait_for_first(step, cancelled)
            if cancelled.is_set():
                on_chunk(TextChunk("", 0, finish_reason=FinishReason.CANCELLED))
                return
            if isinstance(step, TextChunk):
                await asyncio.sleep(0)
                unsent.append(step)
                if parameters.stream:
                    on_chunk(unsent.pop())
        if unsent:
            on_chunk(
                replace(
                    unsent[-1],
                    text="".join(chunk.text for chunk in unsent),
                    prompt_token_ids=unsent[0].prompt_token_ids,
                    token_ids=tuple(token_id for chunk in unsent for token_id in chunk.token_ids or ()) or None,
                )
            )

    async def cancel(self, key: str) -> None:
        """Ends the script of this request at its next step. Raises PipelineError for `failing_cancels` calls."""
        if self.failing_cancels:
            self.failing_cancels -= 1
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "The fake generator is set to fail.")
        if self._records_requests:
            self.cancelled.append(key)
            self._cancel_events.setdefault(key, asyncio.Event()).set()
        elif key in self._cancel_events:
            self._cancel_events[key].set()
        self._has_cancelled.set()

    async def until_cancelled(self, count: int = 1) -> None:
        """Waits until `count` requests have been cancelled. Raises TimeoutError after 5 s without a cancellation."""
        while len(self.cancelled) < count:
            self._has_cancelled.clear()
            await asyncio.wait_for(self._has_cancelled.wait(), 5)

    async def get_model_info(self) -> ModelInfo:
        """Returns `model_info`. Raises PipelineError (503) if the generator is not up."""
        if not self.is_up:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "The fake generator is down.")
        return self.model_info

    async def is_ready(self) -> bool:
        """Whether the generator is up."""
        return self.is_up

    async def close(self) -> None:
        """Records that the generator was closed."""
        self.is_closed = True


async def _wait_for_first(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
