"""Every request ends exactly once when submissions, steps, cancellations and refusals overlap at random."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from llm_pipeline.executors.port import ExecutorStats, OutputSink
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput, TokenChunk
from llm_pipeline.stages.decode.stage import DecodeStage
from tests.support.driven_stage import DEADLINE_S, REFUSAL, VOCAB_SIZE, RecordingSender
from tests.support.sample_requests import make_request


class RandomExecutor:
    """Makes random steps on its own thread, refuses some requests, and reacts late to cancellations."""

    def __init__(self, sink: OutputSink, seed: int) -> None:
        self._sink = sink
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._live: dict[str, int] = {}
        self._cancelled: set[str] = set()
        self.made: dict[str, list[int]] = defaultdict(list)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        with self._lock:
            if self._random.random() < 0.1:
                raise self._random.choice([REFUSAL, ValueError("a bug")])
            self._live[request.key] = request.max_tokens

    def cancel(self, key: str) -> None:
        with self._lock:
            if key in self._live:
                self._cancelled.add(key)

    def stats(self) -> ExecutorStats:
        with self._lock:
            return ExecutorStats(len(self._live), 0)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                steps = [self._step(key) for key in list(self._live)]
            self._sink(steps)
            time.sleep(0)  # let other threads run
        with self._lock:
            steps = [StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in self._live]
        self._sink(steps)

    def _step(self, key: str) -> StepOutput:
        chance = self._random.random()
        if key in self._cancelled and chance < 0.5:
            return self._end(key, finish_reason=FinishReason.CANCELLED)
        if chance > 0.98:
            return self._end(key, error=REFUSAL)
        count = min(self._random.randint(0, 3), self._live[key])
        ids = tuple(range(len(self.made[key]), len(self.made[key]) + count))
        self.made[key].extend(ids)
        self._live[key] -= count
        if not self._live[key]:
            return self._end(key, token_ids=ids, finish_reason=FinishReason.LENGTH)
        return StepOutput(key, ids)

    def _end(self, key: str, **ending: Any) -> StepOutput:
        del self._live[key]
        return StepOutput(key, **ending)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "token by token"])
def test_every_request_ends_exactly_once_under_random_load(seed: int, coalesce: bool) -> None:
    executors: list[RandomExecutor] = []

    def create(sink: OutputSink) -> RandomExecutor:
        executors.append(RandomExecutor(sink, seed))
        return executors[0]

    stage = DecodeStage(create, max_queued_requests=1000, vocab_size=VOCAB_SIZE, coalesce=coalesce)
    sender = RecordingSender()

    def client(number: int) -> None:
        dice = random.Random(seed * 10 + number)
        for index in range(250):
            key = f"{number}-{index}"
            if dice.random() < 0.1:
                stage.cancel(key)
            stage.submit(make_request(key, max_tokens=dice.randint(1, 20), stream=dice.random() < 0.7), sender)
            if dice.random() < 0.3:
                stage.cancel(key)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(DEADLINE_S)
    sender.wait_for_endings(700)
    stage.close()  # ends the requests that are still running
    by_key: dict[str, list[TokenChunk]] = defaultdict(list)
    for chunk in sender.chunks:
        by_key[chunk.key].append(chunk)
    assert len(by_key) == 1000
    for key, chunks in by_key.items():
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert [chunk.text_options is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        assert [token for chunk in chunks for token in chunk.token_ids] == executors[0].made[key]
