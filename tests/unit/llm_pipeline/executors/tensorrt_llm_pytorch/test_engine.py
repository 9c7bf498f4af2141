"""The event loop of the LLM API's engine, on an LLM made of a few lines: its order, its ends, its deaths."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from llm_pipeline.executors.tensorrt_llm.engine import Ending, EngineDownError, EngineResponse, FailureKind
from llm_pipeline.executors.tensorrt_llm_pytorch.engine import (
    Generation,
    LlmEngine,
    RequestRefusedError,
    read_stats,
)
from llm_pipeline.protocol.messages import GenerationRequest
from tests.support.sample_requests import make_request

DEADLINE_S = 10.0


GATE = threading.Event()


class OneRequestError(RuntimeError):
    """Stands for upstream's RequestError."""


@dataclass
class Output:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


class ScriptedGeneration:
    """Yields itself with one more token for each item; an exception is raised, a string is the finish reason."""

    def __init__(self, script: list[Any]) -> None:
        self.outputs = [Output()]
        self.finished = False
        self.aborts: list[int] = []  # ids of the aborting threads
        self._script = script

    async def __aiter__(self) -> AsyncIterator[ScriptedGeneration]:
        for item in self._script:
            await asyncio.sleep(0)
            if isinstance(item, Exception):
                raise item
            if isinstance(item, str):
                self.finished, self.outputs[0].finish_reason = True, item
            elif item is None:
                await asyncio.sleep(DEADLINE_S)
            elif item is GATE:
                await asyncio.to_thread(GATE.wait, DEADLINE_S)
            else:
                self.outputs[0].token_ids.append(item)
            yield self

    def abort(self) -> None:
        self.aborts.append(threading.get_ident())


class ScriptedLlm:
    request_error: type[Exception] = OneRequestError

    def __init__(self) -> None:
        self.generations: list[ScriptedGeneration] = []
        self.threads: set[int] = set()
        self.is_down = False
        self.statistics: list[Mapping[str, Any] | Exception] = []

    def prepare(self, request: GenerationRequest) -> object:
        return request

    def generate(self, prepared: object) -> Generation:
        self.threads.add(threading.get_ident())
        asyncio.get_running_loop()  # upstream's results bind to it
        assert isinstance(prepared, GenerationRequest)
        script = SCRIPTS[prepared.key]
        if script and isinstance(script[0], RequestRefusedError | OSError):
            raise script[0]
        self.generations.append(ScriptedGeneration(script))
        return self.generations[-1]

    async def stats(self) -> AsyncIterator[Mapping[str, Any]]:
        self.threads.add(threading.get_ident())
        while self.statistics:
            item = self.statistics.pop(0)
            if isinstance(item, Exception):
                raise item
            yield item

    def is_shut_down(self) -> bool:
        return self.is_down

    def shutdown(self) -> None:
        self.is_down = True


SCRIPTS: dict[str, list[Any]] = {
    "two": [8, 9, "length"],
    "stalls": [8, None],
    "fails": [8, OneRequestError("no")],
    "breaks": [8, AssertionError("a bug in the result")],
    "breaks at the gate": [8, GATE, AssertionError("a bug in the result")],
    "without an end": [8],
    "refused": [RequestRefusedError("too long")],
    "raises": [OSError("no socket")],
}


@pytest.fixture
def llm() -> ScriptedLlm:
    return ScriptedLlm()


@pytest.fixture
def engine(llm: ScriptedLlm) -> Iterator[LlmEngine]:
    engine = LlmEngine(llm)
    yield engine
    engine.shutdown()


def run(engine: LlmEngine, request: GenerationRequest) -> list[EngineResponse]:
    """Runs a request until a response ends it or has an error."""
    request_id = engine.enqueue(engine.prepare(request))
    found: list[EngineResponse] = []
    until = time.monotonic() + DEADLINE_S
    while not any(response.ending or response.error for response in found):
        assert time.monotonic() < until, f"no end; responses: {found}"
        found += engine.await_responses(0.05)
    assert {response.request_id for response in found} == {request_id}
    return found


def await_forever(engine: LlmEngine) -> None:
    until = time.monotonic() + 3 * DEADLINE_S
    while time.monotonic() < until:
        engine.await_responses(0.05)


def test_tokens_and_the_end_come_in_order(engine: LlmEngine) -> None:
    responses = run(engine, make_request("two"))
    assert [token for response in responses for token in response.token_ids] == [8, 9]
    assert [response.ending for response in responses if response.ending] == [Ending.LENGTH]


