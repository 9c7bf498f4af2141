"""A Generator that plays scripts instead of asking Triton, by the rules of the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo

# A chunk to hand out, an error to raise, an event to wait for, or FOREVER.
Step = TextChunk | PipelineError | Exception | asyncio.Event
Script = Callable[[CompletionParameters], Sequence[Step]]

WORDS = (" Paris", ",", " the", " city", " of", " light", " and", " of", " bridges", ".")
PROMPT_TOKENS = 5


def chunks(*texts: str, reason: FinishReason = FinishReason.LENGTH, with_ids: bool = False) -> list[TextChunk]:
    """One chunk per text and token, the last with the reason."""
    made = [
        TextChunk(text, number, (100 + number,) if with_ids else None, PROMPT_TOKENS if number == 1 else None)
        for number, text in enumerate(texts, 1)
    ]
    made[-1] = replace(made[-1], finish_reason=reason, prompt_tokens=PROMPT_TOKENS)
    return made


def some_words(parameters: CompletionParameters) -> list[Step]:
    """Up to max_tokens words."""
    count = min(parameters.max_tokens or 4, len(WORDS))
    return list(chunks(*WORDS[:count], with_ids=parameters.return_token_ids))


def forever(after: int = 1) -> Script:
    """A few words, and then nothing until the request is stopped."""
    return lambda _: [*chunks(*WORDS[: after + 1])[:after], asyncio.Event()]


class FakeGenerator:
    """Plays `script` for each request; remembers what was asked and what was stopped."""

    def __init__(self, script: Script = some_words) -> None:
        self.script = script
        self.is_up = True
        self.warm_up_text = " Paris"
        self.asked: list[CompletionParameters] = []
        self.stopped: list[str] = []
        self.running: set[str] = set()
        self.failing_stops = 0
        self.is_closed = False
        self.description = ModelInfo(64, 1000, 16, False, CAPABILITIES["cpu"])
        self._stops: dict[str, asyncio.Event] = {}
        self._stop_seen = asyncio.Event()

    async def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        if parameters.request_id.startswith("warm-up"):
            yield TextChunk(self.warm_up_text, 1, None, PROMPT_TOKENS, FinishReason.LENGTH)
            return
        self.asked.append(parameters)
        self.running.add(parameters.request_key)
        try:
            async for chunk in self._play(parameters):
                yield chunk
        finally:
            self.running.discard(parameters.request_key)

    async def _play(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        stop = self._stops.setdefault(parameters.request_key, asyncio.Event())
        held: list[TextChunk] = []
        for step in self.script(parameters):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await _first_of(step, stop)
            if stop.is_set():
                yield TextChunk("", 0, finish_reason=FinishReason.CANCELLED)
                return
            if isinstance(step, TextChunk):
                await asyncio.sleep(0)
                held.append(step)
                if parameters.stream:
                    yield held.pop()
        if held:
            yield replace(
                held[-1],
                text="".join(chunk.text for chunk in held),
                token_ids=tuple(i for chunk in held for i in chunk.token_ids or ()) or None,
            )

    async def cancel(self, key: str) -> None:
        if self.failing_stops:
            self.failing_stops -= 1
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "no")
        self.stopped.append(key)
        self._stops.setdefault(key, asyncio.Event()).set()
        self._stop_seen.set()

    async def until_stopped(self, count: int = 1) -> None:
        """Waits until that many requests were stopped."""
        while len(self.stopped) < count:
            self._stop_seen.clear()
            await asyncio.wait_for(self._stop_seen.wait(), 5)

    async def get_model_info(self) -> ModelInfo:
        if not self.is_up:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "no")
        return self.description

    async def is_ready(self) -> bool:
        return self.is_up

    async def close(self) -> None:
        self.is_closed = True


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
