"""The engine's side of the socket: what it takes and tells between steps, and when it stops."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
import pytest

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import AddRequest, Cancel, EngineStep, StepReport
from llm_pipeline.executors.cpu.engine.process import _compiled, serve
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GenerationRequest, Guide, GuideType
from llm_pipeline.runtime.guided_decoding import ConstraintMatcher, GuideError
from tests.support.hash_model import HashModel
from tests.support.sample_requests import make_request

DEADLINE_S = 10.0


class GatedModel(HashModel):
    """A model whose steps wait until the test lets them."""

    def __init__(self) -> None:
        super().__init__(capacity=100_000)
        self.gate = threading.Event()
        self.gate.set()
        self.is_running = threading.Event()

    def run(self, slices: Sequence[ScheduledChunk]) -> npt.NDArray[np.float32]:
        self.is_running.set()
        assert self.gate.wait(DEADLINE_S)
        return super().run(slices)


class Bench:
    """`serve` in a thread, and the other end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        self.engine_end = Connection(theirs.detach())
        self.model = GatedModel()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        engine = EngineCore(self.model, max_batched_tokens=64, max_active=4)
        with suppress(ConnectionError), self.engine_end:
            serve(engine, self.engine_end)

    def submit(self, request: GenerationRequest) -> None:
        self.connection.send(AddRequest(request))

    def receive(self) -> StepReport:
        assert self.connection.poll(DEADLINE_S), "the engine says nothing"
        progress = self.connection.recv()
        assert isinstance(progress, StepReport)
        return progress

    def endings(self, count: int) -> dict[str, str | None]:
        """Key -> finish reason, once so many have ended."""
        ended: dict[str, str | None] = {}
        while len(ended) < count:
            ended |= {step.key: step.finish_reason for step in self.receive().steps if step.finish_reason}
        return ended


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.model.gate.set()
    bench.connection.close()
    bench.thread.join(DEADLINE_S)
    assert not bench.thread.is_alive(), "the engine goes on without anybody to work for"


def test_every_step_is_told_with_the_numbers_of_requests(bench: Bench) -> None:
    bench.submit(make_request(max_tokens=2))
    first, second = bench.receive(), bench.receive()
    assert [len(progress.steps) for progress in (first, second)] == [1, 1]
    assert (first.active_count, first.waiting_count) == (1, 0)
    assert (second.active_count, second.steps[0].finish_reason) == (0, "length")


def test_a_cancel_is_told_before_the_next_step(bench: Bench) -> None:
    bench.model.gate.clear()
    bench.submit(make_request("a", max_tokens=100))
    bench.submit(make_request("b", max_tokens=3))
    assert bench.model.is_running.wait(DEADLINE_S)
    bench.connection.send(Cancel("a"))
    bench.model.gate.set()
    assert bench.endings(2) == {"a": "cancelled", "b": "length"}


def test_a_cancel_of_nobody_is_ignored(bench: Bench) -> None:
    bench.connection.send(Cancel("nobody"))
    bench.submit(make_request(max_tokens=1))
    assert bench.endings(1) == {"request": "length"}


def test_messages_are_taken_while_a_step_runs(bench: Bench) -> None:
    """A socket holds about 200 KB; with the rest, decode's `execute` would wait for the end of the step."""
    bench.model.gate.clear()
    bench.submit(make_request("first", max_tokens=1))
    assert bench.model.is_running.wait(DEADLINE_S)
    prompt = tuple(range(2000, 8000))
    requests = [make_request(f"request {number}", prompt, max_tokens=1) for number in range(100)]
    sending = threading.Thread(target=lambda: [bench.submit(request) for request in requests], daemon=True)
    sending.start()
    sending.join(DEADLINE_S)
    assert not sending.is_alive(), "sending waits for the step"
    for request in requests:
        bench.connection.send(Cancel(request.key))
    bench.model.gate.set()
    assert len(bench.endings(101)) == 101


def test_a_guide_that_can_not_be_followed_is_the_clients_to_mend() -> None:
    def compile_guide(guide: Guide) -> ConstraintMatcher:
        if guide.source == "refused":
            raise PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, "No rule.")
        raise GuideError("Too many states.") if guide.source == "large" else RuntimeError("a bug")

    steps = [
        _compiled(replace(make_request(text), guide=Guide(GuideType.REGEX, text)), compile_guide)
        for text in ("large", "refused", "other")
    ]
    assert steps == [
        EngineStep("large", guide_problem="Too many states."),
        EngineStep("refused", guide_problem="No rule."),
        EngineStep("other", failed=True),
    ]


def test_a_message_that_can_not_be_read_ends_the_engine_and_is_not_waited_on(bench: Bench) -> None:
    """Its parent starts it again; one that goes on without an inbox would hang for ever."""
    bench.connection.send_bytes(b"no pickle")
    bench.thread.join(DEADLINE_S)
    assert not bench.thread.is_alive()


def test_serving_ends_when_the_other_end_goes_away_idle_or_busy(bench: Bench) -> None:
    bench.submit(make_request(max_tokens=50_000))
    bench.receive()
    bench.connection.close()
    bench.thread.join(DEADLINE_S)
    assert not bench.thread.is_alive()
