"""Completes many prompts through one ensemble: requests travel there in bundles, all text comes over one channel."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence

from frontend.backends.background_tasks import BackgroundTasks
from frontend.backends.channel.reader import MAX_AGE_S
from frontend.backends.channel.request import ChannelRequest, unavailable
from frontend.backends.channel.session import ChannelSession, Endpoint
from frontend.backends.generator import OnChunk
from llm_pipeline.protocol.channel import MAX_BUNDLE_REQUESTS
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk

MAX_BUNDLE_BYTES = 1024 * 1024
"""Most JSON of one bundle; a larger request travels alone."""

MAX_BUNDLES_UNDER_WAY = 2
"""Bundles without an answer. While there are this many, requests gather for the next: one is prepared, one waits."""

MAX_TRACES_APART = 4
"""Traces among the waiting requests that get bundles of their own, with Triton's spans. If there are more, they share
bundles without: at 256 streams that are all traced, single bundles would take four times as long."""

ANSWER_TIMEOUT_S = 5.0
"""Time after which a bundle without an answer holds back no other: its answer may be late, or lost."""

_CLOSE_TIMEOUT_S = 2.5  # decode ends a channel about 1 s after its last request


class ChannelClient:
    """The requests of this process to one ensemble. All methods belong to one event loop."""

    def __init__(
        self, endpoint: Endpoint, *, max_age_s: float = MAX_AGE_S, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        """`max_age_s` is the age at which a channel is replaced."""
        self._answer_timeout_s = answer_timeout_s
        self._endpoint = endpoint
        self._max_age_s = max_age_s
        self._slots = itertools.count()
        self._waiting: deque[ChannelRequest] = deque()  # some may be over
        self._waiting_by_key: dict[str, ChannelRequest] = {}
        self._is_flush_scheduled = False
        self._under_way: set[int] = set()  # bundles, by their first slot
        self._session: ChannelSession | None = None
        self._background = BackgroundTasks()

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        """Runs one completion to its end. Raises PipelineError."""
        request = ChannelRequest(next(self._slots), parameters, on_chunk)
        self._waiting.append(request)
        self._waiting_by_key[request.key] = request
        self._schedule_flush()
        try:
            await request.over
        finally:
            self._waiting_by_key.pop(request.key, None)
            request.leave(request)
        if request.error is not None:
            raise request.error

    def cancel_waiting(self, key: str) -> bool:
        """Ends a request that has not been sent yet as cancelled. Returns whether there was one."""
        request = self._waiting_by_key.get(key)
        if request is None or request.is_over:
            return False
        request.on_chunk(TextChunk("", 0, finish_reason=FinishReason.CANCELLED))
        request.end()
        return True

    async def close(self) -> None:
        """Ends all requests with an error (503). Waits for decode to end the channel, unless requests are live."""
        for request in self._waiting:
            request.end(unavailable())
        has_requests = self._session is not None and self._session.has_requests()
        if self._background and not has_requests:
            await asyncio.wait(self._background, timeout=_CLOSE_TIMEOUT_S)
        if self._session is not None:
            self._session.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _schedule_flush(self) -> None:
        """Sends the waiting requests after this iteration of the event loop, in which more may arrive."""
        if not self._is_flush_scheduled and len(self._under_way) < MAX_BUNDLES_UNDER_WAY:
            self._is_flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if len(self._under_way) < MAX_BUNDLES_UNDER_WAY and (requests := self._next_bundle()):
            session = self._live_session()
            session.add(requests)
            self._under_way.add(requests[0].slot)
            self._background.start(self._send(session, requests))
        if self._waiting:  # one bundle in each iteration of the event loop: to encode one may take 20 ms
            self._schedule_flush()

    def _next_bundle(self) -> list[ChannelRequest]:
        """The first waiting request, and those behind it that may travel with it."""
        bundle: list[ChannelRequest] = []
        traced: list[ChannelRequest] = []  # those that a bundle of untraced requests leaves behind
        size = 0
        keeps_traces_apart = self._has_few_traces()
        while self._waiting and len(bundle) < MAX_BUNDLE_REQUESTS:
            request = self._waiting[0]
            if request.is_over:  # cancelled while it waited
                self._waiting.popleft()
                continue
            if bundle and keeps_traces_apart and not request.is_of_same_trace(bundle[0]):
                if bundle[0].trace is not None:
                    break
                traced.append(self._waiting.popleft())
                continue
            try:
                size += len(request.json()) + 1
            except Exception as error:  # noqa: BLE001 - raised by `generate`; the others of the bundle are sent
                self._waiting.popleft()
                request.refuse(error)
                continue
            if bundle and size > MAX_BUNDLE_BYTES:
                break
            self._waiting.popleft()
            self._waiting_by_key.pop(request.key, None)
            bundle.append(request)
        self._waiting.extendleft(reversed(traced))
        return bundle

    def _has_few_traces(self) -> bool:
        """Whether the requests of the next bundles, as far as one could take them, belong to few traces."""
        waiting = itertools.islice(self._waiting, MAX_BUNDLE_REQUESTS)
        return len({request.trace.traceparent for request in waiting if request.trace}) <= MAX_TRACES_APART

    async def _send(self, session: ChannelSession, requests: Sequence[ChannelRequest]) -> None:
        bundle = requests[0].slot
        timer = asyncio.get_running_loop().call_later(self._answer_timeout_s, self._on_answer, bundle)
        try:
            await session.send(requests)
        finally:
            timer.cancel()
            self._on_answer(bundle)

    def _on_answer(self, bundle: int) -> None:
        self._under_way.discard(bundle)
        if self._waiting:
            self._schedule_flush()

    def _live_session(self) -> ChannelSession:
        """The present session; another one if it has failed."""
        if self._session is None or self._session.failure is not None:
            self._session = ChannelSession(self._endpoint, self._background, max_age_s=self._max_age_s)
        return self._session