def test_every_call_of_the_llm_is_made_in_one_thread(engine: LlmEngine, llm: ScriptedLlm) -> None:
    callers = [threading.Thread(target=run, args=(engine, make_request("two"))) for _ in range(1)]
    for caller in callers:
        caller.start()
        caller.join()
    number = engine.enqueue(engine.prepare(make_request("stalls")))
    engine.cancel(number)
    until = time.monotonic() + DEADLINE_S
    while not llm.generations[-1].aborts:
        assert time.monotonic() < until
    assert llm.threads | set(llm.generations[-1].aborts) == llm.threads
    assert len(llm.threads) == 1
    assert threading.get_ident() not in llm.threads


@pytest.mark.parametrize(
    ("key", "kind", "is_aborted"),
    [
        ("fails", FailureKind.UNKNOWN, False),
        ("breaks", FailureKind.UNKNOWN, True),
        ("refused", FailureKind.REQUEST, False),
        ("raises", FailureKind.UNKNOWN, False),
    ],
)
def test_failure_is_the_requests_alone(
    engine: LlmEngine, llm: ScriptedLlm, key: str, kind: FailureKind, is_aborted: bool
) -> None:
    failure = run(engine, make_request(key))[-1]
    assert failure.failure is kind
    assert any(generation.aborts for generation in llm.generations) == is_aborted
    assert run(engine, make_request("two"))[-1].ending is Ending.LENGTH


def test_failure_is_the_engines_if_the_llm_is_shut_down(engine: LlmEngine, llm: ScriptedLlm) -> None:
    prepared = engine.prepare(make_request("breaks at the gate"))
    number = engine.enqueue(prepared)
    llm.is_down = True
    GATE.set()
    found: list[EngineResponse] = []
    while not any(response.error for response in found):
        found += engine.await_responses(DEADLINE_S)
    GATE.clear()
    assert found[-1].request_id == number
    assert found[-1].failure is FailureKind.ENGINE
    assert "a bug" in (found[-1].error or "")
    with pytest.raises(EngineDownError):
        engine.enqueue(prepared)


def test_result_that_stops_without_a_finish_reason_ends_the_request(engine: LlmEngine) -> None:
    assert run(engine, make_request("without an end"))[-1].ending is Ending.UNKNOWN


def test_time_limit_ends_a_request_once(engine: LlmEngine, llm: ScriptedLlm) -> None:
    responses = run(engine, replace(make_request("stalls"), time_limit_s=0.05))
    assert responses[-1].ending is Ending.TIMED_OUT
    assert llm.generations[-1].aborts
    assert engine.await_responses(0.2) == []


def test_awaiting_returns_within_its_limit(engine: LlmEngine) -> None:
    started = time.monotonic()
    assert engine.await_responses(0.05) == []
    assert time.monotonic() - started < 5


def test_idle_llm_that_shuts_itself_down_is_noticed(engine: LlmEngine, llm: ScriptedLlm) -> None:
    llm.is_down = True
    with pytest.raises(RuntimeError, match="shut itself down"):
        await_forever(engine)


def test_engine_that_is_shut_down_accepts_no_request(llm: ScriptedLlm) -> None:
    engine = LlmEngine(llm)
    running = engine.enqueue(engine.prepare(make_request("stalls")))
    engine.shutdown()
    with pytest.raises(EngineDownError):
        engine.enqueue(engine.prepare(make_request("two")))
    with pytest.raises(EngineDownError):
        engine.cancel(running)
    engine.await_responses(0.01)  # an end that was meant is no death


def test_newest_statistics_are_read_once(engine: LlmEngine, llm: ScriptedLlm) -> None:
    llm.statistics += [{"numActiveRequests": count, "numQueuedRequests": 0, "iter": count} for count in (1, 2)]
    until = time.monotonic() + DEADLINE_S
    while (stats := engine.newest_stats()) is None:
        assert time.monotonic() < until
    assert stats.active_requests == 2
    assert stats.gauges == {"iteration": 2.0, "active_requests": 2.0, "queued_requests": 0.0}
    assert engine.newest_stats() is None


def test_error_of_the_statistics_is_raised_once_and_they_go_on(engine: LlmEngine, llm: ScriptedLlm) -> None:
    llm.statistics += [OSError("no socket"), {"numActiveRequests": 1, "numQueuedRequests": 0}]
    until = time.monotonic() + DEADLINE_S
    errors = 0
    stats = None
    while stats is None:
        assert time.monotonic() < until
        try:
            stats = engine.newest_stats()
        except OSError:
            errors += 1
    assert errors == 1


def test_statistics_without_counts_of_requests_are_refused() -> None:
    with pytest.raises(KeyError):
        read_stats({"iter": 1})
