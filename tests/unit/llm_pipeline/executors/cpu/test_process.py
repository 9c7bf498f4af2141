"""The engine process: messages between steps, waiting for masks, and its end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
import pytest

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import AddRequest, Cancel, StepOutput, StepReport
from llm_pipeline.executors.cpu.engine.process import serve
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest
from tests.support.fake_masks import FakeGuides, guided
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

    def __init__(self) -> None:
        self.guides = FakeGuides(stopped=["slow"])
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        self.engine_end = Connection(theirs.detach())
        self.model = GatedModel()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        engine = EngineCore(self.model, max_batched_tokens=64, max_active=4, connect_masks=self.guides.connect)
        with suppress(ConnectionError), self.engine_end:
            serve(engine, self.engine_end)

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


def test_engine_that_only_waits_for_a_mask_goes_on_when_it_arrives(bench: Bench) -> None:
    bench.submit(guided(make_request("slow", max_tokens=3)))
    assert bench.receive().steps == []
    bench.guides.sources["slow"].go()
    assert bench.finish_reasons(1) == {"slow": FinishReason.LENGTH}


def test_engine_that_only_waits_for_a_mask_takes_messages(bench: Bench) -> None:
    bench.submit(guided(make_request("slow", max_tokens=3)))
    assert bench.receive().steps == []
    bench.submit(make_request("other", max_tokens=3))
    assert bench.finish_reasons(1) == {"other": FinishReason.LENGTH}
    bench.connection.send(Cancel("slow"))
    assert bench.finish_reasons(1) == {"slow": FinishReason.CANCELLED}


def test_engine_that_only_waits_for_a_mask_reports_that_it_lives_and_computes_nothing(bench: Bench) -> None:
    """Without the reports, the watchdog would take it for a hung one."""
    bench.submit(guided(make_request("slow", max_tokens=3)))
    reports = [bench.receive() for _ in range(4)]
    assert [(report.steps, report.active_count) for report in reports] == [([], 1)] * 4
    assert bench.model.runs == 1
    bench.connection.send(Cancel("slow"))
    assert len(bench.final_steps(1)) == 1
    assert not bench.connection.poll(1), "an idle engine sends nothing"


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
