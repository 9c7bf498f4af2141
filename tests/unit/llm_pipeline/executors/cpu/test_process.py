"""The engine process: messages between steps, guides, and its end."""

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
from llm_pipeline.executors.cpu.engine.ipc import AddRequest, Cancel, StepOutput, StepReport
from llm_pipeline.executors.cpu.engine.process import CompileGuide, serve
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk
from llm_pipeline.guides.compiler import ConstraintMatcher
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, FinishReason, GenerationRequest, Guide, GuideType
from tests.support.hash_model import HashModel
from tests.support.sample_requests import make_request

DEADLINE_S = 10.0


class GatedModel(HashModel):
    """A model whose steps wait until the test opens the gate."""

    def __init__(self) -> None:
        super().__init__(capacity=100_000)
        self.gate = threading.Event()
        self.gate.set()
        self.is_running = threading.Event()

    def run(self, chunks: Sequence[ScheduledChunk]) -> npt.NDArray[np.float32]:
        self.is_running.set()
        assert self.gate.wait(DEADLINE_S)
        return super().run(chunks)


class Bench:
    """`serve` on a thread, and the other end of its socket."""

    def __init__(self, compile_guide: CompileGuide | None = None) -> None:
        self._compile_guide = compile_guide
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        self.engine_end = Connection(theirs.detach())
        self.model = GatedModel()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        engine = EngineCore(self.model, max_batched_tokens=64, max_active=4)
        with suppress(ConnectionError), self.engine_end:
            if self._compile_guide is None:
                serve(engine, self.engine_end)
            else:
                serve(engine, self.engine_end, self._compile_guide)

    def submit(self, request: GenerationRequest) -> None:
        self.connection.send(AddRequest(request))

    def receive(self) -> StepReport:
        assert self.connection.poll(DEADLINE_S), "the engine sends nothing"
        report = self.connection.recv()
        assert isinstance(report, StepReport)
        return report

    def final_steps(self, count: int) -> dict[str, StepOutput]:
        """Waits until `count` requests have ended and returns their final steps by key."""
        ended: dict[str, StepOutput] = {}
        while len(ended) < count:
            ended |= {step.key: step for step in self.receive().steps if step.is_final}
        return ended

    def finish_reasons(self, count: int) -> dict[str, FinishReason | None]:
        """Waits until `count` requests have ended and returns their finish reasons by key."""
        return {key: step.finish_reason for key, step in self.final_steps(count).items()}

    def close(self) -> None:
        self.model.gate.set()
        self.connection.close()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the engine runs although its connection is closed"


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_every_step_is_reported_with_the_active_requests(bench: Bench) -> None:
    bench.submit(make_request(max_tokens=2))
    first, second = bench.receive(), bench.receive()
    assert [len(report.steps) for report in (first, second)] == [1, 1]
    assert first.active_count == 1
    assert (second.active_count, second.steps[0].finish_reason) == (0, FinishReason.LENGTH)


def test_cancelled_request_is_reported_before_the_next_step(bench: Bench) -> None:
    bench.model.gate.clear()
    bench.submit(make_request("a", max_tokens=100))
    bench.submit(make_request("b", max_tokens=3))
    assert bench.model.is_running.wait(DEADLINE_S)
    bench.connection.send(Cancel("a"))
    bench.model.gate.set()
    assert bench.finish_reasons(2) == {"a": FinishReason.CANCELLED, "b": FinishReason.LENGTH}


def test_cancel_of_an_unknown_key_is_ignored(bench: Bench) -> None:
    bench.connection.send(Cancel("unknown"))
    bench.submit(make_request(max_tokens=1))
    assert bench.finish_reasons(1) == {"request": FinishReason.LENGTH}


def test_messages_are_received_during_a_step(bench: Bench) -> None:
    """A socket buffers about 200 KB; beyond that, decode's `execute` would block until the step ends."""
    bench.model.gate.clear()
    bench.submit(make_request("first", max_tokens=1))
    assert bench.model.is_running.wait(DEADLINE_S)
    prompt = tuple(range(2000, 8000))
    requests = [make_request(f"request {number}", prompt, max_tokens=1) for number in range(100)]

    def submit_all() -> None:
        for request in requests:
            bench.submit(request)

    sending = threading.Thread(target=submit_all, daemon=True)
    sending.start()
    sending.join(DEADLINE_S)
    assert not sending.is_alive(), "sending waits for the step"
    for request in requests:
        bench.connection.send(Cancel(request.key))
    bench.model.gate.set()
    assert len(bench.final_steps(101)) == 101


@pytest.mark.parametrize(
    ("error", "code", "param", "reason"),
    [
        (GuideError("Too many states."), ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM, "Too many states."),
        (
            PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, "No rule."),
            ErrorCode.VALUE_OUT_OF_RANGE,
            GUIDE_PARAM,
            "No rule.",
        ),
        (RuntimeError("a bug"), ErrorCode.INTERNAL_ERROR, None, "because of an internal error"),
    ],
    ids=["beyond the limits", "invalid", "a bug"],
)
def test_guide_that_can_not_be_compiled_fails_its_request_alone(
    error: Exception, code: ErrorCode, param: str | None, reason: str
) -> None:
    def compile_guide(guide: Guide) -> ConstraintMatcher:
        raise error

    bench = Bench(compile_guide)
    bench.submit(replace(make_request("guided"), guide=Guide(GuideType.REGEX, "[ab]+")))
    failure = bench.final_steps(1)["guided"].error
    assert failure is not None
    assert (failure.code, failure.param) == (code, param)
    assert reason in failure.message
    bench.submit(make_request("other", max_tokens=1))
    assert bench.finish_reasons(1) == {"other": FinishReason.LENGTH}
    bench.close()


def test_unreadable_message_ends_the_engine(bench: Bench) -> None:
    """Its parent restarts it. Without an inbox it would hang forever."""
    bench.connection.send_bytes(b"no pickle")
    bench.thread.join(DEADLINE_S)
    assert not bench.thread.is_alive()


def test_busy_engine_ends_when_the_connection_is_closed(bench: Bench) -> None:
    bench.submit(make_request(max_tokens=50_000))
    bench.receive()
    bench.connection.close()
    bench.thread.join(DEADLINE_S)
    assert not bench.thread.is_alive()
